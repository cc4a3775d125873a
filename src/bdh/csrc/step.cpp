#include "step.hpp"

#include <vector>

#include "rows.hpp"

namespace bdh {
namespace BDH_ISA {

namespace {

constexpr int64_t BLOCK = 32;  // neurons of a head that a thread takes at once

// LayerNorm without parameters, in place
void layer_norm(float* x, int64_t D) {
    double mean = 0, square = 0;
    for (int64_t d = 0; d < D; ++d) mean += x[d];
    mean /= D;
    for (int64_t d = 0; d < D; ++d) square += (x[d] - mean) * (x[d] - mean);
    const double scale = 1 / std::sqrt(square / D + 1e-5);
    for (int64_t d = 0; d < D; ++d) x[d] = static_cast<float>((x[d] - mean) * scale);
}

template <typename T>
struct Rows {
    const T* data;
    const float* scale;
    int64_t width;

    Rows(const Map& map, int64_t D) : data(static_cast<const T*>(map.rows)), scale(map.scale), width(D) {}
    const T* operator[](int64_t n) const { return data + n * width; }
    float unit(int64_t n) const { return scale ? scale[n] : 1; }
};

// Rows of one block that are added to one sum.
template <typename T>
struct Batch {
    Term<T> terms[BLOCK];
    int64_t count = 0, sequence = 0, head = 0;
    void add(T* row, float factor) { terms[count++] = {row, factor}; }
};

// What the threads share. An item is one block of neurons of one sequence.
template <typename Weight>
struct Shared {
    const Step& s;
    const int64_t B = s.sequences, H = s.heads, K = s.neurons, D = s.width;
    const int64_t blocks = (K + BLOCK - 1) / BLOCK;  // of a head
    const Rows<Weight> encoder{s.encoder, D}, encoder_v{s.encoder_v, D}, decoder{s.decoder, D};
    Buffer reads, writes;           // (threads, B, H, D) and (threads, B, D)

    Shared(const Step& step, int64_t threads)
        : s(step), reads(threads * B * H * D), writes(threads * B * D) {}
};

// One thread's items, and what fires in them.
template <typename Weight, typename Stored>
class Worker {
  public:
    Worker(Shared<Weight>& shared, int64_t thread, int64_t team)
        : c(shared),
          first_(c.H * c.blocks * thread / team),
          items_((c.H * c.blocks * (thread + 1) / team - first_) * c.B),
          read_(c.reads.data() + thread * c.B * c.H * c.D),
          write_(c.writes.data() + thread * c.B * c.D),
          ends_(items_) {
        firing_.reserve(items_ * BLOCK);
    }

    // fire, turn, read and write the state at firing pairs; the state is written one item later, when it is near
    void fire(int64_t level) {
        level_ = level;
        Stored* rho = static_cast<Stored*>(c.s.rho[level]);
        std::memset(read_, 0, c.B * c.H * c.D * sizeof(float));
        firing_.clear();
        Batch<Stored> batches[2];
        for (int64_t item = 0; item < items_; ++item) {
            Batch<Stored>& turned = batches[item % 2];
            fire_block(item, rho, turned);
            ends_[item] = firing_.size();
            update(batches[(item + 1) % 2], turned);
        }
        update(batches[(items_ + 1) % 2], {});
    }

    // the gate where x fires, and the decoder where the gate is open, one item later as well
    void gate() {
        std::memset(write_, 0, c.B * c.D * sizeof(float));
        Batch<const Weight> batches[2];
        for (int64_t item = 0; item < items_; ++item) {
            gate_block(item, batches[item % 2]);
            decode(batches[(item + 1) % 2]);
        }
        decode(batches[(items_ + 1) % 2]);
    }

  private:
    struct Fires {
        int64_t neuron;
        float x;
    };
    static constexpr int64_t AHEAD = 8;  // firing neurons

    void fire_block(int64_t item, Stored* rho, Batch<Stored>& turned) {
        const int64_t block = first_ + item / c.B, b = item % c.B, h = block / c.blocks;
        const int64_t start = block % c.blocks * BLOCK, size = std::min(BLOCK, c.K - start), n = h * c.K + start;
        float x[BLOCK];
        for (int64_t k = 0; k < size; k += 4) {
            const Weight* row[4];
            for (int64_t i = 0; i < 4; ++i) row[i] = c.encoder[n + std::min(k + i, size - 1)];
            dot4(row, c.s.v + b * c.D, c.D, x + k);
        }
        turned.count = 0, turned.sequence = b, turned.head = h;
        for (int64_t k = 0; k < size; ++k) {
            const float drive = c.encoder.unit(n + k) * x[k];
            x[k] = c.s.spiking.membrane ? spike(b, h, start + k, drive) : drive <= 0 ? 0 : drive;
            if (x[k] != 0) firing_.push_back({n + k, x[k]});
        }
        for (int64_t k = 0; k < size; k += 2) {
            if (x[k] == 0 && x[k + 1] == 0) continue;
            const float cosine = c.s.cosine[(start + k) / 2], sine = c.s.sine[(start + k) / 2];
            Stored* row = rho + (b * c.H * c.K + n + k) * c.D;
            const float q[] = {x[k] * cosine - x[k + 1] * sine, x[k + 1] * cosine + x[k] * sine};
            turned.add(row, q[0]);
            turned.add(row + c.D, q[1]);
            if (c.s.fading.rows) fade(b, h, start + k, q);
        }
    }

    // charge, fire and reset one neuron
    float spike(int64_t b, int64_t h, int64_t k, float drive) {
        const Spiking& n = c.s.spiking;
        const int64_t at = (b * c.H + h) * c.K + k;
        float& membrane = n.membrane[level_][at];
        int8_t& left = n.waiting[level_][at];
        const float threshold = n.threshold[level_ * c.H + h];
        const float charge = n.decay[h] * membrane + n.gain[h] * (n.rest + drive);
        if (charge != charge) return membrane = charge;  // what is not a number must be seen
        const bool closed = left > 0, fires = !closed && charge >= threshold;
        left = fires ? n.refractory : closed ? left - 1 : 0;
        membrane = charge;
        if (n.reset == Reset::soft && fires) membrane -= threshold - n.reset_to;
        if (closed || (n.reset == Reset::hard && fires)) membrane = n.reset_to;
        n.trace[level_][at] = n.trace_decay * n.trace[level_][at] + (fires ? 1.0f : 0.0f);
        if (!fires) return 0;
        return !n.graded ? 1 : drive <= 0 ? 0 : drive;
    }

    // read and write the fading memory of a pair of neurons
    void fade(int64_t b, int64_t h, int64_t k, const float* q) {
        const Fading& f = c.s.fading;
        const int64_t n = (b * c.H + h) * c.K + k;
        FadingTerm<Stored> terms[2];
        for (int64_t i = 0; i < 2; ++i) {
            int32_t& at = f.at[level_][n + i];
            const float keep = std::exp(-f.rate[h] * static_cast<float>(f.position + 1 - at));
            terms[i] = {static_cast<Stored*>(f.rows[level_]) + (n + i) * c.D, f.strength[h] * keep * q[i], keep, q[i]};
            at = static_cast<int32_t>(f.position + 1);
        }
        read_and_fade(terms, 2, c.D, c.s.v + b * c.D, read_ + (b * c.H + h) * c.D);
    }

    void update(const Batch<Stored>& now, const Batch<Stored>& next) {
        float* read = read_ + (now.sequence * c.H + now.head) * c.D;
        read_and_write(now.terms, now.count, next.terms, next.count, c.D, c.s.v + now.sequence * c.D, read);
    }

    void gate_block(int64_t item, Batch<const Weight>& open) {
        const int64_t b = item % c.B, h = (first_ + item / c.B) / c.blocks;
        const int64_t all = firing_.size(), end = ends_[item];
        open.count = 0, open.sequence = b;
        for (int64_t e = item ? ends_[item - 1] : 0; e < end; e += 4) {
            const Weight* row[4];
            float gate[4];
            for (int64_t i = 0; i < 4; ++i) {
                row[i] = c.encoder_v[firing_[std::min(e + i, end - 1)].neuron];
                fetch(c.encoder_v[firing_[std::min(e + i + AHEAD, all - 1)].neuron], c.D);
            }
            dot4(row, c.reads.data() + (b * c.H + h) * c.D, c.D, gate);
            for (int64_t i = 0; i < std::min<int64_t>(4, end - e); ++i) {
                const auto [n, x] = firing_[e + i];
                const float y = c.encoder_v.unit(n) * gate[i];
                if (y <= 0) continue;
                fetch(c.decoder[n], c.D);
                open.add(c.decoder[n], c.decoder.unit(n) * x * y);
            }
        }
    }

    void decode(const Batch<const Weight>& open) {
        add_rows(open.terms, open.count, c.D, write_ + open.sequence * c.D);
    }

    Shared<Weight>& c;
    const int64_t first_, items_;
    int64_t level_ = 0;
    float *const read_, *const write_;
    std::vector<Fires> firing_;  // item by item
    std::vector<int64_t> ends_;  // of the items in it
};

// the first of the threads' rows becomes the sum of all, in a fixed order: results do not depend on timing
float* total(const Buffer& rows, int64_t row, int64_t stride, int64_t team, int64_t D) {
    float* first = rows.data() + row * D;
    for (int64_t t = 1; t < team; ++t) {
        const Term<const float> other = {first + t * stride * D, 1};
        add_rows(&other, 1, D, first);
    }
    return first;
}

template <typename Weight, typename Stored>
void step_of(const Step& s, int threads) {
    Shared<Weight> c(s, threads);
#pragma omp parallel num_threads(threads)
    {
        const int64_t team = omp_get_num_threads();
        Worker<Weight, Stored> worker(c, omp_get_thread_num(), team);
        for (int64_t level = 0; level < s.levels; ++level) {
            worker.fire(level);
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t row = 0; row < c.B * c.H; ++row) {
                layer_norm(total(c.reads, row, c.B * c.H, team, c.D), c.D);
            }
            worker.gate();
#pragma omp barrier
#pragma omp for schedule(static)
            for (int64_t b = 0; b < c.B; ++b) {
                float *write = total(c.writes, b, c.B, team, c.D), *v = s.v + b * c.D;
                layer_norm(write, c.D);
                for (int64_t d = 0; d < c.D; ++d) v[d] += write[d];
                layer_norm(v, c.D);
            }
        }
    }
}

template <typename Weight>
void by_state(const Step& s, int threads) {
    s.stored == Type::float32 ? step_of<Weight, float>(s, threads) : step_of<Weight, bfloat16>(s, threads);
}

}  // namespace

void step(const Step& s, int threads) {
    switch (s.weights) {
        case Type::float32: return by_state<float>(s, threads);
        case Type::bfloat16: return by_state<bfloat16>(s, threads);
        case Type::int8: return by_state<int8_t>(s, threads);
    }
}

}  // namespace BDH_ISA
}  // namespace bdh
