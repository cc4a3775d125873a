"""The one door to the operations: callers name what they want, this room knows how it is computed.

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

import torch
from torch import Tensor

from bdh.ops import native, parallel, reference
from bdh.ops.native import Precision, StepWeights, step_weights
from bdh.ops.native import step as step_levels
from bdh.ops.native_levels import levels
from bdh.ops.rotary import frequencies, rotate, rotation

__all__ = [
    "Precision",
    "StepWeights",
    "attention_read",
    "frequencies",
    "levels",
    "levels_backend",
    "levels_path",
    "linear_attention",
    "rotate",
    "rotation",
    "step_backend",
    "step_levels",
    "step_weights",
    "using",
]

Backend = Literal["auto", "reference", "dense", "chunked"]
LevelsBackend = Literal["auto", "native", "composed"]

_levels_choice: ContextVar[LevelsBackend] = ContextVar("levels backend", default="auto")

CROSSOVER = 2
"""The quadratic form is the faster one up to T = CROSSOVER * D (measured: docs/LOG.md)."""


def attention_read(q: Tensor, v: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Read of causal linear attention from an empty state, when no state is wanted afterwards (training).

        a_t = sum_{tau < t} (q_t . q_tau) v_tau          strictly past: read before write (paper, Eq. 8)

    Args:
        q: (B, H, T, K) rotated activations.
        v: (B, T, D) values, shared by the heads.
        backend: "auto" picks the form that is faster at this length.

    Returns:
        a (B, H, T, D).

    Examples:
        >>> a = attention_read(torch.ones(1, 1, 3, 2), torch.ones(1, 3, 1))
        >>> a.flatten().tolist()
        [0.0, 2.0, 4.0]
    """
    if backend == "reference":
        return reference.quadratic_attention(q, v)
    if backend == "dense" or (backend == "auto" and q.shape[2] <= CROSSOVER * v.shape[-1]):
        return parallel.dense(q, v)
    return linear_attention(q, v, backend="chunked")[0]


def linear_attention(
    q: Tensor, v: Tensor, rho: Tensor | None = None, *, backend: Backend = "auto", owns_rho: bool = False
) -> tuple[Tensor, Tensor]:
    """Causal linear attention with its state.

        a_t = q_t rho_{t-1},    rho_t = rho_{t-1} + q_t^T v_t        (paper, Eq. 8; rho in the rotated frame)

    Args:
        q: (B, H, T, K) rotated activations, queries and keys in one.
        v: (B, T, D) values, shared by the heads.
        rho: (B, H, K, D) state; None is zero.
        backend: "auto" picks by length; "dense" has no state and is refused.
        owns_rho: the caller gives its state away, so its memory may be written to. Otherwise it is not touched.

    Returns:
        a (B, H, T, D) in the dtype of `q`, and the new state (B, H, K, D). All is computed in float32 at least, under
        autocast too. A new state has that dtype; a given one keeps its own, so a state stored in half precision
        (`State.to`) is rounded once at the end of each call: token by token its sums lose more than in one call.
    """
    if backend == "dense":
        raise ValueError("backend='dense' keeps no state: expected 'auto', 'reference' or 'chunked'")
    wide = torch.promote_types(q.dtype if rho is None else rho.dtype, torch.float32)
    stored = wide if rho is None else rho.dtype
    with torch.autocast(q.device.type, enabled=False):
        args = q.to(wide), v.to(wide)
        before = None if rho is None else rho.to(wide)
        if backend == "reference":
            a, after = reference.linear_attention(*args, before)
        elif q.shape[2] == 1 and before is not None:
            a, after = parallel.step(*args, before, owns_rho=owns_rho)
        else:
            a, after = parallel.chunked(*args, before, owns_rho=owns_rho)
    return a.to(q.dtype), after.to(stored)


@contextmanager
def using(backend: LevelsBackend) -> Iterator[None]:
    """Choose how training passes are computed inside a `with`, for tests and comparisons.

    Args:
        backend: "native" (all levels in one call of the C++ kernels), "composed" (operation by operation in PyTorch),
            or "auto" (native wherever it can).

    Raises:
        ValueError: another name.

    Examples:
        >>> with using("composed"):
        ...     levels_backend(torch.zeros(1), sparsity=None)
        'composed'
    """
    if backend not in get_args(LevelsBackend):
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(get_args(LevelsBackend))}")
    token = _levels_choice.set(backend)
    try:
        yield
    finally:
        _levels_choice.reset(token)


def levels_backend(*tensors: Tensor, sparsity: float | None) -> Literal["native", "composed"]:
    """Return how a training pass from an empty state that nobody taps is computed.

    Native: float32 on a CPU, natural sparsity, no autocast, kernels built. Composed: everything else.

    Args:
        *tensors: tensors of the pass.
        sparsity: the model's k-winners target.

    Raises:
        ValueError: native was asked for by `using`, and cannot be.
    """
    return _backend(why_composed(tensor, sparsity=sparsity) for tensor in tensors)


def step_backend(
    encoder: Tensor, *rho: Tensor, sparsity: float | None, precision: Precision = "float32"
) -> Literal["native", "composed"]:
    """Return how one token of generation is computed: as `levels_backend` says, but a state may be in bfloat16 too.

    Args:
        encoder: the weights of the model.
        *rho: states of the levels.
        sparsity: the model's k-winners target.
        precision: of the weights that the step reads; only the native kernels read other weights than the model's.

    Raises:
        ValueError: an unknown precision, or one that cannot be had here.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(get_args(Precision))}")
    stored = torch.float32, torch.bfloat16
    reasons = [why_composed(encoder, sparsity=sparsity), *(why_composed(state, dtypes=stored) for state in rho)]
    backend = _backend(reasons)
    if backend == "composed" and precision != "float32":
        reason = next(filter(None, reasons), "backend 'composed' is in use")
        raise ValueError(f"precision={precision!r} needs the native kernels: {reason}; leave it at 'float32'")
    return backend


def _backend(reasons: Iterable[str | None]) -> Literal["native", "composed"]:
    choice = _levels_choice.get()
    if choice == "composed":
        return "composed"
    reason = next(filter(None, reasons), None)
    if reason and choice == "native":
        raise ValueError(f"backend 'native' cannot be used: {reason}; leave the choice to 'auto'")
    return "composed" if reason else "native"


def why_composed(
    like: Tensor, *, sparsity: float | None = None, dtypes: tuple[torch.dtype, ...] = (torch.float32,)
) -> str | None:
    """Return why the native back end does not take a pass; None where it does."""
    if like.device.type != "cpu":
        return f"the tensors are on {like.device.type}, the kernels run on a CPU"
    if not native.available():
        return native.why_not
    if torch.is_autocast_enabled("cpu") or like.dtype not in dtypes:
        return "the kernels compute in float32 alone"
    if not like.is_contiguous():
        return "a tensor is not contiguous"
    if torch.compiler.is_compiling():
        return "torch.compile cannot look into it"
    return None if sparsity is None else "k winners take all is not in the kernels"


def levels_path(like: Tensor | None = None, *, sparsity: float | None = None) -> str:
    """Say in one line which path a training pass takes, and why; without arguments, one in float32 on this CPU.

    Examples:
        >>> levels_path(torch.zeros((), dtype=torch.float64))
        'PyTorch operations (no native kernels: the kernels compute in float32 alone)'
    """
    reason = why_composed(torch.zeros(()) if like is None else like, sparsity=sparsity)
    if reason:
        return f"PyTorch operations (no native kernels: {reason})"
    return f"native {native.instruction_set()} kernels on {torch.get_num_threads()} threads"
