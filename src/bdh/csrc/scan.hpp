// Leaky integrate-and-fire neurons over the tokens of a text, and the way back. scan.cpp is compiled once per
// instruction set, like kernels.cpp.
//
// Letters: H heads, K neurons per head, T tokens, R rows (batch x heads; row r belongs to head r % H).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace bdh {

enum class Reset { none, soft, hard };

inline Reset reset_named(const std::string& name) {
    if (name == "none") return Reset::none;
    if (name == "soft") return Reset::soft;
    if (name == "hard") return Reset::hard;
    throw std::invalid_argument("expected reset none, soft or hard");
}

enum class Surrogate { fast_sigmoid, arctan, triangular };

struct Neurons {
    int64_t rows, heads, tokens, neurons;  // R, H, T, K
    const float *decay, *gain;             // (H): h = decay * v + gain * (rest + current)
    const float *threshold, *spread;       // (H, K), or (H) if shared by the neurons of a head
    bool shared;
    float rest, reset_to;
    Reset reset;
    int32_t refractory;  // silent tokens after a spike
    bool detach;         // no gradient through the reset
    Surrogate surrogate;
    float beta;
};

struct Scans {
    // membrane and waiting (R, K) are the state, replaced; charge h, spikes and activity = spikes * relu(current) are
    // (R, T, K), charge and activity may be null. Where a neuron is refractory its charge is written as -infinity.
    void (*forward)(const Neurons& n, const float* current, float* membrane, int8_t* waiting, float* charge,
                    float* spikes, float* activity, int threads);

    // d_membrane (R, K): gradient of the last membrane on entry, of the first on return; d_spikes, d_activity may be
    // null, current is read where d_activity is given
    void (*backward)(const Neurons& n, const float* current, const float* charge, const float* d_spikes,
                     const float* d_activity, float* d_membrane, float* d_current, int threads);
};

// The scans of the instruction set in use (`choose` in kernels.hpp).
const Scans& scans();

}  // namespace bdh
