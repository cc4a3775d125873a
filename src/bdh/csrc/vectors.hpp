// Vectors of floats and aligned memory. Included once per instruction set, inside its namespace.
#pragma once

#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define BDH_LANES 16
#elif defined(__AVX2__)
#define BDH_LANES 8
#else
#define BDH_LANES 4
#endif

namespace bdh {
namespace BDH_ISA {
namespace {

constexpr int W = BDH_LANES;
typedef float vec __attribute__((vector_size(4 * W)));
typedef float vec_unaligned __attribute__((vector_size(4 * W), aligned(4)));

inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }
inline vec splat(float s) { return vec{} + s; }

inline float sum(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(reinterpret_cast<__m512>(v));
#else
    float total = 0;
    for (int i = 0; i < W; ++i) total += v[i];
    return total;
#endif
}

// Floats on a cache line: vectors must not straddle lines. `shift` lines set buffers that are used side by side
// apart, since loads wait for earlier stores whose address has the same last 12 bits.
class Buffer {
  public:
    explicit Buffer(int64_t size, int64_t shift = 0)
        : memory_(static_cast<float*>(std::aligned_alloc(LINE, (size * 4 + (shift + 1) * LINE) / LINE * LINE))),
          data_(memory_ + shift * LINE / 4) {
        if (!memory_) throw std::bad_alloc();
    }
    ~Buffer() { std::free(memory_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* data() const { return data_; }
    // the `part`-th of equal parts, cleared: each thread clears its own, while it is the only one to write there
    float* cleared(int64_t part, int64_t size) const {
        std::memset(data_ + part * size, 0, size * sizeof(float));
        return data_ + part * size;
    }

  private:
    static constexpr int64_t LINE = 64;
    float* memory_;
    float* data_;
};

// this thread's share of K neurons, in whole pairs
inline void share(int64_t K, int64_t& first, int64_t& last) {
    const int64_t pairs = K / 2, thread = omp_get_thread_num(), threads = omp_get_num_threads();
    first = 2 * (pairs * thread / threads), last = 2 * (pairs * (thread + 1) / threads);
}

}  // namespace
}  // namespace BDH_ISA
}  // namespace bdh
