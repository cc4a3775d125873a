#include "kernels.hpp"

#include <omp.h>

#include "strips.hpp"

namespace bdh {
namespace BDH_ISA {

void step(const Step& s, int threads);  // step.cpp

namespace {

// relu keeps NaN, as everywhere: what is not a number must reach the loss and stop the training. Hence `not <= 0`.

inline float keep(const Dropout& drop, int64_t n, int64_t m, int64_t M) {
    if (drop.rate <= 0) return 1;
    uint64_t z = drop.seed + 0x9E3779B97F4A7C15ull * static_cast<uint64_t>(n * M + m + 1);  // splitmix64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    const float u = static_cast<float>(z >> 40) * 0x1p-24f;
    return u >= drop.rate ? 1 / (1 - drop.rate) : 0;
}

void transpose_matrix(const float* in, int64_t rows, int64_t columns, float* out, int threads) {
    constexpr int64_t AHEAD = 4 * W;  // no prefetcher of the processor follows this many rows at once
    constexpr int64_t BLOCK = 256;    // rows of a block, which stays in the second-level cache
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t first = 0; first < rows; first += BLOCK)
        for (int64_t c = 0; c < columns; c += W) {
            const int64_t last = std::min(rows, first + BLOCK);
            int64_t r = first;
            vec square[W];
            for (; c + W <= columns && r + W <= last; r += W) {
                const float* from = in + r * columns + c;
                for (int i = 0; i < W; ++i) __builtin_prefetch(from + i * columns + AHEAD);
                for (int i = 0; i < W; ++i) square[i] = load(from + i * columns);
                transpose(square);
                for (int i = 0; i < W; ++i) store(out + (c + i) * rows + r, square[i]);
            }
            for (; r < last; ++r)
                for (int64_t i = c; i < std::min(columns, c + W); ++i) out[i * rows + r] = in[r * columns + i];
        }
}

void count(const float* tile, int64_t K, int64_t M, int64_t* start, int threads) {
    start[0] = 0;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < K; ++n) {
        const float* row = tile + n * M;
        int32_t fires = 0;
        for (int64_t m = 0; m < M; ++m) fires += row[m] <= 0 ? 0 : 1;
        start[n + 1] = fires;
    }
}

// The k largest entries of each column and, of those, the positive ones stay; ties go to the lower row, NaN stays.
// Positive floats are ordered as their bits are, so the k-th largest is found by halving the range of the bits.
void keep_winners(float* tile, int64_t K, int64_t M, int64_t k, int threads) {
    typedef int32_t bits __attribute__((vector_size(4 * W)));
#pragma omp parallel num_threads(threads)
    {
        std::vector<bits> block(K);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m += W) {
            const int64_t lanes = std::min<int64_t>(W, M - m);
            for (int64_t n = 0; n < K; ++n) {
                vec value{};
                std::memcpy(&value, tile + n * M + m, lanes * sizeof(float));
                const bits nan = value != value, raw = reinterpret_cast<const bits&>(value);
                block[n] = nan ? bits{} + INT32_MAX : raw;
            }
            bits low{}, high = bits{} + INT32_MAX, above{};  // the k-th largest lies in [low, high]
            for (int step = 0; step < 31; ++step) {
                const bits middle = low + (high - low) / 2;
                above = bits{};
                for (const bits& b : block) above -= b > middle;
                const bits fewer = above < static_cast<int32_t>(k);
                high = fewer ? middle : high;
                low = fewer ? low : middle + 1;
            }
            above = bits{};
            for (const bits& b : block) above -= b > high;
            const bits room = static_cast<int32_t>(k) - above;
            bits tied{};
            for (int64_t n = 0; n < K; ++n) {
                const bits same = block[n] == high;
                tied -= same;
                const bits stays = (block[n] > high) | (same & (tied <= room)) | (block[n] == INT32_MAX);
                for (int64_t l = 0; l < lanes; ++l)
                    if (!stays[l]) tile[n * M + m + l] = 0;
            }
        }
    }
}

inline void collect(const float* row, int64_t M, uint16_t* token, float* x) {
    int64_t m = 0;
#if defined(__AVX512F__)
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (; m + 16 <= M; m += 16) {
        const __m512 value = _mm512_loadu_ps(row + m);
        const __mmask16 fires = _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_NLE_UQ);
        if (!fires) continue;
        const int n = __builtin_popcount(fires);
        const __mmask16 first = static_cast<__mmask16>((1u << n) - 1);
        _mm512_mask_storeu_ps(x, first, _mm512_maskz_compress_ps(fires, value));
        const __m512i where = _mm512_add_epi32(_mm512_maskz_compress_epi32(fires, lane), _mm512_set1_epi32(m));
        _mm512_mask_cvtepi32_storeu_epi16(token, first, where);
        x += n, token += n;
    }
#endif
    for (; m < M; ++m)
        if (!(row[m] <= 0)) *x++ = row[m], *token++ = static_cast<uint16_t>(m);
}

// (even, odd) <- (even cos - odd sin, odd cos + even sin) of what fires; direction -1 turns back and takes any sign
template <int DIRECTION>
inline void rotate_pair(float* even, float* odd, const float* c, const float* s, int64_t M, int64_t T) {
    for (int64_t b = 0; b < M; b += T) {
        float *e = even + b, *o = odd + b;
        for (int64_t t = 0; t < T; ++t) {
            const float sine = DIRECTION * s[t];
            const float x = DIRECTION > 0 && e[t] <= 0 ? 0 : e[t], y = DIRECTION > 0 && o[t] <= 0 ? 0 : o[t];
            e[t] = x * c[t] - y * sine;
            o[t] = y * c[t] + x * sine;
        }
    }
}

void collect_and_rotate(float* tile, int64_t K, int64_t M, const int64_t* start, uint16_t* token, float* x,
                        const float* cosine, const float* sine, int64_t T, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < K / 2; ++j) {
        float *even = tile + 2 * j * M, *odd = even + M;
        collect(even, M, token + start[2 * j], x + start[2 * j]);
        collect(odd, M, token + start[2 * j + 1], x + start[2 * j + 1]);
        rotate_pair<1>(even, odd, cosine + j * T, sine + j * T, M, T);
    }
}

void expand_and_rotate(const Firing& f, const float* cosine, const float* sine, int64_t T, float* tile, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < f.neurons / 2; ++j) {
        float *even = tile + 2 * j * f.tokens, *odd = even + f.tokens;
        std::memset(even, 0, 2 * f.tokens * sizeof(float));
        for (int64_t p = f.start[2 * j]; p < f.start[2 * j + 1]; ++p) even[f.token[p]] = f.x[p];
        for (int64_t p = f.start[2 * j + 1]; p < f.start[2 * j + 2]; ++p) odd[f.token[p]] = f.x[p];
        rotate_pair<1>(even, odd, cosine + j * T, sine + j * T, f.tokens, T);
    }
}

// dots of one row with the rows of the given tokens; the last few go the same way as the others, so that how many come
// after a token does not change its rounding
template <int NV, typename Token>
inline void dots(const float* row, const float* matrix, int64_t D, int64_t count, Token token, float* out) {
    int64_t e = 0;
    for (; e + 4 <= count; e += 4) {
        const float* rows[4];
        for (int k = 0; k < 4; ++k) rows[k] = matrix + token(e + k) * D;
        dot4<NV>(row, rows, D, out + e);
    }
    if (e == count) return;
    const float* rows[4];
    float last[4];
    for (int k = 0; k < 4; ++k) rows[k] = matrix + token(std::min(e + k, count - 1)) * D;
    dot4<NV>(row, rows, D, last);
    for (int k = 0; e < count; ++e, ++k) out[e] = last[k];
}

// a row of the gate's input is used by many neurons: keep a block of tokens in the first-level cache meanwhile
constexpr int64_t BLOCK_BYTES = 1 << 15;

template <int NV>
void gate_of(const Firing& f, const float* encoder_v, const float* a, float* gate, int threads) {
    const int64_t D = f.width, block = std::max<int64_t>(1, BLOCK_BYTES / (4 * D));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(f.neurons, first, last);
        int64_t next[Group::SIZE];
        for (int64_t g = first; g < last; g += Group::SIZE) {
            const int64_t neurons = std::min(Group::SIZE, last - g);
            for (int64_t n = 0; n < neurons; ++n) next[n] = f.start[g + n];
            for (int64_t until = block; until < f.tokens + block; until += block)
                for (int64_t n = 0; n < neurons; ++n) {
                    const int64_t p = next[n], end = f.start[g + n + 1];
                    int64_t q = p;
                    while (q < end && f.token[q] < until) ++q;
                    dots<NV>(encoder_v + (g + n) * D, a, D, q - p, [&](int64_t e) { return f.token[p + e]; }, gate + p);
                    for (int64_t e = p; e < q; ++e) gate[e] = gate[e] <= 0 ? 0 : gate[e];
                    next[n] = q;
                }
        }
    }
}

void decode(const Firing& f, const float* gate, const float* decoder, Dropout drop, float* out, int threads) {
    const int64_t D = f.width, M = f.tokens, size = strips(D) * M * S;
    Buffer copies(threads * size);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(f.neurons, first, last);
        float* mine = copies.cleared(omp_get_thread_num(), size);
        Group group(M);
        for (int64_t g = first; g < last; g += Group::SIZE) {
            const int64_t neurons = std::min(Group::SIZE, last - g);
            group.reset();
            for (int64_t n = g; n < g + neurons; ++n) {
                uint32_t* at = group.at + group.count;
                float* factor = group.factor[0] + group.count;
                int64_t open = 0;
                for (int64_t p = f.start[n]; p < f.start[n + 1]; ++p) {
                    at[open] = f.token[p] * S;
                    factor[open] = f.x[p] * gate[p] * keep(drop, n, f.token[p], M);
                    open += gate[p] <= 0 ? 0 : 1;  // no branch: half of them would be guessed wrong
                }
                group.next_neuron(open);
            }
            sweep<false, true>(group, group.factor[0], M, D, nullptr, nullptr, decoder + g * D, mine);
        }
#pragma omp barrier
        add_packed(copies.data(), omp_get_num_threads(), M, D, out);
    }
}

template <int NV>
void gate_backward_of(const Firing& f, const float* gate, const float* encoder_v, const float* decoder, const float* a,
                      const float* d_out, Dropout drop, float* d_encoder_v, float* d_decoder, float* d_a, float* d_x,
                      int threads) {
    const int64_t D = f.width, M = f.tokens, size = strips(D) * M * S;
    Buffer copies(threads * size), packed_a(size, 32), packed_d_out(size, 16);
#pragma omp parallel num_threads(threads)
    {
        pack(a, M, D, packed_a.data());
        pack(d_out, M, D, packed_d_out.data());
        int64_t first, last;
        share(f.neurons, first, last);
        float* mine = copies.cleared(omp_get_thread_num(), size);
        Group group(M);
        std::vector<int64_t> open(M);
        std::vector<float> d_xy(M);
        for (int64_t g = first; g < last; g += Group::SIZE) {
            const int64_t neurons = std::min(Group::SIZE, last - g);
            group.reset();
            for (int64_t n = 0; n < neurons; ++n) {
                int64_t count = 0;
                for (int64_t p = f.start[g + n]; p < f.start[g + n + 1]; ++p) {
                    d_x[p] = 0;
                    open[count] = p;
                    count += gate[p] <= 0 ? 0 : 1;
                }
                dots<NV>(decoder + (g + n) * D, d_out, D, count, [&](int64_t e) { return f.token[open[e]]; }, d_xy.data());
                uint32_t* at = group.at + group.count;
                float *by_output = group.factor[0] + group.count, *by_gate = group.factor[1] + group.count;
                for (int64_t e = 0; e < count; ++e) {
                    const int64_t p = open[e];
                    const float kept = keep(drop, g + n, f.token[p], M), d = kept * d_xy[e];
                    at[e] = f.token[p] * S;
                    by_output[e] = kept * f.x[p] * gate[p];
                    by_gate[e] = d * f.x[p];
                    d_x[p] = d * gate[p];
                }
                group.next_neuron(count);
            }
            sweep<true, false>(group, group.factor[0], M, D, packed_d_out.data(), d_decoder + g * D, nullptr, nullptr);
            sweep<true, true>(group, group.factor[1], M, D, packed_a.data(), d_encoder_v + g * D, encoder_v + g * D,
                              mine);
        }
#pragma omp barrier
        add_packed(copies.data(), omp_get_num_threads(), M, D, d_a);
    }
}

void fire_backward(const Firing& f, const float* d_x, float* d_tile, const float* cosine, const float* sine, int64_t T,
                   const float* encoder, const float* v, float* d_encoder, float* d_v, int threads) {
    const int64_t D = f.width, M = f.tokens, size = strips(D) * M * S;
    Buffer copies(threads * size), packed_v(size, 32);
#pragma omp parallel num_threads(threads)
    {
        pack(v, M, D, packed_v.data());
        int64_t first, last;
        share(f.neurons, first, last);
        float* mine = copies.cleared(omp_get_thread_num(), size);
        Group group(M);
        for (int64_t g = first; g < last; g += Group::SIZE) {
            const int64_t neurons = std::min(Group::SIZE, last - g);
            group.reset();
            for (int64_t n = g; n < g + neurons; ++n) {
                float* row = d_tile + n * M;
                if (n % 2 == 0) rotate_pair<-1>(row, row + M, cosine + n / 2 * T, sine + n / 2 * T, M, T);
                const int64_t fired = f.start[n + 1] - f.start[n];
                const uint16_t* token = f.token + f.start[n];
                const float* direct = d_x + f.start[n];
                uint32_t* at = group.at + group.count;
                float* factor = group.factor[0] + group.count;
                for (int64_t e = 0; e < fired; ++e) at[e] = token[e] * S, factor[e] = direct[e] + row[token[e]];
                group.next_neuron(fired);
            }
            sweep<true, true>(group, group.factor[0], M, D, packed_v.data(), d_encoder + g * D, encoder + g * D, mine);
        }
#pragma omp barrier
        add_packed(copies.data(), omp_get_num_threads(), M, D, d_v);
    }
}

void drive_gradient(const Firing& f, const float* d_x, float* d_tile, const float* cosine, const float* sine, int64_t T,
                    int threads) {
    const int64_t M = f.tokens;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> drive(M);
#pragma omp for schedule(static)
        for (int64_t j = 0; j < f.neurons / 2; ++j) {
            float* even = d_tile + 2 * j * M;
            rotate_pair<-1>(even, even + M, cosine + j * T, sine + j * T, M, T);
            for (int64_t n = 2 * j; n < 2 * j + 2; ++n) {
                float* row = d_tile + n * M;
                std::fill(drive.begin(), drive.end(), 0.0f);
                for (int64_t p = f.start[n]; p < f.start[n + 1]; ++p) drive[f.token[p]] = d_x[p] + row[f.token[p]];
                std::copy(drive.begin(), drive.end(), row);
            }
        }
    }
}

// widths that presets use get kernels of their own
#define BDH_BY_WIDTH(function, width, ...)                  \
    switch (width) {                                        \
        case 64: return function<64 / W>(__VA_ARGS__);      \
        case 128: return function<128 / W>(__VA_ARGS__);    \
        case 256: return function<256 / W>(__VA_ARGS__);    \
        case 512: return function<512 / W>(__VA_ARGS__);    \
        default: return function<0>(__VA_ARGS__);           \
    }

void gate(const Firing& f, const float* encoder_v, const float* a, float* gate, int threads) {
    BDH_BY_WIDTH(gate_of, f.width, f, encoder_v, a, gate, threads)
}

void gate_backward(const Firing& f, const float* gate, const float* encoder_v, const float* decoder, const float* a,
                   const float* d_out, Dropout drop, float* d_encoder_v, float* d_decoder, float* d_a, float* d_x,
                   int threads) {
    BDH_BY_WIDTH(gate_backward_of, f.width, f, gate, encoder_v, decoder, a, d_out, drop, d_encoder_v, d_decoder, d_a,
                 d_x, threads)
}

}  // namespace

#define BDH_TEXT_(x) #x
#define BDH_TEXT(x) BDH_TEXT_(x)

extern const Kernels kernels = {BDH_TEXT(BDH_ISA), transpose_matrix, keep_winners, count, collect_and_rotate, expand_and_rotate, gate,
                                decode, gate_backward, fire_backward, drive_gradient, step};

}  // namespace BDH_ISA
}  // namespace bdh
