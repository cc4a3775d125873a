// One token of each sequence through all levels. step.cpp is compiled once per instruction set, like kernels.cpp.
//
// Letters: B sequences, L levels, H heads, K neurons per head, D embedding.
#pragma once

#include <cstdint>

#include "scan.hpp"

namespace bdh {

enum class Type { float32, bfloat16, int8 };

// A map, neuron-major (H, K, D). Entry d of neuron n stands for scale[n] * rows[n][d]; scale is for int8 alone.
struct Map {
    const void* rows;
    const float* scale;
};

// Leaky integrate-and-fire neurons in place of the ReLU (scan.hpp has their equations); without membranes there are none.
struct Spiking {
    float* const* membrane;    // L states (B, H, K), as the next two: read, then written
    int8_t* const* waiting;    // silent tokens that are left
    float* const* trace;
    const float *decay, *gain;  // (H)
    const float* threshold;     // (L, H)
    float rest, reset_to, trace_decay;
    Reset reset;
    int32_t refractory;
    bool graded;
};

// A second memory that fades, E' = lam E + q v, and is read as c lam q E; without rows there is none. To fade all of it
// at every token would take longer than all else, so a row fades when its neuron fires: it stands as it was after
// `at` tokens, and is exp(-rate (position - at)) of that now.
struct Fading {
    void* const* rows;    // L states (B, H, K, D), stored as rho
    int32_t* const* at;   // L (B, H, K)
    const float *strength, *rate;  // (H)
    int64_t position;     // tokens read before this one
};

struct Step {
    int64_t sequences, levels, heads, neurons, width;  // B, L, H, K, D
    Type weights;                                      // of the maps
    Map encoder, encoder_v, decoder;
    Type stored;            // of the states: float32 or bfloat16
    void* const* rho;       // L states (B, H, K, D): read, then written, at firing pairs only
    const float *cosine, *sine;  // (K/2) phases of the position
    float* v;               // (B, D), replaced
    Spiking spiking;
    Fading fading;
};

}  // namespace bdh
