// Sparse kernels of the CPU back end. kernels.cpp is compiled once per instruction set, each into a namespace of its
// own; `best()` picks one at run time.
//
// A tile is K neurons x M tokens, neuron-major: row n holds what neuron n does at every token. Of the activity only
// the firing entries are kept, per neuron: `start[n] .. start[n+1]` index into `token` (which token) and `x` (how
// strongly). `gate` runs parallel to `x` and holds the gate y at the same entries.
//
// Letters: K neurons of the tile, M tokens, T tokens of one sequence, D embedding.
#pragma once

#include <cstdint>
#include <string>

#include "step.hpp"

namespace bdh {

struct Firing {
    int64_t neurons;        // K
    int64_t tokens;         // M
    int64_t width;          // D
    const int64_t* start;   // (K+1)
    const uint16_t* token;  // (nnz)
    const float* x;         // (nnz)
};

// Dropout that can be repeated in the backward pass: entry (neuron, token) survives if hash(seed, entry) >= rate.
struct Dropout {
    uint64_t seed;
    float rate;
};

struct Kernels {
    const char* name;

    // out (columns, rows) = the transpose of in (rows, columns)
    void (*transpose)(const float* in, int64_t rows, int64_t columns, float* out, int threads);

    // zero all but the k largest entries of each column of the tile (K, M) and, of those, what is not positive; ties go
    // to the lower row
    void (*keep_winners)(float* tile, int64_t K, int64_t M, int64_t k, int threads);

    // count the firing entries (> 0) of each neuron: start[n+1] = count of neuron n
    void (*count)(const float* tile, int64_t K, int64_t M, int64_t* start, int threads);

    // collect the firing entries (start is final), then rotate the pairs (2j, 2j+1) of the tile in place;
    // cosine and sine are (K/2, T), token m stands at position m % T
    void (*collect_and_rotate)(float* tile, int64_t K, int64_t M, const int64_t* start, uint16_t* token, float* x,
                               const float* cosine, const float* sine, int64_t T, int threads);

    // the same rotation for entries already collected: rebuild the rotated tile from them
    void (*expand_and_rotate)(const Firing& f, const float* cosine, const float* sine, int64_t T, float* tile,
                              int threads);

    // gate[p] = relu(<encoder_v[n], a[m]>) at the firing entries only
    void (*gate)(const Firing& f, const float* encoder_v, const float* a, float* gate, int threads);

    // out[m] += sum_n x gate decoder[n] over the entries whose gate is open
    void (*decode)(const Firing& f, const float* gate, const float* decoder, Dropout drop, float* out, int threads);

    // backward of gate and decode: d_decoder, d_encoder_v, d_a are added to; d_x is set
    void (*gate_backward)(const Firing& f, const float* gate, const float* encoder_v, const float* decoder,
                          const float* a, const float* d_out, Dropout drop, float* d_encoder_v, float* d_decoder,
                          float* d_a, float* d_x, int threads);

    // backward of fire and rotate: d_tile is the gradient of the rotated tile; d_encoder and d_v are added to
    void (*fire_backward)(const Firing& f, const float* d_x, float* d_tile, const float* cosine, const float* sine,
                          int64_t T, const float* encoder, const float* v, float* d_encoder, float* d_v,
                          int threads);

    // the first half of fire_backward alone, for dense products to follow: d_tile becomes the gradient of the drive,
    // which is zero where nothing fires
    void (*drive_gradient)(const Firing& f, const float* d_x, float* d_tile, const float* cosine, const float* sine,
                           int64_t T, int threads);

    // one token of each sequence through all levels
    void (*step)(const Step& s, int threads);
};

// The kernels in use: the widest that this processor runs, unless `choose` picked others (for tests and timings).
const Kernels& best();
bool choose(const std::string& name);

}  // namespace bdh
