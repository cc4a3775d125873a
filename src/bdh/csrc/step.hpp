// One token of each sequence through all levels. step.cpp is compiled once per instruction set, like kernels.cpp.
//
// Letters: B sequences, L levels, H heads, K neurons per head, D embedding.
#pragma once

#include <cstdint>

namespace bdh {

enum class Type { float32, bfloat16, int8 };

// A map, neuron-major (H, K, D). Entry d of neuron n stands for scale[n] * rows[n][d]; scale is for int8 alone.
struct Map {
    const void* rows;
    const float* scale;
};

struct Step {
    int64_t sequences, levels, heads, neurons, width;  // B, L, H, K, D
    Type weights;                                      // of the maps
    Map encoder, encoder_v, decoder;
    Type stored;            // of the states: float32 or bfloat16
    void* const* rho;       // L states (B, H, K, D): read, then written, at firing pairs only
    const float *cosine, *sine;  // (K/2) phases of the position
    float* v;               // (B, D), replaced
};

}  // namespace bdh
