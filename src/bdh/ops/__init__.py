"""The one door to the operations: callers name what they want, this room knows how it is computed.

Shapes: B batch, H heads, T tokens, K neurons per head, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from bdh.config import LevelsBackend, Precision
from bdh.ops import lif, native, native_levels, parallel, reference, tiled
from bdh.ops.leaky import leaky_integrate
from bdh.ops.lif import spiking_step
from bdh.ops.native import FadingStep, SpikingStep, StepWeights, step_weights
from bdh.ops.native import step as step_levels
from bdh.ops.native_levels import Memory, levels_from
from bdh.ops.parallel import product
from bdh.ops.rotary import frequencies, rotate, rotation
from bdh.ops.surrogate import spike_function
from bdh.ops.through_time import is_through_time, without_gradient_through_time

__all__ = [
    "FadingStep",
    "LevelsBackend",
    "LevelsPath",
    "Memory",
    "Precision",
    "SpikingStep",
    "StepWeights",
    "attention_read",
    "frequencies",
    "leaky_integrate",
    "levels",
    "levels_backend",
    "levels_from",
    "levels_path",
    "lif_scan",
    "linear_attention",
    "product",
    "rotate",
    "rotation",
    "spike_function",
    "spiking_step",
    "step_backend",
    "step_levels",
    "step_weights",
    "using",
    "without_gradient_through_time",
]

Backend = Literal["auto", "reference", "dense", "chunked"]
LevelsPath = Literal["native", "tiled", "composed"]

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
    backend = _as_chosen(backend)
    if backend == "reference" and is_through_time():
        return reference.quadratic_attention(q, v)
    if backend == "dense" or (backend == "auto" and q.shape[2] <= CROSSOVER * v.shape[-1]):
        return parallel.dense(q, *_written(q, v))
    return linear_attention(q, v, backend="chunked")[0]


def linear_attention(
    q: Tensor, v: Tensor, rho: Tensor | None = None, *, backend: Backend = "auto", owns_rho: bool = False,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Causal linear attention with its state.

        a_t = q_t rho_{t-1},    rho_t = rho_{t-1} + q_t^T v_t        (paper, Eq. 8; rho in the rotated frame)

    Args:
        q: (B, H, T, K) rotated activations, queries and keys in one.
        v: (B, T, D) values, shared by the heads.
        rho: (B, H, K, D) state; None is zero.
        backend: "auto" picks by length; "dense" has no state and is refused.
        owns_rho: the caller gives its state away, so its memory may be written to. Otherwise it is not touched.
        fresh: (B, T) tokens with which a text begins: these and those behind them see nothing before. None: no such.

    Returns:
        a (B, H, T, D) in the dtype of `q`, and the new state (B, H, K, D). All is computed in float32 at least, under
        autocast too. A new state has that dtype; a given one keeps its own, so a state stored in half precision
        (`State.to`) is rounded once at the end of each call: token by token its sums lose more than in one call.
    """
    if backend == "dense":
        raise ValueError("backend='dense' keeps no state: expected 'auto', 'reference' or 'chunked'")
    backend = _as_chosen(backend)
    wide = torch.promote_types(q.dtype if rho is None else rho.dtype, torch.float32)
    stored = wide if rho is None else rho.dtype
    with torch.autocast(q.device.type, enabled=False):
        args = q.to(wide), v.to(wide)
        before = None if rho is None else rho.to(wide)
        if backend == "reference" and is_through_time():
            a, after = reference.linear_attention(*args, before, fresh)
        elif q.shape[2] == 1 and before is not None and fresh is None:
            a, after = parallel.step(*args, before, owns_rho=owns_rho)
        else:
            values, keys = _written(*args)
            a, after = parallel.chunked(args[0], values, before, keys, owns_rho=owns_rho, fresh=fresh)
    return a.to(q.dtype), after.to(stored)


def _written(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values and keys as they are written; the keys are the queries, unless they are to have no gradient."""
    return (v, None) if is_through_time() else (v.detach(), q.detach())


def _as_chosen(backend: Backend) -> Backend:
    if torch.compiler.is_compiling() or backend != "auto":  # the compiler cannot read the choice
        return backend
    return "reference" if _levels_choice.get() == "reference" else "auto"


def levels(
    path: LevelsPath, v: Tensor, encoder: Tensor, encoder_v: Tensor, decoder: Tensor, *, n_layer: int,
    dropout: float = 0.0, winners: int | None = None,
) -> Tensor:  # fmt: skip
    """Pass v through all levels, from an empty state; differentiable once in all tensors.

    Args:
        path: "native" or "tiled", from `levels_backend`.
        v: (B, T, D).
        encoder: (H, D, K).
        encoder_v: (H, D, K).
        decoder: (H*K, D).
        n_layer: L.
        dropout: probability of dropping a gated activity; the choice is seeded from torch's generator.
        winners: how many neurons of a head may fire per token (see `bdh.mechanisms.k_winners`); None is all.

    Returns:
        (B, T, D).
    """
    if path == "native":
        return native_levels.levels(v, encoder, encoder_v, decoder, n_layer=n_layer, dropout=dropout, winners=winners)
    from bdh.mechanisms.sparsity import k_winners  # here, since the mechanisms are built on this room

    fire = None if winners is None else partial(k_winners, k=winners)
    return tiled.levels(v, encoder, encoder_v, decoder, n_layer=n_layer, dropout=dropout, fire=fire)


def lif_scan(
    current: Tensor, membrane: Tensor, refractory: Tensor, neurons: lif.Neurons, *, graded: bool = True
) -> lif.Scan:
    """Leaky integrate-and-fire neurons over tokens: charge, fire, reset.

        h_t = alpha v_{t-1} + (1 - alpha) (v_rest + I_t),    s_t = 1 if h_t >= threshold else 0
        soft: v_t = h_t - s_t (threshold - v_reset)    hard: v_t = v_reset where s_t = 1, else h_t    none: v_t = h_t

    After a spike a neuron with a refractory period stays at v_reset and silent for that many tokens. The derivative
    of s is that of `spike_function`; it is found by a reverse scan over the charges h, the only tensor that is kept.
    The native kernels and PyTorch give the same spikes bit by bit (but for reset "none", which PyTorch computes by
    products of matrices).

    Args:
        current: (B, H, T, K).
        membrane: (B, H, K) v before the first token, float32 at least.
        refractory: (B, H, K) int8, silent tokens that are left.
        neurons: constants.
        graded: activity is s_t relu(I_t); otherwise it is s_t.

    Returns:
        spikes and activity in the dtype of `current`, the new membrane and refractory.
    """
    wide = current.to(torch.promote_types(current.dtype, membrane.dtype)).contiguous()
    state = membrane.to(wide.dtype), refractory
    if _levels_choice.get() == "reference":
        found = reference.lif_scan(wide, *state, neurons, graded=graded)
    else:
        found = lif.scan(wide, *state, neurons, graded=graded, on_kernels=levels_backend(wide) == "native")
    return found._replace(spikes=found.spikes.to(current.dtype), activity=found.activity.to(current.dtype))


@contextmanager
def using(backend: LevelsBackend) -> Iterator[None]:
    """Choose how training passes are computed inside a `with`, for tests and comparisons.

    Args:
        backend: "native" (all levels in one call of the C++ kernels), "tiled" (in one call of PyTorch that keeps
            little), "composed" (operation by operation in PyTorch), "reference" (the same with attention as its
            equation says, ops/reference.py), or "auto" (see `levels_backend`). Under torch.compile every pass is
            composed.

    Raises:
        ValueError: another name.

    Examples:
        >>> with using("composed"):
        ...     levels_backend(torch.zeros(1))
        'composed'
    """
    if backend not in get_args(LevelsBackend):
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(get_args(LevelsBackend))}")
    token = _levels_choice.set(backend)
    try:
        yield
    finally:
        _levels_choice.reset(token)


def levels_backend(*tensors: Tensor, activities: int = 0) -> LevelsPath:
    """Return how a training pass that nobody taps is computed; from a state, one that is tiled here is composed.

    Native: float32 (or autocast to bfloat16) on a CPU, kernels built. Tiled: other training on a CPU in float32 or
    wider; elsewhere training of which a composed pass would hold more than half of the memory (`tiled.why_not`).
    Composed: everything else. Generation has no tiles: what is not native there is composed.

    Args:
        *tensors: tensors of the pass.
        activities: neuron activities of a training pass, B * T * L * N.

    Raises:
        ValueError: native was asked for by `using`, and cannot be.
    """
    if torch.compiler.is_compiling():
        return "composed"  # the compiler can look into nothing else, nor into the line below
    choice = _levels_choice.get()
    if choice == "reference":
        return "composed"
    reasons = _reasons(*tensors, activities=activities)
    if choice == "auto":
        return next(path for path, reason in reasons.items() if not reason)
    if choice in ("native", "tiled") and reasons[choice] and (choice == "native" or not is_through_time()):
        raise ValueError(f"backend {choice!r} cannot be used: {reasons[choice]}; leave the choice to 'auto'")
    return choice


def _reasons(*tensors: Tensor, activities: int) -> dict[LevelsPath, str | None]:
    """Why each path is not taken, best path first; None where it may be."""
    return {
        "native": next(filter(None, map(why_not_native, tensors)), None),
        "tiled": tiled.why_not(tensors[0], activities) if is_through_time() else "tiles learn through time",
        "composed": None,
    }


def step_backend(
    encoder: Tensor, *rho: Tensor, refused: str | None = None, precision: Precision = "float32"
) -> Literal["native", "composed"]:
    """Return how one token of generation is computed: natively wherever it can be, with a state in bfloat16 too.

    Args:
        encoder: the weights of the model.
        *rho: states of the levels.
        refused: why this model has no native step, if it has none.
        precision: of the weights that the step reads; only the native kernels read other weights than the model's.

    Raises:
        ValueError: an unknown precision, or what was asked for cannot be had here.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(get_args(Precision))}")
    stored = torch.float32, torch.bfloat16
    reasons = [refused, why_not_native(encoder), *(why_not_native(state, dtypes=stored) for state in rho)]
    choice, reason = _levels_choice.get(), next(filter(None, reasons), None)
    if reason and choice == "native":
        raise ValueError(f"backend 'native' cannot be used: {reason}; leave the choice to 'auto'")
    if reason is None and choice not in ("auto", "native"):
        reason = f"backend {choice!r} is in use"
    if reason and precision != "float32":
        raise ValueError(f"precision={precision!r} needs the native kernels: {reason}; leave it at 'float32'")
    return "composed" if reason else "native"


def why_not_native(like: Tensor, *, dtypes: tuple[torch.dtype, ...] = (torch.float32,)) -> str | None:
    """Return why the native back end does not take a pass; None where it does."""
    if like.device.type != "cpu":
        return f"the tensors are on {like.device.type}, the kernels run on a CPU"
    if not native.available():
        return native.why_not
    autocast = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.bfloat16
    if like.dtype not in dtypes or autocast != torch.bfloat16:
        return "the kernels take float32, with or without autocast to bfloat16"
    if not like.is_contiguous():
        return "a tensor is not contiguous"
    return None


def levels_path(like: Tensor | None = None, *, activities: int = 0) -> str:
    """Say in one line which path a training pass takes, and why; without arguments, one in float32 on this CPU.

    Examples:
        >>> levels_path(torch.zeros((), dtype=torch.float64))
        'tiled PyTorch operations (no native kernels: the kernels take float32, with or without autocast to bfloat16)'
    """
    like = torch.zeros(()) if like is None else like
    path = levels_backend(like, activities=activities)
    if path == "native":
        return f"native {native.instruction_set()} kernels on {torch.get_num_threads()} threads"
    reasons = _reasons(like, activities=activities)
    why = f"no native kernels: {reasons['native']}"
    if _levels_choice.get() != "auto":
        why = "asked for"
    elif path == "composed":
        why += f"; not tiled: {reasons['tiled']}"
    return f"{'tiled ' if path == 'tiled' else ''}PyTorch operations ({why})"
