"""What happens to the next bytes when a unit is taken away, in sentences of the concept and of the contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bdh.lens.intervene import intervene
from bdh.lens.interventions import Intervention
from bdh.lens.probing.concept import Sentence
from bdh.lens.probing.ranks import Array, dominance
from bdh.lens.probing.units import padded
from bdh.model import BDH, evaluating


@dataclass(frozen=True, eq=False)
class Change:
    """By how much the predictions from the last byte of the word on change, sentence by sentence."""

    divergence: Array
    """(S,) mean Kullback-Leibler divergence of the next byte, without the unit from with it, nats per byte."""
    loss: Array
    """(S,) growth of the mean loss of the bytes that follow the word, the line break at the end included; nats."""

    def gap(self) -> float:
        """Return how much larger the divergence is in sentences of the concept, the first half of them; nats."""
        concept, contrast = np.split(self.divergence, 2)
        return float(concept.mean() - contrast.mean())

    def loss_gap(self) -> float:
        """Return how much more the loss grows in sentences of the concept; nats."""
        concept, contrast = np.split(self.loss, 2)
        return float(concept.mean() - contrast.mean())

    def effect(self) -> float:
        """Return the rank-biserial correlation of the divergence, of the concept against the contrast.

        The mean gap would compare units by how much they do at all, which differs by orders of magnitude between
        units that are equally active.
        """
        concept, contrast = np.split(self.divergence, 2)
        return float(dominance(concept[None, :, None], contrast[None, :, None])[0, 0, 0])


class Predictions:
    """What a model predicts in some sentences, to compare with what it predicts without some of its parts.

    Args:
        model: the model.
        sentences: those of the concept, then as many of the contrast.
    """

    def __init__(self, model: BDH, sentences: Sequence[Sentence]) -> None:
        self._model, self._sentences = model, sentences
        self._whole = self._read()

    def without(self, removal: Sequence[Intervention]) -> Change:
        """Return what changes under interventions."""
        divergence, loss = [], []
        with intervene(self._model, removal):
            changed = self._read()
        for (with_it, targets, inside), (without_it, _, _) in zip(self._whole, changed, strict=True):
            n = inside.sum(1)
            each = (with_it.exp() * (with_it - without_it)).sum(-1)  # (n, T)
            divergence.append((each * inside).sum(1) / n)
            lost = (with_it - without_it).gather(-1, targets[..., None])[..., 0]
            loss.append((lost * inside).sum(1) / n)
        return Change(torch.cat(divergence).numpy(), torch.cat(loss).numpy())

    def _read(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """By block: log-probabilities (n, T, V) in float64, the bytes that follow (n, T), what counts (n, T)."""
        found = []
        for _, idx, inside in padded(self._model, self._sentences):
            with evaluating(self._model):
                logits, _ = self._model(idx)
            # a line break follows every sentence, as it stands before the next one
            following = torch.cat((idx[:, 1:], torch.full_like(idx[:, :1], ord("\n"))), 1)
            found.append((logits.double().log_softmax(-1).cpu(), following.cpu(), inside.cpu()))
        return found
