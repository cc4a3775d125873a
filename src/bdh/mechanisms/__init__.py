"""Parts that the one layer skeleton takes; each can be switched on alone."""

from bdh.mechanisms.bcm import BCMHomeostasis, bcm_step
from bdh.mechanisms.criticality import (
    Avalanches,
    Branching,
    CriticalityRegulator,
    avalanches,
    branching_ratio,
    jacobian_gain,
    spike_counts,
)
from bdh.mechanisms.dale import (
    DaleLaw,
    DaleLawLinear,
    GraphPurity,
    ei_balance,
    graph_purity,
    neuron_signs,
    sign_purity,
    singular_value_entropy,
    to_dale,
)
from bdh.mechanisms.dendrites import Dendrites
from bdh.mechanisms.hippo import HiPPO, HiPPOState, hippo_matrices, hippo_reconstruct
from bdh.mechanisms.homeostasis import Homeostatic
from bdh.mechanisms.lif import Fired, LeakyIntegrateFire, LIFState, calibrating
from bdh.mechanisms.neuromodulation import Neuromodulation
from bdh.mechanisms.rates import (
    ThresholdController,
    dead_fraction,
    firing_rates,
    gini,
    hoyer,
    rate_band_loss,
    rate_loss,
    saturated_fraction,
    sparsity_loss,
)
from bdh.mechanisms.scale_free import ScaleFree, pack_mask, scale_free_degrees, scale_free_mask, unpack_mask
from bdh.mechanisms.sparsity import k_winners
from bdh.mechanisms.stdp import KernelState, KernelSTDP, TraceState, stdp_kernel, stdp_window
from bdh.mechanisms.stdp_trace import TraceSTDP
from bdh.ops import spike_function

__all__ = [
    "Avalanches",
    "BCMHomeostasis",
    "Branching",
    "CriticalityRegulator",
    "DaleLaw",
    "DaleLawLinear",
    "Dendrites",
    "Fired",
    "GraphPurity",
    "HiPPO",
    "HiPPOState",
    "Homeostatic",
    "KernelSTDP",
    "KernelState",
    "LIFState",
    "LeakyIntegrateFire",
    "Neuromodulation",
    "ScaleFree",
    "ThresholdController",
    "TraceSTDP",
    "TraceState",
    "avalanches",
    "bcm_step",
    "branching_ratio",
    "calibrating",
    "dead_fraction",
    "ei_balance",
    "firing_rates",
    "gini",
    "graph_purity",
    "hippo_matrices",
    "hippo_reconstruct",
    "hoyer",
    "jacobian_gain",
    "k_winners",
    "neuron_signs",
    "pack_mask",
    "rate_band_loss",
    "rate_loss",
    "saturated_fraction",
    "scale_free_degrees",
    "scale_free_mask",
    "sign_purity",
    "singular_value_entropy",
    "sparsity_loss",
    "spike_counts",
    "spike_function",
    "stdp_kernel",
    "stdp_window",
    "to_dale",
    "unpack_mask",
]
