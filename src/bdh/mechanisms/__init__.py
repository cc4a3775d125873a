"""Parts that the one layer skeleton takes; each can be switched on alone."""

from bdh.mechanisms.hippo import HiPPO, HiPPOState, hippo_matrices, hippo_reconstruct
from bdh.mechanisms.sparsity import k_winners
from bdh.mechanisms.stdp import KernelState, KernelSTDP, TraceState, stdp_kernel, stdp_window
from bdh.mechanisms.stdp_trace import TraceSTDP

__all__ = [
    "HiPPO",
    "HiPPOState",
    "KernelSTDP",
    "KernelState",
    "TraceSTDP",
    "TraceState",
    "hippo_matrices",
    "hippo_reconstruct",
    "k_winners",
    "stdp_kernel",
    "stdp_window",
]
