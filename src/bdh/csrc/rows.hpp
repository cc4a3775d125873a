// Rows of floats, bfloat16 and int8 for step.cpp: dots with them and sums of them, computed in float32. Included once
// per instruction set, inside its namespace.
#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.hpp"

namespace bdh {
namespace BDH_ISA {
namespace {

// ---- single entries and single vectors --------------------------------------------------------------------------

// the upper half of a float32
struct bfloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(int8_t x) { return x; }
inline float widen(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}

// to the nearest, of two the even one; NaN stays NaN
inline void put(bfloat16* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    p->bits = static_cast<uint16_t>((x == x ? bits + 0x7FFF + (bits >> 16 & 1) : bits) >> 16);
}
inline void put(float* p, float x) { *p = x; }

typedef uint32_t words __attribute__((vector_size(4 * W)));
typedef uint16_t halves __attribute__((vector_size(2 * W), aligned(2), may_alias));

inline vec load(const bfloat16* p) {
#if defined(__AVX512F__)
    const __m256i row = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(row), 16));
#elif defined(__AVX2__)
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<vec>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(row), 16));
#else
    return reinterpret_cast<vec>(__builtin_convertvector(*reinterpret_cast<const halves*>(p), words) << 16);
#endif
}

inline vec load(const int8_t* p) {
#if defined(__AVX512F__)
    const __m128i row = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<vec>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(row)));
#elif defined(__AVX2__)
    const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<vec>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(row)));
#else
    vec wide;
    for (int i = 0; i < W; ++i) wide[i] = p[i];
    return wide;
#endif
}

// the same in the upper halves of words; the lower halves are left over
inline words nearest(vec v) {
#if defined(__AVX512F__)
    const __m512 x = reinterpret_cast<__m512>(v);
    const __m512i bits = reinterpret_cast<__m512i>(v);
    const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
    const __m512i half = _mm512_mask_blend_epi32(odd, _mm512_set1_epi32(0x7FFF), _mm512_set1_epi32(0x8000));
    return reinterpret_cast<words>(_mm512_mask_add_epi32(bits, _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), bits, half));
#else
    const words bits = reinterpret_cast<words>(v);
    return v == v ? bits + 0x7FFF + (bits >> 16 & 1) : bits;
#endif
}

template <int V>
inline void store(float* p, const vec* v) {
    for (int i = 0; i < V; ++i) store(p + i * W, v[i]);
}

template <int V>
inline void store(bfloat16* p, const vec* v) {
    int i = 0;
#if defined(__AVX512F__)
    // two vectors at once: the odd ones of their 16-bit halves
    const __m512i ascending = _mm512_set_epi16(
        31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i upper = _mm512_add_epi16(_mm512_add_epi16(ascending, ascending), _mm512_set1_epi16(1));
    for (; i + 1 < V; i += 2) {
        const words a = nearest(v[i]), b = nearest(v[i + 1]);
        _mm512_storeu_si512(p + i * W, _mm512_permutex2var_epi16(reinterpret_cast<__m512i>(a), upper,
                                                                 reinterpret_cast<__m512i>(b)));
    }
#endif
    for (; i < V; ++i)
        *reinterpret_cast<halves*>(p + i * W) = __builtin_convertvector(nearest(v[i]) >> 16, halves);
}

// bring a row near
template <typename T>
inline void fetch(const T* p, int64_t entries) {
    const char* byte = reinterpret_cast<const char*>(p);
    for (const char* end = byte + entries * sizeof(T); byte < end; byte += 64) __builtin_prefetch(byte);
}

// ---- dots of four rows with one vector --------------------------------------------------------------------------

template <typename T>
inline void dot4(const T* const* row, const float* v, int64_t D, float* out) {
    const int64_t n = D / W * W;
    vec s[4] = {};
    for (int64_t d = 0; d < n; d += W) {
        const vec v_d = load(v + d);
        for (int k = 0; k < 4; ++k) s[k] += v_d * load(row[k] + d);
    }
    for (int k = 0; k < 4; ++k) out[k] = sum(s[k]);
    for (int64_t d = n; d < D; ++d)
        for (int k = 0; k < 4; ++k) out[k] += v[d] * widen(row[k][d]);
}

// ---- sums over rows ---------------------------------------------------------------------------------------------

// A row and its factor.
template <typename T>
struct Term {
    T* row;
    float factor;
};

template <int V, typename T>
inline void add_strip(const Term<T>* terms, int64_t count, int64_t d, float* out) {
    vec total[V];
    for (int i = 0; i < V; ++i) total[i] = load(out + d + i * W);
    for (int64_t e = 0; e < count; ++e) {
        const vec k = splat(terms[e].factor);
        for (int i = 0; i < V; ++i) total[i] += k * load(terms[e].row + d + i * W);
    }
    store<V>(out + d, total);
}

// out += the sum of factor * row; strips of V vectors of all rows, so that the sum stays in registers
template <typename T>
inline void add_rows(const Term<T>* terms, int64_t count, int64_t D, float* out) {
    int64_t d = 0;
    for (; d + 4 * W <= D; d += 4 * W) add_strip<4>(terms, count, d, out);
    for (; d + W <= D; d += W) add_strip<1>(terms, count, d, out);
    for (; d < D; ++d)
        for (int64_t e = 0; e < count; ++e) out[d] += terms[e].factor * widen(terms[e].row[d]);
}

template <int V, typename T>
inline void read_and_write_strip(const Term<T>* terms, int64_t count, const Term<T>* next, int64_t coming, int64_t d,
                                 const float* v, float* read) {
    vec total[V], value[V];
    for (int i = 0; i < V; ++i) total[i] = load(read + d + i * W), value[i] = load(v + d + i * W);
    for (int64_t e = 0; e < count; ++e) {
        if (e < coming) fetch(next[e].row + d, V * W);
        const vec q = splat(terms[e].factor);
        T* rho = terms[e].row + d;
        vec after[V];
        for (int i = 0; i < V; ++i) {
            const vec before = load(rho + i * W);
            total[i] += q * before;
            after[i] = before + q * value[i];
        }
        store<V>(rho, after);
    }
    store<V>(read + d, total);
}

// read += the sum of q rho, then rho += q v. Meanwhile the rows of `next` come from memory: asked for all at once, they
// would wait for each other, and the arithmetic for them.
template <typename T>
inline void read_and_write(const Term<T>* terms, int64_t count, const Term<T>* next, int64_t coming, int64_t D,
                           const float* v, float* read) {
    for (int64_t e = count; e < coming; ++e) fetch(next[e].row, D);
    int64_t d = 0;
    for (; d + 4 * W <= D; d += 4 * W) read_and_write_strip<4>(terms, count, next, coming, d, v, read);
    for (; d + W <= D; d += W) read_and_write_strip<1>(terms, count, next, coming, d, v, read);
    for (; d < D; ++d)
        for (int64_t e = 0; e < count; ++e) {
            T* rho = terms[e].row + d;
            const float before = widen(*rho);
            read[d] += terms[e].factor * before;
            put(rho, before + terms[e].factor * v[d]);
        }
}

// A row that is read by one factor, kept by another, and written to by a third.
template <typename T>
struct FadingTerm {
    T* row;
    float read, keep, write;
};

// read += the sum of read_e row_e, then row_e = keep_e row_e + write_e v
template <typename T>
inline void read_and_fade(const FadingTerm<T>* terms, int64_t count, int64_t D, const float* v, float* read) {
    const int64_t n = D / W * W;
    for (int64_t e = 0; e < count; ++e) {
        const vec by_read = splat(terms[e].read), by_keep = splat(terms[e].keep), by_write = splat(terms[e].write);
        T* row = terms[e].row;
        for (int64_t d = 0; d < n; d += W) {
            const vec before = load(row + d);
            store(read + d, load(read + d) + by_read * before);
            const vec after = by_keep * before + by_write * load(v + d);
            store<1>(row + d, &after);
        }
        for (int64_t d = n; d < D; ++d) {
            const float before = widen(row[d]);
            read[d] += terms[e].read * before;
            put(row + d, terms[e].keep * before + terms[e].write * v[d]);
        }
    }
}

}  // namespace
}  // namespace BDH_ISA
}  // namespace bdh
