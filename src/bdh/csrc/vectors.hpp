// Vectors of the compiler, as wide as the instruction set has them. Included once per instruction set, inside its
// namespace.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
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

}  // namespace
}  // namespace BDH_ISA
}  // namespace bdh
