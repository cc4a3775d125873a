// Picks the widest instruction set that this processor has.
#include "kernels.hpp"
#include "scan.hpp"

namespace bdh {

#define BDH_DECLARE(isa)            \
    namespace isa {                 \
    extern const Kernels kernels;   \
    extern const Scans scans;       \
    }

BDH_DECLARE(portable)
#if defined(__x86_64__)
BDH_DECLARE(avx2)
BDH_DECLARE(avx512)
#endif

namespace {

const Kernels* const all[] = {
#if defined(__x86_64__)
    &avx512::kernels, &avx2::kernels,
#endif
    &portable::kernels};

bool runs_here(const Kernels& k) {
#if defined(__x86_64__)
    if (&k == &avx512::kernels) return __builtin_cpu_supports("x86-64-v4");
    if (&k == &avx2::kernels) return __builtin_cpu_supports("x86-64-v3");
#endif
    return &k == &portable::kernels;
}

const Kernels* first_that_runs() {
    for (const Kernels* k : all)
        if (runs_here(*k)) return k;
    return &portable::kernels;
}

const Kernels* chosen = first_that_runs();

}  // namespace

const Kernels& best() { return *chosen; }

const Scans& scans() {
#if defined(__x86_64__)
    if (chosen == &avx512::kernels) return avx512::scans;
    if (chosen == &avx2::kernels) return avx2::scans;
#endif
    return portable::scans;
}

bool choose(const std::string& name) {
    for (const Kernels* k : all)
        if (name == k->name && runs_here(*k)) return chosen = k, true;
    return false;
}

}  // namespace bdh
