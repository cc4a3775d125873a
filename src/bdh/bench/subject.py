"""The model that all contenders are made from, at a known activity, and the tokens that it reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bdh import checkpoint
from bdh.bench.contenders import read_until
from bdh.bench.planted import plant
from bdh.bench.results import Density
from bdh.bench.settings import Point, Settings
from bdh.bench.worker import windows
from bdh.config import preset
from bdh.lens.density import DensityTap
from bdh.model import BDH, evaluating

PLANTED_TOKENS = 128
DENSITY_TOKENS = 512
"""Tokens that a density is measured on, at most; of `decode`, those after the context."""
DECODED_TOKENS = 16


@dataclass(frozen=True)
class Subject:
    """A model in eval mode without dropout, in float32, and tokens (n,) to cut texts from."""

    model: BDH
    tokens: Any

    @classmethod
    def make(cls, size: str, settings: Settings, text: bytes | None) -> Subject:
        """Make the model of a size with random weights, or load the trained one.

        Args:
            size: name of a preset; not looked at where a trained model was asked for.
            settings: density and seed.
            text: what the model reads; None for random bytes.
        """
        rng = np.random.default_rng(settings.seed)
        tokens = np.frombuffer(text, np.uint8) if text else rng.integers(0, 256, 2**16, dtype=np.uint8)
        if settings.run is not None:
            found = checkpoint.load(settings.run)
            model = BDH(replace(found.config, dropout=0.0))
            model.load_state_dict(found.state_dict())
        else:
            model = BDH.from_seed(preset(size, dropout=0.0), settings.seed)
            if settings.density == "planted":
                plant(model, torch.from_numpy(tokens[:PLANTED_TOKENS].astype(np.int64))[None])
        return cls(model.eval(), tokens)

    def save(self, directory: Path) -> None:
        """Write what a worker reads."""
        checkpoint.write_model(self.model, directory, None)
        np.save(directory / "tokens.npy", self.tokens)

    def density(self, point: Point) -> Density:
        """Measure the activity at a point: on the first tokens of its first sequence, or those after the context."""
        model, c = self.model, self.model.config
        tap = DensityTap(c.n_layer)
        idx, _ = windows(self.tokens, replace(point, batch_size=1))
        with evaluating(model):
            if point.work == "decode":
                state = read_until(model, idx, point.position)
                model.advance(idx[:, :DECODED_TOKENS], state, tap=tap)
            else:
                model(idx[:, :DENSITY_TOKENS], tap=tap)
        return {key: sum(levels) / c.n_layer for key, levels in tap.result().items() if key != "y"}
