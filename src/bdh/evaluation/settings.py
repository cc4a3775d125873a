"""What is asked of `bdh eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bdh.checks import check_one_text
from bdh.data.needle import FACTS, KEYS
from bdh.evaluation.recall import COUNT, DISTANCES


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to score a model on, and how.

    Raises:
        ValueError: a value is out of range, or two contradict each other.
    """

    dataset: str | None = None
    """Text to score: shakespeare, tiny-shakespeare, or NAME after bdh prepare NAME; its validation split."""
    data: Path | None = None
    """A file or directory of text to score instead, all of it, or prepared text. By default the text that the model
    was trained on; of that, however it is named, only what was held out."""
    block_size: int | None = None
    """Tokens of a window, each read from an empty state; by default as the model was trained."""
    stride: int | None = None
    """Tokens from one window to the next; the others of a window are context only. By default block_size."""
    stream: bool = False
    """Read all of the text as one stream, without windows."""
    by_position: bool = False
    """Also tell bits per byte by how much was read before, over blocks of 8 windows."""
    needle: bool = False
    """Also hide facts in the text and ask for them."""
    needle_distances: tuple[int, ...] = DISTANCES
    """Bytes between the facts and the question."""
    needle_count: int = COUNT
    """Needles per distance; more make the intervals narrower."""
    needle_facts: int = FACTS
    """Facts of a needle, one of which is asked for."""
    choices: Path | None = None
    """Also answer the questions of this file, lines {"prompt": ..., "choices": [...], "answer": index}; with it and
    nothing named of the text, nothing else is done."""
    max_bytes: int | None = None
    """Score about so many bytes from the beginning of the text at most."""
    seed: int = 0
    """Of the needles."""

    def __post_init__(self) -> None:
        check_one_text(self.data, self.dataset)
        if self.stream and (self.block_size is not None or self.stride is not None):
            raise ValueError("--stream has no windows: leave --block-size and --stride away")
        for name, least in (("block_size", 1), ("stride", 1), ("max_bytes", 2), ("needle_count", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected an integer >= {least}")
        if not self.needle_distances or min(self.needle_distances) < 0:
            got = " ".join(map(str, self.needle_distances)) or "without any"
            raise ValueError(f"--needle-distances {got}: expected integers >= 0")
        if self.needle_facts not in range(1, len(KEYS) + 1):
            raise ValueError(f"--needle-facts {self.needle_facts}: expected 1 .. {len(KEYS)}")
        asked = self.needle_distances, self.needle_count, self.needle_facts
        if not self.needle and asked != (DISTANCES, COUNT, FACTS):
            raise ValueError("--needle-distances, --needle-count and --needle-facts are of needles: add --needle")

    @property
    def wants_text(self) -> bool:
        """Whether a text is to be scored."""
        named = (self.dataset, self.data, self.block_size, self.stride, self.max_bytes)
        return self.choices is None or any(value is not None for value in named) or self.wants_more

    @property
    def wants_more(self) -> bool:
        """Whether the text is to be read in other ways too."""
        return self.stream or self.by_position or self.needle
