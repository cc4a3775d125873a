// Dots of rows, and sums over firing entries. Included once per instruction set, inside its namespace.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.hpp"

namespace bdh {
namespace BDH_ISA {
namespace {

// NV vectors of a row of width D = NV * W, known at compile time; NV = 0 is any width
template <int NV>
inline float dot(const float* a, const float* b, int64_t D) {
    const int64_t n = NV ? NV : D / W;
    vec s0{}, s1{};
    int64_t i = 0;
    for (; i + 1 < n; i += 2) {
        s0 += load(a + i * W) * load(b + i * W);
        s1 += load(a + (i + 1) * W) * load(b + (i + 1) * W);
    }
    if (i < n) s0 += load(a + i * W) * load(b + i * W);
    float total = sum(s0 + s1);
    if (!NV)
        for (int64_t d = n * W; d < D; ++d) total += a[d] * b[d];
    return total;
}

// four dots with one row: the row is loaded once
template <int NV>
inline void dot4(const float* a, const float* const* b, int64_t D, float* out) {
    const int64_t n = NV ? NV : D / W;
    vec s0{}, s1{}, s2{}, s3{};
    for (int64_t i = 0; i < n; ++i) {
        const vec r = load(a + i * W);
        s0 += r * load(b[0] + i * W);
        s1 += r * load(b[1] + i * W);
        s2 += r * load(b[2] + i * W);
        s3 += r * load(b[3] + i * W);
    }
    out[0] = sum(s0), out[1] = sum(s1), out[2] = sum(s2), out[3] = sum(s3);
    if (!NV)
        for (int64_t d = n * W; d < D; ++d)
            for (int k = 0; k < 4; ++k) out[k] += a[d] * b[k][d];
}

// ---- strips ---------------------------------------------------------------------------------------------------
// Sums over entries move rows of a (tokens x width) matrix through the registers. The rows of all tokens do not fit
// the first-level cache; a strip of V vectors of a block of tokens does. So the matrix is repacked as strips, and
// strips and blocks of tokens are the outer loops.

constexpr int64_t V = 4;          // vectors of a strip
constexpr int64_t S = V * W;      // floats of a strip
constexpr int64_t BLOCK = 64;     // tokens of a block: with V = 4, two blocks of strips take 32 KiB under AVX-512
constexpr int64_t MOST_BLOCKS = 64;

// One firing entry of a neuron: its token's place in a strip, and a factor.
struct Entry {
    uint32_t at;
    float factor;
};

// Entries of a group of neurons, neuron after neuron, tokens ascending.
struct Group {
    static constexpr int64_t SIZE = 64;
    int64_t neurons = 0, blocks = 0;
    std::vector<Entry> entries;
    uint32_t begin[SIZE][MOST_BLOCKS + 1];  // of neuron n and block b of tokens

    void reset(int64_t M) {
        neurons = 0, blocks = (M + BLOCK - 1) / BLOCK;
        entries.clear();
    }
    void add(int64_t token, float factor) {
        while (block_ <= token / BLOCK) begin[neurons][block_++] = entries.size();
        entries.push_back({static_cast<uint32_t>(token * S), factor});
    }
    void next_neuron() {
        while (block_ <= blocks) begin[neurons][block_++] = entries.size();
        block_ = 0, ++neurons;
    }

  private:
    int64_t block_ = 0;
};

inline int64_t strips(int64_t D) { return (D + S - 1) / S; }

// a strip of a row of width D; beyond the width it is zero
inline void load_strip(const float* p, int64_t lanes, vec* v) {
    if (lanes >= S) {
        for (int64_t i = 0; i < V; ++i) v[i] = load(p + i * W);
        return;
    }
    float padded[S] = {};
    std::memcpy(padded, p, lanes * sizeof(float));
    for (int64_t i = 0; i < V; ++i) v[i] = load(padded + i * W);
}

inline void store_strip(float* p, int64_t lanes, const vec* v) {
    if (lanes >= S) {
        for (int64_t i = 0; i < V; ++i) store(p + i * W, v[i]);
        return;
    }
    float padded[S];
    for (int64_t i = 0; i < V; ++i) store(padded + i * W, v[i]);
    std::memcpy(p, padded, lanes * sizeof(float));
}

// (M, D) -> (strips, M, S)
void pack(const float* rows, int64_t M, int64_t D, float* packed) {
    for (int64_t s = 0; s < strips(D); ++s)
        for (int64_t m = 0; m < M; ++m) {
            vec v[V];
            load_strip(rows + m * D + s * S, D - s * S, v);
            store_strip(packed + (s * M + m) * S, S, v);
        }
}

// rows += the sum of the threads' packed copies, in a fixed order: results do not depend on timing
void add_packed(const float* packed, int64_t copies, int64_t M, int64_t D, float* rows) {
    const int64_t size = strips(D) * M * S;
#pragma omp for schedule(static)
    for (int64_t m = 0; m < M; ++m)
        for (int64_t s = 0; s < strips(D); ++s) {
            vec total[V];
            load_strip(rows + m * D + s * S, D - s * S, total);
            for (int64_t c = 0; c < copies; ++c)
                for (int64_t i = 0; i < V; ++i) total[i] += load(packed + c * size + (s * M + m) * S + i * W);
            store_strip(rows + m * D + s * S, D - s * S, total);
        }
}

// For the neurons of a group, whose rows of `weight` and `d_weight` have width D:
//   GATHER   d_weight[n] += sum_e factor_e in[e]
//   SCATTER  out[e] += factor_e weight[n]
template <bool GATHER, bool SCATTER>
void sweep(const Group& group, int64_t M, int64_t D, const float* in, float* d_weight, const float* weight,
           float* out) {
    for (int64_t s = 0; s < strips(D); ++s) {
        const int64_t lanes = D - s * S;
        const float* source = in + s * M * S;
        float* target = out + s * M * S;
        for (int64_t b = 0; b < group.blocks; ++b)
            for (int64_t n = 0; n < group.neurons; ++n) {
                const Entry* e = group.entries.data() + group.begin[n][b];
                const Entry* end = group.entries.data() + group.begin[n][b + 1];
                if (e == end) continue;
                vec w[V], d[V];
                if (SCATTER) load_strip(weight + n * D + s * S, lanes, w);
                if (GATHER) load_strip(d_weight + n * D + s * S, lanes, d);
                for (; e < end; ++e) {
                    const vec k = splat(e->factor);
                    const float* row = source + e->at;
                    float* goal = target + e->at;
                    for (int64_t i = 0; i < V; ++i) {
                        if (GATHER) d[i] += k * load(row + i * W);
                        if (SCATTER) store(goal + i * W, load(goal + i * W) + k * w[i]);
                    }
                }
                if (GATHER) store_strip(d_weight + n * D + s * S, lanes, d);
            }
    }
}

}  // namespace
}  // namespace BDH_ISA
}  // namespace bdh
