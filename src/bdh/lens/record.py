"""See what the model computes: named tensors of one pass, exactly as the model made them, however it reads the text.

Shapes: B batch, T tokens, L levels, H heads, N neurons in all, K = N/H neurons per head.
Neuron k of head h has the global id h*K + k.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bdh.lens.names import SIGNALS, Place, canonical, check_signal, matching, names_of, near
from bdh.model import BDH, State

__all__ = ["SIGNALS", "Mode", "Trace", "check_signal", "names_of", "record"]

Mode = Literal["parallel", "recurrent", "generate"]
LIMIT = 2 * 2**30
"""Bytes that a recording may take unless told otherwise."""

_SPARSE = {f"layers.{{i}}.{signal}" for signal in (*SIGNALS, "spikes")}


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Mapping[str, Tensor]):
    """What `record` saw: a read-only mapping from name to tensor.

    Examples:
        >>> trace = Trace({"layers.0.x_sparse": torch.ones(1, 2, 3, 4)})
        >>> trace["layers.0.x_sparse"].shape, trace.neurons("x_sparse", 0).shape
        (torch.Size([1, 2, 3, 4]), torch.Size([1, 3, 8]))
        >>> trace["blocks.0.hook_x_sparse"] is trace["layers.0.x_sparse"]
        True
    """

    tensors: Mapping[str, Tensor]
    idx: Tensor | None = None
    """The text as token ids, (B, T); the last token of a generated one was chosen but not read."""

    def __getitem__(self, name: str) -> Tensor:
        try:
            return self.tensors[canonical(name)]
        except KeyError:
            raise KeyError(f"{name!r} was not recorded; {near(name, self.names)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return "Trace(" + ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.items()) + ")"

    @property
    def names(self) -> tuple[str, ...]:
        """Recorded names, in the order in which the model made the tensors."""
        return tuple(self.tensors)

    @property
    def nbytes(self) -> int:
        """Memory held by the tensors, in bytes."""
        return sum(map(_nbytes, self.tensors.values()))

    def neurons(self, signal: str, layer: int) -> Tensor:
        """Return one level of x_sparse, y_sparse or xy_sparse by global neuron id.

        Args:
            signal: one of `SIGNALS`.
            layer: the level, 0..L-1.

        Returns:
            (B, T, N); entry h*K + k is neuron k of head h. Sparse where it was recorded so.

        Raises:
            ValueError: the signal is not one of neurons, or was not recorded at this level.
        """
        check_signal(signal)
        name = f"layers.{layer}.{signal}"
        if name not in self.tensors:
            raise ValueError(f"{name!r} was not recorded; {near(name, self.names)}; add it to names=")
        tensor = self.tensors[name]
        if not tensor.is_sparse:
            return tensor.transpose(1, 2).flatten(2)
        B, H, T, K = tensor.shape
        b, h, t, k = tensor.indices()
        at = torch.stack((b, t, h * K + k))
        return torch.sparse_coo_tensor(at, tensor.values(), (B, T, H * K), check_invariants=True).coalesce()

    def to(self, device: torch.device | str) -> Trace:
        """Return a copy on another device."""
        idx = None if self.idx is None else self.idx.to(device)
        return Trace({name: tensor.to(device) for name, tensor in self.items()}, idx)


@torch.no_grad()
def record(
    model: BDH,
    idx: Tensor,
    names: str | Sequence[str] = ("layers.*.x_sparse",),
    *,
    mode: Mode = "parallel",
    max_new_tokens: int | None = None,
    sparse: bool = False,
    limit: int | None = LIMIT,
    **sampling: Any,
) -> tuple[Tensor, Trace]:
    """Let the model read, without gradients, and keep the named tensors; the same values in every mode.

    "parallel" is `model(idx)`; "recurrent" is `model.advance`, token by token; "generate" is `model.generate`, watched
    while it happens: the trace goes over the prompt and all new tokens but the last, which is chosen and not read.

    The model runs in the mode it is in: in training mode the dropout is on (but in "generate", which has none), and
    `model(idx)` may take fast kernels whose rounding differs; in eval mode the logits are the same bit for bit.
    Generation that is watched takes PyTorch operations instead of the native step of one token, whose rounding
    differs too.

    Args:
        model: the model; it is not changed.
        idx: (B, T) token ids; the prompt of "generate".
        names: patterns (`*`, `?`, `[...]`) of the names to keep; `names_of(model)` lists them. Names in the style of
            TransformerLens are understood ("blocks.0.hook_resid_post").
        mode: how the tokens are read.
        max_new_tokens: how many to make, in mode "generate".
        sparse: keep x_sparse, y_sparse, xy_sparse and spikes as sparse COO tensors, with the same entries. One that
            is not zero takes 36 bytes instead of 4: worth it where less than a tenth fires.
        limit: bytes that the tensors may take; None is any number. The size of dense tensors is known and checked
            before the run, that of sparse ones as they come.
        **sampling: temperature, top_k, top_p, seed of `model.generate`.

    Returns:
        logits (B, T, V) and the trace, whose `idx` has the tokens.

    Raises:
        ValueError: a pattern that matches no name, a name that the model did not make, a recording larger than the
            limit, an argument of another mode, or token ids that the model refuses.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> logits, trace = record(model, torch.tensor([[1, 2, 3]]), "layers.*.x_sparse")
        >>> trace.names
        ('layers.0.x_sparse', 'layers.1.x_sparse')
        >>> logits, trace = record(model, torch.tensor([[1, 2]]), "embed", mode="generate", max_new_tokens=4, seed=0)
        >>> trace.idx.shape, trace["embed"].shape
        (torch.Size([1, 6]), torch.Size([1, 5, 16]))
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(get_args(Mode))}")
    if (mode == "generate") != (max_new_tokens is not None) or (sampling and mode != "generate"):
        raise ValueError(
            f"mode={mode!r}, max_new_tokens={max_new_tokens}, {sampling or 'no sampling'}: mode 'generate' needs "
            "max_new_tokens, and the other modes take neither it nor sampling"
        )
    wanted = matching(model, names)
    seen = _Seen(wanted, sparse, limit)
    if idx.ndim == 2:  # any other shape is refused by the model
        seen.check_size(model, idx.shape[0], idx.shape[1] + max(0, (max_new_tokens or 0) - 1))
    text = idx
    if mode == "parallel":
        model(idx, tap=seen)
    elif mode == "recurrent":
        state: State | None = None
        for token in idx.split(1, dim=1) if idx.ndim == 2 and idx.numel() else (idx,):
            _, state = model.advance(token, state, tap=seen)
    else:
        assert max_new_tokens is not None
        edits = model.edits
        model.edits = (*edits, lambda idx, state: seen)
        try:
            text = model.generate(idx, max_new_tokens, **sampling)
        finally:
            model.edits = edits
    return seen.logits(), Trace(seen.tensors(), text)


class _Seen:
    """A tap that keeps what is wanted, piece by piece of the text."""

    def __init__(self, wanted: Mapping[str, Place], sparse: bool, limit: int | None) -> None:
        self._wanted, self._limit = wanted, limit
        self._sparse = {name for name, place in wanted.items() if sparse and place.name in _SPARSE}
        self._pieces: dict[str, list[Tensor]] = {}
        self._logits: list[Tensor] = []
        self._nbytes = 0

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Keep, and hand the tensor on unchanged."""
        if name == "logits":
            self._logits.append(tensor)
        if name in self._wanted:
            piece = tensor.to_sparse() if name in self._sparse else tensor
            self._pieces.setdefault(name, []).append(piece)
            self._nbytes += _nbytes(piece)
            if self._sparse and self._limit is not None and self._nbytes > self._limit:
                raise self._too_large(f"more than {self._limit:,} bytes", "")
        return tensor

    def check_size(self, model: BDH, batch: int, tokens: int) -> None:
        """Refuse what would be too large, as far as it is known before the run."""
        size = model.encoder.element_size()
        sizes = {
            name: size * math.prod(place.shape(model.config, batch, tokens))
            for name, place in self._wanted.items()
            if name not in self._sparse
        }
        if self._limit is not None and (total := sum(sizes.values())) > self._limit:
            largest = max(sizes, key=sizes.__getitem__)
            kind = self._wanted[largest].at("*") if self._wanted[largest].is_of_level else largest
            raise self._too_large(f"{total:,} bytes", f" {kind!r} ({sizes[largest]:,} bytes each),")

    def _too_large(self, got: str, what: str) -> ValueError:
        return ValueError(
            f"names: expected a recording of at most limit={self._limit:,} bytes, got {got} in {len(self._wanted)} "
            f"tensors; leave out{what or ' names or'} levels, read fewer tokens, use sparse=True, or raise the limit"
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the pieces put together, in the order of the walk."""
        if missing := [name for name in self._wanted if name not in self._pieces]:
            raise ValueError(f"names: the model did not make {', '.join(missing)}; leave them out")
        return {name: _joined(self._pieces[name]) for name in self._wanted}

    def logits(self) -> Tensor:
        return _joined(self._logits)


def _joined(pieces: list[Tensor]) -> Tensor:
    """One tensor from the pieces along the tokens, the last dimension but one of every place."""
    whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=pieces[0].ndim - 2)
    return whole.coalesce() if whole.is_sparse else whole


def _nbytes(tensor: Tensor) -> int:
    if not tensor.is_sparse:
        return tensor.nbytes
    tensor = tensor.coalesce()
    return tensor.indices().nbytes + tensor.values().nbytes
