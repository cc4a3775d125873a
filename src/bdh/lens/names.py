"""The names of what a model computes: one table of places, and the TransformerLens-style names that people know.

Shapes: B batch, T tokens, H heads, K neurons per head, D embedding, V vocabulary.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from bdh.config import BDHConfig
from bdh.model import BDH


@dataclass(frozen=True)
class Place:
    """A place of the walk whose tensor has a name.

    Examples:
        >>> Place("layers.{i}.v", "B T D", "v*", "blocks.{i}.hook_resid_post", "residual stream").at(2)
        'layers.2.v'
    """

    name: str
    """With `{i}` for the level, where the place is inside one."""
    letters: str
    """Letters of the shape; T is always the last but one."""
    paper: str
    """Symbol in the paper (arXiv 2509.26507); empty where it has none."""
    alias: str
    """The same in the style of TransformerLens."""
    meaning: str

    @property
    def is_of_level(self) -> bool:
        """Whether every level has one."""
        return "{i}" in self.name

    def at(self, level: int | str) -> str:
        """Return the name at a level ("*" for a pattern of all); outside the levels the name as it is."""
        return self.name.format(i=level)

    def shape(self, config: BDHConfig, batch: int, tokens: int) -> tuple[int, ...]:
        """Return the shape of the tensor for so many sequences of so many tokens."""
        c = config
        sizes = {"B": batch, "T": tokens, "H": c.n_head, "K": c.neurons_per_head, "D": c.n_embd, "V": c.vocab_size}
        return tuple(sizes[letter] for letter in self.letters.split())


_NEURONS, _STREAM, _L, _B = "B H T K", "B T D", "layers.{i}", "blocks.{i}"
PLACES = (
    Place("embed", _STREAM, "v*_0", "hook_embed", "normalised embedding, `v` before the first level"),
    Place(f"{_L}.x_pre", _NEURONS, "", f"{_B}.hook_x_pre", "drive of the neurons, any sign"),
    Place(f"{_L}.spikes", _NEURONS, "", f"{_B}.hook_spikes", "0 or 1; models with spiking neurons only"),
    Place(f"{_L}.x_sparse", _NEURONS, "x", f"{_B}.hook_x_sparse", "activity of the neurons, nonnegative"),
    Place(f"{_L}.value", _STREAM, "v*", f"{_B}.attn.hook_v", "what the memory stores of the token: `v` entering"),
    Place(f"{_L}.attn_out", "B H T D", "a*", f"{_B}.hook_attn_out", "memory read, before its norm"),
    Place(f"{_L}.y_pre", _NEURONS, "", f"{_B}.hook_y_pre", "drive of the gate, any sign"),
    Place(f"{_L}.y_sparse", _NEURONS, "", f"{_B}.hook_y_sparse", "gate, before the product"),
    Place(f"{_L}.xy_sparse", _NEURONS, "y", f"{_B}.hook_xy_sparse", "gated activity, what the decoder reads"),
    Place(f"{_L}.v", _STREAM, "v*", f"{_B}.hook_resid_post", "residual stream after the level"),
    Place("logits", "B T V", "", "hook_logits", "readout"),
)
"""Every place, in the order in which the walk comes to it."""

SIGNALS = ("x_sparse", "y_sparse", "xy_sparse")
"""What is recorded per neuron: activity, gate, gated activity (the paper's y)."""


def names_of(model: BDH) -> tuple[str, ...]:
    """Return all names that `record` knows for this model, in the order in which it makes the tensors.

    Examples:
        >>> from bdh import BDHConfig
        >>> names_of(BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)))[:3]
        ('embed', 'layers.0.x_pre', 'layers.0.x_sparse')
    """
    return tuple(places_of(model))


def places_of(model: BDH) -> dict[str, Place]:
    """Return the place of each name of this model, in the order of the walk."""
    return _places(model.config.n_layer, model.config.lif.on)


def _places(n_layer: int, spiking: bool) -> dict[str, Place]:
    here = [place for place in PLACES if spiking or not place.name.endswith(".spikes")]
    first, inside, last = here[0], here[1:-1], here[-1]
    levels = {place.at(level): place for level in range(n_layer) for place in inside}
    return {first.name: first, **levels, last.name: last}


def canonical(name: str) -> str:
    """Return this package's name for a name in the style of TransformerLens; any other comes back as it is.

    Examples:
        >>> canonical("blocks.2.hook_resid_post"), canonical("blocks.2.hook_resid_pre"), canonical("logits")
        ('layers.2.v', 'layers.1.v', 'logits')
    """
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    level, alias = (int(found[1]), f"{_B}.{found[2]}") if found else (0, name)
    if alias == f"{_B}.hook_resid_pre":  # the only one that is another level's
        return f"layers.{level - 1}.v" if level else "embed"
    return next((place.at(level) for place in PLACES if place.alias == alias), name)


def matching(model: BDH, patterns: str | Sequence[str]) -> dict[str, Place]:
    """Return the names, and their places, that match any of the patterns.

    Args:
        model: the model.
        patterns: with `*`, `?`, `[...]`, of this package's names or of TransformerLens-style ones.

    Raises:
        ValueError: no pattern, or one that matches nothing, so that nothing is silently empty.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    if not patterns:
        raise ValueError("names=(): expected at least one name or pattern; for example 'layers.*.x_sparse'")
    return dict(_matching(model.config.n_layer, model.config.lif.on, patterns))


# who records token by token asks at every token: looking names up again would cost more than keeping the tensors
@lru_cache(maxsize=64)
def _matching(n_layer: int, spiking: bool, patterns: tuple[str, ...]) -> Mapping[str, Place]:
    known = _places(n_layer, spiking)
    own, foreign = {name: name for name in known}, _aliases(n_layer, known)
    wanted: set[str] = set()
    for pattern in patterns:
        # "*_v" means names of this package: the other ones answer only to patterns that begin like them
        called = foreign if pattern.startswith(("blocks", "hook")) else own
        found = {name for call, name in called.items() if fnmatchcase(call, pattern)}
        if not found:
            raise ValueError(f"names: {pattern!r} matches nothing in this model; {near(pattern, tuple(called))}")
        wanted |= found
    return {name: place for name, place in known.items() if name in wanted}


def _aliases(n_layer: int, known: dict[str, Place]) -> dict[str, str]:
    levels = range(n_layer)
    places = dict.fromkeys(known.values())
    aliases = [place.alias.format(i=level) for place in places for level in (levels if place.is_of_level else [0])]
    return {alias: canonical(alias) for alias in [*aliases, *(f"blocks.{i}.hook_resid_pre" for i in levels)]}


def near(name: str, known: Sequence[str]) -> str:
    """Say which known names are like this one, or else all of them."""
    close = difflib.get_close_matches(name, known, 3, cutoff=0.5)
    return "did you mean " + " or ".join(map(repr, close)) + "?" if close else "known: " + ", ".join(known)


def check_signal(signal: str) -> None:
    """Raise ValueError unless `signal` is one of `SIGNALS`."""
    if signal not in SIGNALS:
        raise ValueError(f"signal={signal!r}: expected one of {', '.join(SIGNALS)}; {near(signal, SIGNALS)}")


def neuron_id(name: int | str, config: BDHConfig) -> int:
    """Return the global id h*K + k of a neuron that is called by it, or by head and neuron inside the head.

    Args:
        name: a global id (4521, "4521"), or "h1:425".
        config: of the model.

    Raises:
        ValueError: no such neuron, or no name of one.

    Examples:
        >>> config = BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
        >>> neuron_id("h1:7", config), neuron_id(39, config)
        (39, 39)
    """
    found = re.fullmatch(r"(?:h(\d+):)?(\d+)", str(name).strip())
    N, H, K = config.n_neurons, config.n_head, config.neurons_per_head
    expected = f"expected 0..{N - 1}, or h0:0 .. h{H - 1}:{K - 1} for head and neuron inside it"
    if found is None:
        raise ValueError(f"neuron {name!r}: {expected}")
    head, number = (None if part is None else int(part) for part in found.groups())
    assert number is not None
    if (head is None and number >= N) or (head is not None and (head >= H or number >= K)):
        raise ValueError(f"neuron {name}: there is no such neuron; {expected}")
    return number if head is None else head * K + number


def table() -> str:
    """Return all places as the Markdown table that the documentation shows.

    Examples:
        >>> print(table().splitlines()[-1])
        | `logits` | (B, T, V) | readout |  | `hook_logits` |
    """
    lines = ["| name | shape | what | paper | TransformerLens style |", "|---|---|---|---|---|"]
    for place in PLACES:
        shape = ", ".join(place.letters.split())
        lines.append(f"| `{place.name}` | ({shape}) | {place.meaning} | {place.paper} | `{place.alias}` |")
    return "\n".join(lines)
