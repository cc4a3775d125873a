"""An index on disk: Parquet tables to search and sort, small arrays of which one row is one neuron, and the text.

index.json            what it is of, density by level, and how the arrays are to be read
neurons.parquet       one row per neuron
levels.parquet        one row per neuron and level
ngrams.parquet        the n-grams that were counted
*.npy                 (N, ...) arrays, mapped and not read
text.bin              the text
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bdh import ops
from bdh.checkpoint import fingerprint
from bdh.files import replacing_directory
from bdh.lens.density import init_density
from bdh.lens.index.kept import NONE, Kept
from bdh.lens.index.ngrams import LENGTHS, log_odds
from bdh.lens.index.plan import FORMAT, Plan
from bdh.lens.index.tally import EDGES, Tally
from bdh.lens.index.wiring import logit_effects, partners
from bdh.lens.inspection import readable
from bdh.lens.names import neuron_id
from bdh.lens.texts import to_ids
from bdh.model import BDH

if TYPE_CHECKING:  # pages are made of an index
    from bdh.lens.index.page import NeuronPage

Array = npt.NDArray[Any]

BEST_NGRAMS = 5
"""N-grams of each length that a neuron is given with."""

PLACE = np.dtype([("position", "<u4"), ("level", "u1"), ("activation", "<f4")])
LIFT = np.dtype([("ngram", "<i4"), ("fires", "<u4"), ("log_odds", "<f4"), ("z", "<f4")])
WIRE = np.dtype([("neuron", "<u4"), ("weight", "<f4")])

_ARRAYS = (
    "contexts",
    "context_strips",
    "samples",
    "sample_strips",
    "histogram",
    "byte_fires",
    "lifts",
    "logits",
    "wires",
)
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Index:
    """What `build_index` wrote, open for questions; arrays are mapped, so that one neuron costs some pages of disk."""

    path: Path
    plan: Plan
    density: tuple[float, ...]
    """Share of neurons that fire at a token, by level, on the indexed text."""
    density_init: tuple[float, ...]
    """The same freshly initialised, on the first window: what the other is to be compared with."""
    neurons: dict[str, Array]
    """Columns of neurons.parquet, (N,) each."""
    levels: dict[str, Array]
    """Columns of levels.parquet as (N, L)."""
    ngrams: tuple[bytes, ...]
    counts: Array
    """(G,) how often the text has each n-gram, inside a window."""
    arrays: dict[str, Array]
    text: Array
    """(S,) bytes."""

    @classmethod
    def open(cls, folder: str | os.PathLike[str], model: BDH | None = None) -> Index:
        """Open an index.

        Args:
            folder: what `build_index` wrote.
            model: the model that it should be of.

        Raises:
            ValueError: no index, a damaged one, or one of another model.
        """
        path = Path(folder)
        if not (path / "index.json").is_file():
            raise ValueError(f"{path} is no index of neurons: expected a directory that bdh lens index wrote")
        try:
            about = json.loads((path / "index.json").read_text(encoding="utf-8"))
            if (found := about["plan"]["format"]) != FORMAT:
                raise ValueError(f"format {found}, expected {FORMAT}")
            index = cls._read(path, about)
        except (OSError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it and build it again") from None
        if model is not None and fingerprint(model) != index.plan.model:
            raise ValueError(f"{path} is the index of another model: expected one of these weights; build one for them")
        return index

    @classmethod
    def _read(cls, path: Path, about: dict[str, Any]) -> Index:
        plan = Plan.from_dict(about["plan"])
        neurons, levels, ngrams = (_read(path / f"{name}.parquet") for name in ("neurons", "levels", "ngrams"))
        shape = plan.shape.n_neurons, plan.shape.n_layer
        return cls(
            path=path,
            plan=plan,
            density=tuple(about["density"]),
            density_init=tuple(about["density_init"]),
            neurons=neurons,
            levels={name: column.reshape(shape) for name, column in levels.items()},
            ngrams=tuple(ngrams["ngram"]),
            counts=ngrams["count"],
            arrays={name: np.load(path / f"{name}.npy", mmap_mode="r") for name in _ARRAYS},
            text=np.memmap(path / "text.bin", dtype=np.uint8, mode="r"),
        )

    def neuron(self, name: int | str) -> NeuronPage:
        """Return all that is known of one neuron.

        Args:
            name: global id, as a number or a word (4521), or head and neuron inside it (h1:425).

        Raises:
            ValueError: no such neuron.
        """
        from bdh.lens.index.page import page_of

        return page_of(self, neuron_id(name, self.plan.shape))


def write_index(
    folder: Path,
    plan: Plan,
    tally: Tally,
    text: npt.NDArray[np.uint8],
    model: BDH,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write what was counted, and what the weights say, to a directory; all of it or nothing."""
    c, S = model.config, plan.n_bytes
    mean, std, largest, fires = tally.sums.result(S)
    lifts = _lifts(tally, fires.sum(0), S * c.n_layer)
    tell = functools.partial(progress, "wires") if progress else None
    ids, weights = partners(model, tell)
    with replacing_directory(folder) as work:
        arrays = {
            "contexts": _places(tally.top, c.n_layer),
            "context_strips": tally.top.strip,
            "samples": _places(tally.drawn, c.n_layer),
            "sample_strips": tally.drawn.strip,
            "histogram": _histogram(tally.above),
            "byte_fires": np.ascontiguousarray(tally.at_ngram[: _bytes_counted(tally)].T),
            "lifts": lifts,
            "logits": logit_effects(model).numpy(),
            "wires": _together(WIRE, ids, weights),
        }
        assert arrays.keys() == set(_ARRAYS)
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array)
        (work / "text.bin").write_bytes(text.tobytes())
        grams, counts = tally.ngrams.grams, tally.ngrams.counts
        _write(
            work / "ngrams.parquet",
            {"ngram": list(grams), "shown": list(map(shown, grams)), "count": counts},
        )
        _write(work / "levels.parquet", _levels(mean, std, largest, fires, S))
        _write(work / "neurons.parquet", _neurons(plan, tally, mean, largest, fires, lifts))
        start = init_density(c, to_ids(model, text[None, : plan.window]))
        about = {
            "plan": plan.to_dict(),
            "density": (fires.mean(1) / S).tolist(),
            "density_init": start[plan.signal.removesuffix("_sparse")],
            "edges": list(EDGES),
        }
        (work / "index.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def shown(ngram: bytes) -> str:
    """Return an n-gram as people can read it.

    Examples:
        >>> shown(b"e\\n "), shown(b"\\xc3")
        ('e␊␣', '0xC3')
    """
    return "".join(readable(ngram, "␣"))


def _bytes_counted(tally: Tally) -> int:
    return sum(len(gram) == 1 for gram in tally.ngrams.grams)


def _together(kind: np.dtype[Any], *columns: Array) -> Array:
    assert kind.names is not None
    out = np.zeros(columns[0].shape, kind)
    for name, column in zip(kind.names, columns, strict=True):
        out[name] = column
    return out


def _places(kept: Kept, n_layer: int) -> Array:
    """Kept places as records; those that are not there have the activation 0."""
    position, level = np.divmod(np.where(kept.key != NONE, kept.events(), 0), n_layer)
    return _together(PLACE, position, level, kept.activation)


def _histogram(above: Array) -> Array:
    """(N, L, bins) counts, from how many are in a bin or above it."""
    counts = above.copy()
    counts[:, :-1] -= above[:, 1:]
    return np.ascontiguousarray(counts.transpose(2, 0, 1))


def _lifts(tally: Tally, total: Array, cells: int) -> Array:
    """(N, 4, best) n-grams of each length, most surely lifted first; -1 where there are fewer."""
    lengths = np.array([len(gram) for gram in tally.ngrams.grams])
    out = np.zeros((len(total), len(LENGTHS), BEST_NGRAMS), LIFT)
    out["ngram"] = -1
    levels = tally.L
    for start in range(0, len(total), _BLOCK):
        at = slice(start, start + _BLOCK)
        for row, length in enumerate(LENGTHS):
            which = np.flatnonzero(lengths == length)
            fires = tally.at_ngram[which, at]
            delta, z = log_odds(fires.astype(np.float64), total[at], tally.ngrams.counts[which] * levels, cells)
            for rank, best in enumerate(np.argsort(-z, axis=0, kind="stable")[:BEST_NGRAMS]):
                pick = best, np.arange(len(best))
                found = _together(LIFT, which[best], fires[pick], delta[pick], z[pick])
                # what is not lifted at all is no finding
                out[at, row, rank] = np.where((z[pick] > 0) & (found["fires"] > 0), found, out[at, row, rank])
    return out


def _levels(mean: Array, std: Array, largest: Array, fires: Array, tokens: int) -> dict[str, Any]:
    L, N = fires.shape
    return {
        "neuron": np.repeat(np.arange(N, dtype=np.uint32), L),
        "level": np.tile(np.arange(L, dtype=np.uint8), N),
        "fires": fires.T.ravel().astype(np.uint32),
        "rate": (fires.T.ravel() / tokens).astype(np.float32),
        "mean": mean.T.ravel().astype(np.float32),
        "std": std.T.ravel().astype(np.float32),
        "largest": largest.T.ravel(),
    }


def _neurons(plan: Plan, tally: Tally, mean: Array, largest: Array, fires: Array, lifts: Array) -> dict[str, Any]:
    c = plan.shape
    N, K = c.n_neurons, c.neurons_per_head
    ids, total = np.arange(N), fires.sum(0)
    best = lifts.reshape(N, -1)
    best = best[ids, np.where(best["ngram"] >= 0, best["z"], -1).argmax(1)]
    return {
        "neuron": ids.astype(np.uint32),
        "head": (ids // K).astype(np.uint16),
        "index": (ids % K).astype(np.uint32),
        "fires": total.astype(np.uint64),
        "rate": (total / (plan.n_bytes * c.n_layer)).astype(np.float32),
        "largest": largest.max(0),
        "strongest_level": mean.argmax(0).astype(np.uint8),
        "period": (1 / ops.rotary.frequencies(K)).numpy()[ids % K // 2],
        "mean_place": np.divide(tally.place, total, out=np.full(N, np.nan), where=total > 0),
        "ngram": [shown(tally.ngrams.grams[number]) if number >= 0 else None for number in best["ngram"].tolist()],
        "z": np.where(best["ngram"] >= 0, best["z"], np.nan).astype(np.float32),
    }


def _write(file: Path, columns: dict[str, Any]) -> None:
    pyarrow, parquet = _parquet(file)
    parquet.write_table(pyarrow.table(columns), file)


def _read(file: Path) -> dict[str, Array]:
    _, parquet = _parquet(file)
    table = parquet.read_table(file)
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _parquet(file: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f'{file.name}: parquet files need pyarrow: pip install "bdh[lens]"') from None
    return pyarrow, pyarrow.parquet
