"""Bits per byte are those of the model, beside what they have to beat."""

import math

import pytest
import torch

from bdh import BDH
from bdh.lens import neuron_statistics, overview, overview_panel

TEXT = b"to be or not to be, that is the question; " * 12


def test_bits_are_the_mean_surprisal_of_windows(tiny: BDH) -> None:
    statistics = neuron_statistics(tiny, TEXT)
    found = overview(tiny, TEXT, statistics, window=50)
    for window, bits in ((50, found.bits), (100, found.farther)):
        losses = []
        for start in range(0, len(TEXT) - window, window):
            idx = torch.tensor([list(TEXT[start : start + window + 1])])
            with torch.no_grad():
                losses.append(tiny(idx[:, :-1], idx[:, 1:])[1].item())
        assert bits == pytest.approx(sum(losses) / len(losses) / math.log(2), rel=1e-5)
    assert found.bits != pytest.approx(found.farther, rel=1e-5)
    assert (found.window, found.n_bytes) == (50, 500)
    assert overview(tiny, TEXT[:60], statistics, window=50).farther is None
    share = [TEXT.count(byte) / len(TEXT) for byte in set(TEXT)]
    assert found.frequencies == pytest.approx(-sum(p * math.log2(p) for p in share))
    assert not math.isclose(found.bits, found.untrained, rel_tol=1e-3)
    silent = (statistics.fires == 0).double().mean(1)
    assert list(found.silent) == pytest.approx(silent.tolist())


def test_an_untrained_model_is_called_so(tiny: BDH) -> None:
    fresh = BDH.from_seed(tiny.config, 0)
    found = overview(fresh, TEXT, neuron_statistics(fresh, TEXT))
    assert found.bits == found.untrained
    assert not found.trained
    assert overview_panel(found, {}).note.startswith("Not trained")
    panel = overview_panel(found, {"origin": "a test"})
    assert ("origin", "a test") in panel.tables["Settings and origin"].rows
    assert f"{found.untrained:.2f} with random weights" in panel.baseline
