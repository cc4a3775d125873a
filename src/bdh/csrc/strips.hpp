// Dots of rows, and sums over firing entries. Included once per instruction set, inside its namespace.
#pragma once

#include <algorithm>
#include <vector>

#include "vectors.hpp"

namespace bdh {
namespace BDH_ISA {
namespace {

// r[i][l] <-> r[l][i] of a square of W vectors: halves that lie off the diagonal change places, then quarters, ...
template <int STEP = W / 2>
inline void transpose(vec* r) {
    typedef int32_t lanes __attribute__((vector_size(4 * W)));
    lanes low, high;
    for (int l = 0; l < W; ++l) low[l] = l & STEP ? W + l - STEP : l, high[l] = l & STEP ? W + l : l + STEP;
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        if (i & STEP) continue;
        const vec a = r[i], b = r[i + STEP];
        r[i] = __builtin_shuffle(a, b, low);
        r[i + STEP] = __builtin_shuffle(a, b, high);
    }
    if constexpr (STEP > 1) transpose<STEP / 2>(r);
}

// four dots with one row, which is loaded once; rows have NV vectors, known at compile time, and NV = 0 is any width
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

// Entries of a group of neurons, neuron after neuron, tokens ascending: `at` is the token's place in a strip, and the
// factors of up to two sums over the same entries stand beside it.
struct Group {
    static constexpr int64_t SIZE = 64;
    int64_t neurons = 0, count = 0, blocks;
    uint32_t begin[SIZE][MOST_BLOCKS + 1];  // of neuron n and block b of tokens
    uint32_t* at;
    float* factor[2];

    explicit Group(int64_t M)
        : blocks((M + BLOCK - 1) / BLOCK), memory_(static_cast<uint32_t*>(std::malloc(3 * SIZE * M * 4))) {
        if (!memory_) throw std::bad_alloc();
        at = memory_;
        for (int i = 0; i < 2; ++i) factor[i] = reinterpret_cast<float*>(memory_ + (i + 1) * SIZE * M);
    }
    ~Group() { std::free(memory_); }
    Group(const Group&) = delete;
    Group& operator=(const Group&) = delete;

    void reset() { neurons = count = 0; }
    // close a neuron whose `fired` places were written at `at + count`
    void next_neuron(int64_t fired) {
        const uint32_t *first = at + count, *last = first + fired;
        for (int64_t b = 0; b < blocks; ++b)
            begin[neurons][b] = std::lower_bound(b ? at + begin[neurons][b - 1] : first, last, b * BLOCK * S) - at;
        count += fired;
        begin[neurons++][blocks] = count;
    }

  private:
    uint32_t* memory_;
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

// (M, D) -> (strips, M, S), by all threads
void pack(const float* rows, int64_t M, int64_t D, float* packed) {
#pragma omp for schedule(static) collapse(2)
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
void sweep(const Group& group, const float* factor, int64_t M, int64_t D, const float* in, float* d_weight,
           const float* weight, float* out) {
    for (int64_t s = 0; s < strips(D); ++s) {
        const int64_t lanes = D - s * S;
        const float* source = in + s * M * S;
        float* target = out + s * M * S;
        for (int64_t b = 0; b < group.blocks; ++b)
            for (int64_t n = 0; n < group.neurons; ++n) {
                int64_t e = group.begin[n][b];
                const int64_t end = group.begin[n][b + 1];
                if (e == end) continue;
                vec w[V], d[V];
                if (SCATTER) load_strip(weight + n * D + s * S, lanes, w);
                if (GATHER) load_strip(d_weight + n * D + s * S, lanes, d);
                for (; e < end; ++e) {
                    const vec k = splat(factor[e]);
                    const float* row = source + group.at[e];
                    float* goal = target + group.at[e];
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
