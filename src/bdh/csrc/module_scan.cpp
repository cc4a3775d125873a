// Python binding of the scans over tokens: checks every shape, then hands pointers over.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "kernels.hpp"
#include "scan.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <typename T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Rows = Array<float, 3>;             // (R, T, K)
using ConstRows = Array<const float, 3>;  // (R, T, K)
using PerNeuron = Array<const float, 2>;  // (H, K) or (H, 1)
using PerHead = Array<const float, 1>;    // (H)

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string("the scan does not fit: expected ") + what);
}

template <typename A>
void same(const ConstRows& like, const A& other) {
    for (size_t i = 0; i < 3; ++i) require(other.shape(i) == like.shape(i), "rows (R, T, K) of one shape");
}

// The neurons of a scan, as Python holds them.
struct Constants {
    PerHead decay, gain;
    PerNeuron threshold, spread;
    bdh::Neurons n;

    Constants(PerHead decay, PerHead gain, PerNeuron threshold, PerNeuron spread, float rest, float reset_to,
              const std::string& reset, int32_t refractory, bool detach, const std::string& surrogate, float beta)
        : decay(decay), gain(gain), threshold(threshold), spread(spread), n{} {
        const size_t H = decay.shape(0);
        require(H > 0 && gain.shape(0) == H && threshold.shape(0) == H && spread.shape(0) == H &&
                    spread.shape(1) == threshold.shape(1),
                "decay and gain (H), threshold and spread (H, K) or (H, 1)");
        require(refractory >= 0 && refractory < 128, "0 <= refractory < 128");
        n.heads = H, n.decay = decay.data(), n.gain = gain.data();
        n.threshold = threshold.data(), n.spread = spread.data();
        n.rest = rest, n.reset_to = reset_to, n.refractory = refractory, n.detach = detach, n.beta = beta;
        n.reset = bdh::reset_named(reset);
        if (surrogate == "fast_sigmoid") n.surrogate = bdh::Surrogate::fast_sigmoid;
        else if (surrogate == "arctan") n.surrogate = bdh::Surrogate::arctan;
        else if (surrogate == "triangular") n.surrogate = bdh::Surrogate::triangular;
        else require(false, "surrogate fast_sigmoid, arctan or triangular");
    }

    bdh::Neurons over(const ConstRows& rows) const {
        bdh::Neurons found = n;
        found.rows = rows.shape(0), found.tokens = rows.shape(1), found.neurons = rows.shape(2);
        found.shared = threshold.shape(1) == 1;
        require(found.rows % found.heads == 0, "a multiple of H rows");
        require(found.shared || threshold.shape(1) == rows.shape(2), "a threshold per head or per neuron");
        return found;
    }
};

void forward(const Constants& neurons, ConstRows current, Array<float, 2> membrane, Array<int8_t, 2> waiting,
             std::optional<Rows> charge, Rows spikes, std::optional<Rows> activity, int threads) {
    const bdh::Neurons n = neurons.over(current);
    require(membrane.shape(0) == current.shape(0) && membrane.shape(1) == current.shape(2) &&
                waiting.shape(0) == membrane.shape(0) && waiting.shape(1) == membrane.shape(1),
            "membrane and waiting (R, K)");
    same(current, spikes);
    if (charge) same(current, *charge);
    if (activity) same(current, *activity);
    nb::gil_scoped_release release;
    bdh::scans().forward(n, current.data(), membrane.data(), waiting.data(), charge ? charge->data() : nullptr,
                         spikes.data(), activity ? activity->data() : nullptr, threads);
}

void backward(const Constants& neurons, std::optional<ConstRows> current, ConstRows charge,
              std::optional<ConstRows> d_spikes, std::optional<ConstRows> d_activity, Array<float, 2> d_membrane,
              Rows d_current, int threads) {
    const bdh::Neurons n = neurons.over(charge);
    require(d_membrane.shape(0) == charge.shape(0) && d_membrane.shape(1) == charge.shape(2), "d_membrane (R, K)");
    require(!d_activity || current, "current where d_activity is given");
    same(charge, d_current);
    for (const auto& rows : {current, d_spikes, d_activity})
        if (rows) same(charge, *rows);
    nb::gil_scoped_release release;
    bdh::scans().backward(n, current ? current->data() : nullptr, charge.data(), d_spikes ? d_spikes->data() : nullptr,
                          d_activity ? d_activity->data() : nullptr, d_membrane.data(), d_current.data(), threads);
}

}  // namespace

void bind_scans(nb::module_& m) {
    nb::class_<Constants>(m, "Neurons")
        .def(nb::init<PerHead, PerHead, PerNeuron, PerNeuron, float, float, const std::string&, int32_t, bool,
                      const std::string&, float>(),
             "decay"_a, "gain"_a, "threshold"_a, "spread"_a, "rest"_a, "reset_to"_a, "reset"_a, "refractory"_a,
             "detach"_a, "surrogate"_a, "beta"_a);
    m.def("lif_forward", &forward, "neurons"_a, "current"_a, "membrane"_a, "waiting"_a, "charge"_a.none(), "spikes"_a,
          "activity"_a.none(), "threads"_a);
    m.def("lif_backward", &backward, "neurons"_a, "current"_a.none(), "charge"_a, "d_spikes"_a.none(),
          "d_activity"_a.none(), "d_membrane"_a, "d_current"_a, "threads"_a);
}
