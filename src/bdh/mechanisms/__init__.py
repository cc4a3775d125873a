"""Parts that the one layer skeleton takes; each can be switched on alone."""

from bdh.mechanisms.lif import Fired, LeakyIntegrateFire, LIFState, calibrating
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
from bdh.mechanisms.sparsity import k_winners
from bdh.ops import spike_function

__all__ = [
    "Fired",
    "LIFState",
    "LeakyIntegrateFire",
    "ThresholdController",
    "calibrating",
    "dead_fraction",
    "firing_rates",
    "gini",
    "hoyer",
    "k_winners",
    "rate_band_loss",
    "rate_loss",
    "saturated_fraction",
    "sparsity_loss",
    "spike_function",
]
