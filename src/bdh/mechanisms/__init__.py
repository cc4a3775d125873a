"""Parts that the one layer skeleton takes; each can be switched on alone."""

from bdh.mechanisms.sparsity import k_winners

__all__ = ["k_winners"]
