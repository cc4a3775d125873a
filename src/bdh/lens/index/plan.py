"""What an index is of: the model, the text and the settings, by which two indexes are told apart."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bdh.checkpoint import fingerprint
from bdh.checks import Json, check_int, fail
from bdh.config import BDHConfig
from bdh.lens.names import check_signal
from bdh.model import BDH

FORMAT = 1
MOST_EVENTS = 2**32
"""Places (position, level) that an event has numbers for."""


@dataclass(frozen=True, kw_only=True)
class Plan(Json):
    """Everything that the content of an index follows from.

    Raises:
        ValueError: a setting is out of range.
    """

    model: str
    """Hash of the weights."""
    text: str
    """SHA-256 of the text."""
    n_bytes: int
    """Its length."""
    config: dict[str, Any] = field(repr=False)
    """Fields of the model's config."""
    signal: str = "x_sparse"
    """x_sparse, y_sparse or xy_sparse."""
    window: int = 256
    """Bytes read from one empty state."""
    seed: int = 0
    """Of the sample."""
    top: int = 20
    """Strongest contexts kept per neuron, at most one of a window."""
    samples: int = 40
    """Places drawn per neuron from all at which it fires."""
    before: int = 24
    """Bytes before an example whose activations are kept."""
    after: int = 7
    """Bytes after it."""
    ngrams: int = 512
    """N-grams counted of each length from 2 to 4: those that the text has most often."""
    format: int = FORMAT
    """Of the files."""

    def __post_init__(self) -> None:
        check_signal(self.signal)
        for name in ("window", "top", "samples"):
            check_int(self, name)
        for name in ("seed", "before", "after", "ngrams"):
            check_int(self, name, low=0)
        if self.seed >= 2**63:
            fail("seed", self.seed, "an integer below 2**63", "choose a smaller one")
        if self.n_bytes * self.shape.n_layer >= MOST_EVENTS:
            most = (MOST_EVENTS - 1) // self.shape.n_layer
            fail("text", f"{self.n_bytes:,} bytes", f"at most {most:,}", "index a part of it")

    @classmethod
    def of(cls, model: BDH, text: npt.NDArray[np.uint8], **settings: Any) -> Plan:
        """Return the plan for a model and a text."""
        digest = hashlib.sha256(text.tobytes()).hexdigest()
        config = model.config.to_dict()
        return cls(model=fingerprint(model), text=digest, n_bytes=len(text), config=config, **settings)

    @property
    def shape(self) -> BDHConfig:
        """The config of the model."""
        return BDHConfig.from_dict(self.config)

    def differs(self, other: Plan) -> str:
        """Return the names of the fields in which another plan differs; empty if it is the same."""
        names = [f.name for f in dataclasses.fields(self)]
        return ", ".join(name for name in names if getattr(self, name) != getattr(other, name))
