"""Parts that the one layer skeleton takes; each can be switched on alone."""

from bdh.mechanisms.scale_free import ScaleFree, pack_mask, scale_free_degrees, scale_free_mask, unpack_mask
from bdh.mechanisms.sparsity import k_winners

__all__ = ["ScaleFree", "k_winners", "pack_mask", "scale_free_degrees", "scale_free_mask", "unpack_mask"]
