// Python binding of the kernels: checks every shape, then hands pointers over.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Matrix = Array<float, 2>;
using ConstMatrix = Array<const float, 2>;
using Vector = Array<float, 1>;
using ConstVector = Array<const float, 1>;
using Starts = Array<const int64_t, 1>;
using Tokens = Array<const uint16_t, 1>;

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("shapes do not fit: expected ") + what);
}

bdh::Firing firing(const Starts& start, const Tokens& token, const ConstVector& x, int64_t M, int64_t D) {
    require(start.shape(0) >= 1 && token.shape(0) == x.shape(0), "start (K+1), token and x (nnz)");
    require(start.data()[start.shape(0) - 1] == static_cast<int64_t>(x.shape(0)), "start to end at nnz");
    return {static_cast<int64_t>(start.shape(0)) - 1, M, D, start.data(), token.data(), x.data()};
}

int64_t rows(const ConstMatrix& a) { return static_cast<int64_t>(a.shape(0)); }
int64_t columns(const ConstMatrix& a) { return static_cast<int64_t>(a.shape(1)); }

void check_phases(const ConstMatrix& cosine, const ConstMatrix& sine, int64_t K, int64_t M) {
    require(K % 2 == 0 && rows(cosine) == K / 2 && rows(sine) == K / 2 && columns(cosine) == columns(sine) &&
                columns(cosine) > 0 && M % columns(cosine) == 0,
            "cosine and sine (K/2, T), M a multiple of T");
}

void transpose(Array<const float, 3> in, Array<float, 3> out, int threads) {
    require(out.shape(0) == in.shape(0) && out.shape(1) == in.shape(2) && out.shape(2) == in.shape(1),
            "in (H, R, C) and out (H, C, R)");
    const int64_t R = in.shape(1), C = in.shape(2);
    nb::gil_scoped_release release;
    for (size_t h = 0; h < in.shape(0); ++h)
        bdh::best().transpose(in.data() + h * R * C, R, C, out.data() + h * R * C, threads);
}

void keep_winners(Matrix tile, int64_t k, int threads) {
    require(k >= 1, "k >= 1");
    nb::gil_scoped_release release;
    bdh::best().keep_winners(tile.data(), tile.shape(0), tile.shape(1), k, threads);
}

int64_t count(Matrix tile, Array<int64_t, 1> start, int threads) {
    const int64_t K = tile.shape(0), M = tile.shape(1);
    require(static_cast<int64_t>(start.shape(0)) == K + 1, "start (K+1)");
    require(M <= 4096, "at most 4096 tokens in a tile");
    nb::gil_scoped_release release;
    bdh::best().count(tile.data(), K, M, start.data(), threads);
    for (int64_t n = 0; n < K; ++n) start.data()[n + 1] += start.data()[n];
    return start.data()[K];
}

void collect_and_rotate(Matrix tile, Starts start, Array<uint16_t, 1> token, Vector x, ConstMatrix cosine,
                        ConstMatrix sine, int threads) {
    const int64_t K = tile.shape(0), M = tile.shape(1);
    check_phases(cosine, sine, K, M);
    require(static_cast<int64_t>(start.shape(0)) == K + 1, "start (K+1)");
    firing(start, Tokens(token), ConstVector(x), M, 0);
    nb::gil_scoped_release release;
    bdh::best().collect_and_rotate(tile.data(), K, M, start.data(), token.data(), x.data(), cosine.data(), sine.data(),
                                   columns(cosine), threads);
}

void expand_and_rotate(Starts start, Tokens token, ConstVector x, ConstMatrix cosine, ConstMatrix sine, Matrix tile,
                       int threads) {
    const bdh::Firing f = firing(start, token, x, tile.shape(1), 0);
    require(static_cast<int64_t>(tile.shape(0)) == f.neurons, "tile (K, M)");
    check_phases(cosine, sine, f.neurons, f.tokens);
    nb::gil_scoped_release release;
    bdh::best().expand_and_rotate(f, cosine.data(), sine.data(), columns(cosine), tile.data(), threads);
}

void gate(Starts start, Tokens token, ConstVector x, ConstMatrix encoder_v, ConstMatrix a, Vector out, int threads) {
    const bdh::Firing f = firing(start, token, x, rows(a), columns(a));
    require(rows(encoder_v) == f.neurons && columns(encoder_v) == f.width && out.shape(0) == x.shape(0),
            "encoder_v (K, D), a (M, D), gate (nnz)");
    nb::gil_scoped_release release;
    bdh::best().gate(f, encoder_v.data(), a.data(), out.data(), threads);
}

void decode(Starts start, Tokens token, ConstVector x, ConstVector gate, ConstMatrix decoder, uint64_t seed, float rate,
            Matrix out, int threads) {
    const bdh::Firing f = firing(start, token, x, out.shape(0), out.shape(1));
    require(rows(decoder) == f.neurons && columns(decoder) == f.width && gate.shape(0) == x.shape(0),
            "decoder (K, D), out (M, D), gate (nnz)");
    nb::gil_scoped_release release;
    bdh::best().decode(f, gate.data(), decoder.data(), {seed, rate}, out.data(), threads);
}

void gate_backward(Starts start, Tokens token, ConstVector x, ConstVector gate, ConstMatrix encoder_v,
                   ConstMatrix decoder, ConstMatrix a, ConstMatrix d_out, uint64_t seed, float rate, Matrix d_encoder_v,
                   Matrix d_decoder, Matrix d_a, Vector d_x, int threads) {
    const bdh::Firing f = firing(start, token, x, rows(a), columns(a));
    for (const ConstMatrix& weight : {encoder_v, decoder, ConstMatrix(d_encoder_v), ConstMatrix(d_decoder)})
        require(rows(weight) == f.neurons && columns(weight) == f.width, "weights (K, D)");
    for (const ConstMatrix& row : {d_out, ConstMatrix(d_a)})
        require(rows(row) == f.tokens && columns(row) == f.width, "rows (M, D)");
    require(gate.shape(0) == x.shape(0) && d_x.shape(0) == x.shape(0), "gate and d_x (nnz)");
    nb::gil_scoped_release release;
    bdh::best().gate_backward(f, gate.data(), encoder_v.data(), decoder.data(), a.data(), d_out.data(), {seed, rate},
                              d_encoder_v.data(), d_decoder.data(), d_a.data(), d_x.data(), threads);
}

void fire_backward(Starts start, Tokens token, ConstVector x, ConstVector d_x, Matrix d_tile, ConstMatrix cosine,
                   ConstMatrix sine, ConstMatrix encoder, ConstMatrix v, Matrix d_encoder, Matrix d_v, int threads) {
    const bdh::Firing f = firing(start, token, x, rows(v), columns(v));
    require(static_cast<int64_t>(d_tile.shape(0)) == f.neurons && static_cast<int64_t>(d_tile.shape(1)) == f.tokens,
            "d_tile (K, M)");
    check_phases(cosine, sine, f.neurons, f.tokens);
    for (const ConstMatrix& weight : {encoder, ConstMatrix(d_encoder)})
        require(rows(weight) == f.neurons && columns(weight) == f.width, "weights (K, D)");
    require(rows(ConstMatrix(d_v)) == f.tokens && columns(ConstMatrix(d_v)) == f.width && d_x.shape(0) == x.shape(0),
            "d_v (M, D), d_x (nnz)");
    nb::gil_scoped_release release;
    bdh::best().fire_backward(f, d_x.data(), d_tile.data(), cosine.data(), sine.data(), columns(cosine), encoder.data(),
                              v.data(), d_encoder.data(), d_v.data(), threads);
}

void drive_gradient(Starts start, Tokens token, ConstVector x, ConstVector d_x, Matrix d_tile, ConstMatrix cosine,
                    ConstMatrix sine, int threads) {
    const bdh::Firing f = firing(start, token, x, d_tile.shape(1), 0);
    require(static_cast<int64_t>(d_tile.shape(0)) == f.neurons && d_x.shape(0) == x.shape(0), "d_tile (K, M), d_x (nnz)");
    check_phases(cosine, sine, f.neurons, f.tokens);
    nb::gil_scoped_release release;
    bdh::best().drive_gradient(f, d_x.data(), d_tile.data(), cosine.data(), sine.data(), columns(cosine), threads);
}

using Rows = nb::ndarray<nb::ro, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Rho = nb::ndarray<nb::ndim<4>, nb::c_contig, nb::device::cpu>;

bdh::Type type_of(nb::dlpack::dtype type) {
    using Code = nb::dlpack::dtype_code;
    if (type == nb::dtype<float>()) return bdh::Type::float32;
    if (type == nb::dtype<int8_t>()) return bdh::Type::int8;
    if (type == nb::dlpack::dtype{static_cast<uint8_t>(Code::Bfloat), 16, 1}) return bdh::Type::bfloat16;
    throw std::invalid_argument("expected float32, bfloat16 or int8");
}

// L states (B, H, K), one value per neuron
template <typename T>
using PerNeuron = std::vector<Array<T, 3>>;

template <typename T>
std::vector<T*> per_neuron(const PerNeuron<T>& states, int64_t L, int64_t B, int64_t H, int64_t K) {
    require(static_cast<int64_t>(states.size()) == L, "a state per level");
    std::vector<T*> found;
    for (const auto& state : states) {
        require(static_cast<int64_t>(state.shape(0)) == B && static_cast<int64_t>(state.shape(1)) == H &&
                    static_cast<int64_t>(state.shape(2)) == K,
                "states of neurons (B, H, K)");
        found.push_back(state.data());
    }
    return found;
}

// Spiking neurons of a step, as Python holds them.
struct Spikes {
    PerNeuron<float> membrane;
    PerNeuron<int8_t> waiting;
    PerNeuron<float> trace;
    ConstVector decay, gain;
    ConstMatrix threshold;
    float rest, reset_to, trace_decay;
    std::string reset;
    int32_t refractory;
    bool graded;
};

// The fading memory of a step, as Python holds it.
struct Fades {
    std::vector<Rho> rows;
    PerNeuron<int32_t> at;
    ConstVector strength, rate;
    int64_t position;
};

void step(Rows encoder, Rows encoder_v, Rows decoder, Array<const float, 3> scales, ConstVector cosine, ConstVector sine,
          const std::vector<Rho>& rho, Matrix v, int threads, const Spikes* spikes, const Fades* fades) {
    const int64_t B = v.shape(0), H = encoder.shape(0), K = encoder.shape(1), D = v.shape(1), L = rho.size();
    bdh::Step s = {B, L, H, K, D, type_of(encoder.dtype()), {}, {}, {},
                   bdh::Type::float32, nullptr, cosine.data(), sine.data(), v.data(), {}, {}};
    const Rows* rows[] = {&encoder, &encoder_v, &decoder};
    bdh::Map* maps[] = {&s.encoder, &s.encoder_v, &s.decoder};
    const bool scaled = s.weights == bdh::Type::int8;
    require(!scaled || (scales.shape(0) == 3 && scales.shape(1) == encoder.shape(0) && scales.shape(2) == encoder.shape(1)),
            "scales (3, H, K)");
    for (int i = 0; i < 3; ++i) {
        for (size_t d = 0; d < 3; ++d)
            require(rows[i]->shape(d) == encoder.shape(d) && rows[i]->dtype() == encoder.dtype(), "maps (H, K, D) alike");
        *maps[i] = {rows[i]->data(), scaled ? scales.data() + i * H * K : nullptr};
    }
    std::vector<void*> states;
    for (const Rho& state : rho) {
        for (size_t d = 0; d < 3; ++d) require(state.shape(d + 1) == encoder.shape(d), "rho (B, H, K, D)");
        require(state.shape(0) == v.shape(0) && state.dtype() == rho[0].dtype(), "rho (B, H, K, D) alike");
        s.stored = type_of(state.dtype());
        states.push_back(state.data());
    }
    s.rho = states.data();
    std::vector<float*> membrane, trace;
    std::vector<int8_t*> waiting;
    if (spikes) {
        membrane = per_neuron(spikes->membrane, L, B, H, K), trace = per_neuron(spikes->trace, L, B, H, K);
        waiting = per_neuron(spikes->waiting, L, B, H, K);
        require(spikes->threshold.shape(0) == rho.size() && columns(spikes->threshold) == H &&
                    spikes->decay.shape(0) == encoder.shape(0) && spikes->gain.shape(0) == encoder.shape(0),
                "threshold (L, H), decay and gain (H)");
        s.spiking = {membrane.data(), waiting.data(), trace.data(), spikes->decay.data(), spikes->gain.data(),
                     spikes->threshold.data(), spikes->rest, spikes->reset_to, spikes->trace_decay,
                     bdh::reset_named(spikes->reset), spikes->refractory, spikes->graded};
    }
    std::vector<void*> fading;
    std::vector<int32_t*> at;
    if (fades) {
        at = per_neuron(fades->at, L, B, H, K);
        require(fades->rows.size() == rho.size() && fades->strength.shape(0) == encoder.shape(0) &&
                    fades->rate.shape(0) == encoder.shape(0),
                "a fading memory per level, strength and rate (H)");
        for (const Rho& state : fades->rows) {
            for (size_t d = 0; d < 4; ++d) require(state.shape(d) == rho[0].shape(d), "fading memory (B, H, K, D)");
            require(state.dtype() == rho[0].dtype(), "fading memory stored as rho");
            fading.push_back(state.data());
        }
        s.fading = {fading.data(), at.data(), fades->strength.data(), fades->rate.data(), fades->position};
    }
    require(K % 2 == 0 && static_cast<int64_t>(cosine.shape(0)) == K / 2 && sine.shape(0) == cosine.shape(0) &&
                encoder.shape(2) == v.shape(1) && s.stored != bdh::Type::int8,
            "cosine and sine (K/2), v (B, D), states of float32 or bfloat16");
    nb::gil_scoped_release release;
    bdh::best().step(s, threads);
}

}  // namespace

void bind_scans(nb::module_& m);  // module_scan.cpp

NB_MODULE(_native, m) {
    m.doc() = "Sparse CPU kernels; see kernels.hpp for what each computes.";
    m.def("instruction_set", [] { return bdh::best().name; });
    m.def("choose", &bdh::choose, "name"_a, "Use the kernels of this instruction set; false if they do not run here.");
    m.def("transpose", &transpose, "in"_a, "out"_a, "threads"_a);
    m.def("keep_winners", &keep_winners, "tile"_a, "k"_a, "threads"_a);
    m.def("count", &count, "tile"_a, "start"_a, "threads"_a);
    m.def("collect_and_rotate", &collect_and_rotate, "tile"_a, "start"_a, "token"_a, "x"_a, "cosine"_a, "sine"_a,
          "threads"_a);
    m.def("expand_and_rotate", &expand_and_rotate, "start"_a, "token"_a, "x"_a, "cosine"_a, "sine"_a, "tile"_a,
          "threads"_a);
    m.def("gate", &gate, "start"_a, "token"_a, "x"_a, "encoder_v"_a, "a"_a, "gate"_a, "threads"_a);
    m.def("decode", &decode, "start"_a, "token"_a, "x"_a, "gate"_a, "decoder"_a, "seed"_a, "rate"_a, "out"_a,
          "threads"_a);
    m.def("gate_backward", &gate_backward, "start"_a, "token"_a, "x"_a, "gate"_a, "encoder_v"_a, "decoder"_a, "a"_a,
          "d_out"_a, "seed"_a, "rate"_a, "d_encoder_v"_a, "d_decoder"_a, "d_a"_a, "d_x"_a, "threads"_a);
    m.def("fire_backward", &fire_backward, "start"_a, "token"_a, "x"_a, "d_x"_a, "d_tile"_a, "cosine"_a, "sine"_a,
          "encoder"_a, "v"_a, "d_encoder"_a, "d_v"_a, "threads"_a);
    m.def("drive_gradient", &drive_gradient, "start"_a, "token"_a, "x"_a, "d_x"_a, "d_tile"_a, "cosine"_a, "sine"_a,
          "threads"_a);
    bind_scans(m);
    nb::class_<Spikes>(m, "Spikes")
        .def("__init__",
             [](Spikes* self, PerNeuron<float> membrane, PerNeuron<int8_t> waiting, PerNeuron<float> trace,
                ConstVector decay, ConstVector gain, ConstMatrix threshold, float rest, float reset_to,
                float trace_decay, const std::string& reset, int32_t refractory, bool graded) {
                 new (self) Spikes{membrane, waiting, trace, decay, gain, threshold, rest, reset_to, trace_decay, reset,
                                   refractory, graded};
             },
             "membrane"_a, "waiting"_a, "trace"_a, "decay"_a, "gain"_a, "threshold"_a, "rest"_a, "reset_to"_a,
             "trace_decay"_a, "reset"_a, "refractory"_a, "graded"_a);
    nb::class_<Fades>(m, "Fades")
        .def("__init__",
             [](Fades* self, std::vector<Rho> rows, PerNeuron<int32_t> at, ConstVector strength, ConstVector rate,
                int64_t position) { new (self) Fades{rows, at, strength, rate, position}; },
             "rows"_a, "at"_a, "strength"_a, "rate"_a, "position"_a);
    m.def("step", &step, "encoder"_a, "encoder_v"_a, "decoder"_a, "scales"_a, "cosine"_a, "sine"_a, "rho"_a, "v"_a,
          "threads"_a, "spikes"_a.none() = nb::none(), "fades"_a.none() = nb::none());
}
