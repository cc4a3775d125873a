"""The graph of neurons, as a product that is never multiplied out, and its strongest edges.

An edge runs from a source neuron j, which writes, to a target neuron i, which reads:

    weight(j -> i) = <sources[j], targets[i]>

For `Dx E` (paper, Eq. 7/9, with y in the role of a column: x_i += sum_j (Dx E)_ij y_j) sources are rows of the decoder
E and targets columns of the encoder Dx, all heads with all heads; for `Dy E` targets are columns of Dy. A matrix with
a row per source, such as `decoder @ encoder`, is the transpose of the paper's. For the memory, sigma(i, j) of
`bdh.lens.sigma`, sources are rows of rho and targets what the gates receive, and an edge stays within its head.

Shapes: H heads, K neurons per head, N = H*K neurons, D embedding, m edges.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bdh.lens.memory import check_level, receivers, rows_now
from bdh.model import BDH, State

Ints = npt.NDArray[np.int64]
Sign = Literal[1, -1]

SIGNS: tuple[Sign, Sign] = (1, -1)
MOST_EDGES = 2**24
_BLOCK = 1024
"""Sources whose weights to all targets are held at once."""


@dataclass(frozen=True, eq=False)
class Wiring:
    """All weights between N neurons, of rank D or less."""

    name: str
    """What they are a product of."""
    sources: Tensor
    """(N, D) what each neuron writes."""
    targets: Tensor
    """(N, D) what each neuron reads."""
    heads: int = 1
    """How many equal parts of the neurons have no edge to another part; 1: every neuron may meet every other."""

    @property
    def n(self) -> int:
        """Number of neurons N."""
        return len(self.sources)

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield weights (sources, targets) a block at a time, with the ids of the first source and first target."""
        K = self.n // self.heads
        for head in range(0, self.n, K):
            targets = self.targets[head : head + K]
            for first in range(head, head + K, _BLOCK):
                weights = self.sources[first : min(first + _BLOCK, head + K)] @ targets.mT
                # a neuron's edge to itself: none of the random graphs that this is compared with has one
                weights.diagonal(first - head).zero_()
                yield first, head, weights


@torch.no_grad()
def wiring(model: BDH, which: Literal["x", "y"] = "x", *, centred: bool | None = None) -> Wiring:
    """Return the fixed graph of a model, from what neurons write to what drives neurons (x) or gates (y).

        weight(j -> i) = <E[j] - mean(E[j]), D[:, i]>,       D = Dx or Dy

    Args:
        model: the model.
        which: "x", to the neurons, or "y", to the gates.
        centred: whether to take the mean off E[j], as the LayerNorm between E and D does, so that a constant which
            the model cannot see makes no edges. None: as the model does; False: the paper's `D E`.

    Raises:
        ValueError: another graph.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> wiring(model).n, wiring(model, "y").name
        (64, 'Dy E')
    """
    if which not in ("x", "y"):
        raise ValueError(f"which={which!r}: expected 'x' (to the neurons) or 'y' (to their gates)")
    encoder = model.encoder if which == "x" else model.encoder_v
    parts = (model.decoder.detach(), encoder.detach())
    written, read = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts)
    if model.config.norm == "layer" if centred is None else centred:
        written = written - written.mean(1, keepdim=True)
    return Wiring(f"D{which} E", written, read.mT.flatten(0, 1))


@torch.no_grad()
def memory_wiring(model: BDH, state: State, level: int) -> Wiring:
    """Return the graph of the memory of a level, as the next token finds it: sigma(i, j) from neuron j to gate i.

    Args:
        model: the model.
        state: what was read, one sequence.
        level: the level.

    Raises:
        ValueError: a level that the model does not have, or a state of another model or of several sequences.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> _, state = model.advance(torch.tensor([[1, 2, 3]]))
        >>> memory_wiring(model, state, level=1).heads
        2
    """
    check_level(model, level)
    state.require(model.config.n_layer, model.parts.state_shapes(1))
    every = torch.arange(model.config.n_neurons, device=state.rho[level].device)
    rows = rows_now(model, state, level, every)[0]
    return Wiring(f"sigma of level {level}", rows, receivers(model, every).to(rows), model.config.n_head)


@dataclass(frozen=True, eq=False)
class Graph:
    """Directed edges between N neurons, the strongest first."""

    n: int
    source: Ints
    """(m,) global ids."""
    target: Ints
    """(m,) global ids."""
    weight: npt.NDArray[np.float64]
    """(m,) sizes, without the sign of the half that they are from."""
    heads: int = 1
    """As of the `Wiring`."""

    def __len__(self) -> int:
        return len(self.source)

    def __repr__(self) -> str:
        return f"Graph({self.n} neurons, {len(self)} edges)"

    @property
    def threshold(self) -> float:
        """Size of the weakest edge, the paper's beta."""
        return float(self.weight[-1])

    @cached_property
    def out_degree(self) -> Ints:
        """(N,) number of edges from each neuron."""
        return np.bincount(self.source, minlength=self.n)

    @cached_property
    def in_degree(self) -> Ints:
        """(N,) number of edges to each neuron."""
        return np.bincount(self.target, minlength=self.n)

    def strongest(self, edges: int) -> Graph:
        """Return the graph of the strongest edges only.

        Raises:
            ValueError: it does not have so many.
        """
        if not 1 <= edges <= len(self):
            raise ValueError(f"edges={edges:,}: expected 1..{len(self):,}, as many weights of this sign as there are")
        return Graph(self.n, self.source[:edges], self.target[:edges], self.weight[:edges], self.heads)

    def networkx(self) -> Any:
        """Return it as a `networkx.DiGraph` of the neurons that have edges, by global id, without weights."""
        import networkx

        found = networkx.DiGraph()
        found.add_nodes_from(np.union1d(self.source, self.target).tolist())  # the same order whatever the edges' is
        found.add_edges_from(zip(self.source.tolist(), self.target.tolist(), strict=True))
        return found


@torch.no_grad()
def graph(wires: Wiring, sign: Sign = 1, *, edges: int | None = None, threshold: float | None = None) -> Graph:
    """Return the strongest edges of one sign: so many, or all of at least a size.

    Weights are made for 1,024 sources at a time and only candidates are kept, N^2 D multiply-adds in all; N x N is
    never in memory. Edges from a neuron to itself are left out.

    Args:
        wires: what to look through.
        sign: 1 for positive weights, -1 for negative ones.
        edges: how many; fewer come back where fewer have the sign.
        threshold: least size; either this or `edges`.

    Raises:
        ValueError: not exactly one of `edges` and `threshold`, one that is not positive, or more than 16,777,216 edges.

    Examples:
        >>> wires = Wiring("hand-made", torch.tensor([[0.0], [2.0], [3.0]]), torch.tensor([[1.0], [0.0], [-1.0]]))
        >>> found = graph(wires, edges=5)
        >>> list(zip(found.source.tolist(), found.target.tolist(), found.weight.tolist()))
        [(2, 0, 3.0), (1, 0, 2.0)]
        >>> graph(wires, sign=-1, threshold=1.0).weight.tolist()
        [2.0]
    """
    if (edges is None) == (threshold is None):
        raise ValueError("edges, threshold: expected exactly one of them")
    asked = edges if edges is not None else threshold
    assert asked is not None
    if not asked > 0 or (edges is not None and edges > MOST_EDGES):
        raise ValueError(
            f"edges={edges}, threshold={threshold}: expected a number > 0, and at most {MOST_EDGES:,} edges"
        )
    # the least positive number below which nothing counts; grows with the edges that are found
    floor = 0.0 if threshold is None else float(np.nextafter(np.float32(threshold), np.float32(0)))
    kept, weight = torch.empty(0, dtype=torch.int64), wires.sources.new_empty(0).cpu()
    for source, target, block in wires.blocks():
        flat = (sign * block).flatten()
        at = (flat > floor).nonzero()[:, 0]
        ids = (source + at // block.shape[1]) * wires.n + target + at % block.shape[1]
        kept, weight = torch.cat((kept, ids.cpu())), torch.cat((weight, flat[at].cpu()))
        if edges is not None and len(kept) > 2 * edges:
            weight, best = weight.topk(edges)
            kept, floor = kept[best], float(weight[-1])
        elif edges is None and len(kept) > MOST_EDGES:
            raise ValueError(f"threshold={threshold}: expected one that leaves at most {MOST_EDGES:,} edges; raise it")
    order = weight.argsort(descending=True, stable=True)[:edges]
    pairs = kept[order].numpy()
    return Graph(wires.n, pairs // wires.n, pairs % wires.n, weight[order].double().numpy(), wires.heads)
