// The inner loop runs over neurons, whose membranes stay in the first-level cache while the tokens pass. Compiled
// without contraction into fused multiply-adds: a last bit that differs from PyTorch's can move a spike, and with it
// everything that this neuron does afterwards.
#include "scan.hpp"

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "vectors.hpp"

namespace bdh {
namespace BDH_ISA {

namespace {

constexpr int64_t SIZE = 1024;  // neurons of a block: five lines of state take 20 KiB
constexpr float NEVER = -std::numeric_limits<float>::infinity();

typedef int32_t mask __attribute__((vector_size(4 * W)));

inline vec larger(vec a, vec b) { return a > b ? a : b; }

// W entries, or at the end of a row the first `lanes`
inline vec load(const float* p, int64_t lanes) {
    if (lanes == W) return load(p);
    vec v{};
    std::memcpy(&v, p, lanes * sizeof(float));
    return v;
}

inline void store(float* p, vec v, int64_t lanes) {
    if (lanes == W) return store(p, v);
    std::memcpy(p, &v, lanes * sizeof(float));
}

// What a task holds of its neurons; behind the last one neurons that never fire.
struct Block {
    alignas(64) float threshold[SIZE], drop[SIZE], width[SIZE], membrane[SIZE], waiting[SIZE];
    float decay, gain;
    int64_t count, at;  // how many neurons, offset of (row, token 0, first neuron)

    Block(const Neurons& n, int64_t row, int64_t first) : count(std::min(SIZE, n.neurons - first)) {
        const int64_t head = row % n.heads;
        decay = n.decay[head], gain = n.gain[head];
        at = row * n.tokens * n.neurons + first;
        for (int64_t k = 0; k < count; ++k) {
            const int64_t i = n.shared ? head : head * n.neurons + first + k;
            threshold[k] = n.threshold[i], drop[k] = n.threshold[i] - n.reset_to, width[k] = 1 / n.spread[i];
        }
        for (int64_t k = count; k < (count + W - 1) / W * W; ++k)
            threshold[k] = -NEVER, drop[k] = 0, width[k] = 1, membrane[k] = waiting[k] = 0;
    }

    // work(k, lanes) for all neurons
    template <typename Work>
    void each(Work work) const {
        int64_t k = 0;
        for (; k + W <= count; k += W) work(k, static_cast<int64_t>(W));
        if (k < count) work(k, count - k);
    }
};

template <typename Work>
void each_block(const Neurons& n, int threads, Work work) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t row = 0; row < n.rows; ++row)
        for (int64_t first = 0; first < n.neurons; first += SIZE) {
            Block block(n, row, first);
            work(block, row * n.neurons + first);
        }
}

template <Reset RESET, bool REFRACTORY>
void tokens(const Neurons& n, Block& b, const float* current, float* charge, float* spikes, float* activity) {
    const vec alpha = splat(b.decay), gain = splat(b.gain), rest = splat(n.rest), reset_to = splat(n.reset_to);
    const vec silent = splat(static_cast<float>(n.refractory)), one = splat(1), zero{}, never = splat(NEVER);
    for (int64_t t = 0; t < n.tokens; ++t) {
        const int64_t at = b.at + t * n.neurons;
        b.each([&](int64_t k, int64_t lanes) {
            const vec input = load(current + at + k, lanes), threshold = load(b.threshold + k);
            vec h = alpha * load(b.membrane + k) + gain * (rest + input);
            const mask nan = h != h;
            mask fires = h >= threshold, closed{};
            if (REFRACTORY) {
                const vec left = load(b.waiting + k);
                closed = (left > zero) & ~nan;
                fires &= ~closed;
                store(b.waiting + k, fires ? silent : larger(left - one, zero));
            }
            vec after = h;
            if (RESET == Reset::soft) after = h - (fires ? load(b.drop + k) : zero);
            if (RESET == Reset::hard) after = fires ? reset_to : h;
            if (REFRACTORY) after = closed ? reset_to : after, h = closed ? never : h;
            store(b.membrane + k, after);
            // what is not a number stays so: it must reach the loss and stop the training
            const vec s = nan ? h : fires ? one : zero;
            store(spikes + at + k, s, lanes);
            if (charge) store(charge + at + k, h, lanes);
            if (activity) store(activity + at + k, s * (input > zero ? input : zero), lanes);
        });
    }
}

template <Surrogate KIND>
inline vec slope(vec x, float beta) {
    const vec half = splat(beta / 2), one = splat(1), size = larger(x, -x);
    if (KIND == Surrogate::arctan) {
        const vec turn = splat(3.14159265358979f) * half * x;
        return half / (one + turn * turn);
    }
    if (KIND == Surrogate::triangular) return half * larger(one - half * size, vec{});
    const vec far = one + splat(beta) * size;
    return half / (far * far);
}

template <Reset RESET, bool DETACH, Surrogate KIND>
void tokens_back(const Neurons& n, Block& b, const float* current, const float* charge, const float* d_spikes,
                 const float* d_activity, float* d_current) {
    const vec alpha = splat(b.decay), gain = splat(b.gain), reset_to = splat(n.reset_to), one = splat(1), zero{};
    const vec never = splat(NEVER);
    for (int64_t t = n.tokens - 1; t >= 0; --t) {
        const int64_t at = b.at + t * n.neurons;
        b.each([&](int64_t k, int64_t lanes) {
            const vec h = load(charge + at + k, lanes), threshold = load(b.threshold + k), width = load(b.width + k);
            const vec d_v = load(b.membrane + k);
            const mask fires = h >= threshold;
            const vec sharp = slope<KIND>((h - threshold) * width, n.beta) * width;
            vec d_fire{}, direct{}, kept = one;
            if (d_spikes) d_fire = load(d_spikes + at + k, lanes);
            if (d_activity) {
                const vec input = load(current + at + k, lanes), d_y = load(d_activity + at + k, lanes);
                d_fire += d_y * (input > zero ? input : zero);
                direct = fires & (input > zero) ? d_y : zero;
            }
            if (RESET == Reset::soft && !DETACH) d_fire -= load(b.drop + k) * d_v;
            if (RESET == Reset::hard && !DETACH) d_fire += (reset_to - h) * d_v;
            if (RESET == Reset::hard) kept = fires ? zero : one;
            // a refractory neuron hears nothing and remembers nothing
            const vec d_h = h == never ? zero : d_fire * sharp + kept * d_v;
            store(d_current + at + k, gain * d_h + direct, lanes);
            store(b.membrane + k, alpha * d_h);
        });
    }
}

// one choice after the other becomes a template argument
template <Reset RESET>
void tokens_of(const Neurons& n, Block& b, const float* current, float* charge, float* spikes, float* activity) {
    if (n.refractory) return tokens<RESET, true>(n, b, current, charge, spikes, activity);
    tokens<RESET, false>(n, b, current, charge, spikes, activity);
}

template <Reset RESET, bool DETACH>
void tokens_back_of(const Neurons& n, Block& b, const float* current, const float* charge, const float* d_spikes,
                    const float* d_activity, float* d_current) {
    const auto run = n.surrogate == Surrogate::arctan       ? tokens_back<RESET, DETACH, Surrogate::arctan>
                     : n.surrogate == Surrogate::triangular ? tokens_back<RESET, DETACH, Surrogate::triangular>
                                                            : tokens_back<RESET, DETACH, Surrogate::fast_sigmoid>;
    run(n, b, current, charge, d_spikes, d_activity, d_current);
}

void forward(const Neurons& n, const float* current, float* membrane, int8_t* waiting, float* charge, float* spikes,
             float* activity, int threads) {
    const auto run = n.reset == Reset::none   ? tokens_of<Reset::none>
                     : n.reset == Reset::soft ? tokens_of<Reset::soft>
                                              : tokens_of<Reset::hard>;
    each_block(n, threads, [&](Block& b, int64_t state) {
        std::copy_n(membrane + state, b.count, b.membrane);
        std::copy_n(waiting + state, b.count, b.waiting);
        run(n, b, current, charge, spikes, activity);
        std::copy_n(b.membrane, b.count, membrane + state);
        if (n.refractory) std::copy_n(b.waiting, b.count, waiting + state);
    });
}

void backward(const Neurons& n, const float* current, const float* charge, const float* d_spikes,
              const float* d_activity, float* d_membrane, float* d_current, int threads) {
    const bool plain = n.reset == Reset::none || (n.reset == Reset::soft && n.detach);
    const auto run = plain                    ? tokens_back_of<Reset::none, true>
                     : n.reset == Reset::soft ? tokens_back_of<Reset::soft, false>
                     : n.detach               ? tokens_back_of<Reset::hard, true>
                                              : tokens_back_of<Reset::hard, false>;
    each_block(n, threads, [&](Block& b, int64_t state) {
        std::copy_n(d_membrane + state, b.count, b.membrane);
        run(n, b, current, charge, d_spikes, d_activity, d_current);
        std::copy_n(b.membrane, b.count, d_membrane + state);
    });
}

}  // namespace

extern const Scans scans = {forward, backward};

}  // namespace BDH_ISA
}  // namespace bdh
