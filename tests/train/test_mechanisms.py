"""Training of models with mechanisms: resume, losses on activity, what is shown and logged."""

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from bdh import BDH, BDHConfig, TrainConfig
from bdh.data import Corpus
from bdh.mechanisms import rate_loss, sparsity_loss
from bdh.sections import LIF, Criticality, HiPPOMemory
from bdh.train import Reporter, Run, fit
from bdh.train.losses import ActivityLosses
from tolerances import SAME, error

SHAPE = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.1}
TRAIN = TrainConfig(
    block_size=40, batch_size=2, max_steps=8, warmup_steps=2, eval_interval=4, log_interval=1, save_every=3,
    learning_rate=1e-2, device="cpu", seed=3,
)  # fmt: skip
KINDS = {
    "hatching": {"variant": "hatching"},
    "advanced": {"variant": "advanced", "criticality": Criticality(target=0.98, steps=8)},
    "lif": {"lif": LIF(tau=10.0, reset="hard", refractory=1)},
    "hippo": {"hippo": HiPPOMemory(measure="legt", theta=20.0)},
}


def corpus() -> Corpus:
    tokens = np.frombuffer(b"the cat sat on the mat. " * 60, dtype=np.uint8)
    return Corpus("cats", tokens[:1200], tokens[1200:], {"source": "test"})


def train(path: Path, kind: str, config: TrainConfig = TRAIN, reporter: Reporter | None = None):
    model = BDH.from_seed(BDHConfig(**(SHAPE | KINDS[kind])), config.seed)
    result = fit(model, corpus(), config, Run(path), reporter or Reporter(Console(file=io.StringIO())))
    return model, result


def metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_equals_uninterrupted(kind: str, tmp_path: Path) -> None:
    whole, expected = train(tmp_path / "whole", kind)

    class Interrupting(Reporter):
        def step(self, record: dict, *rest) -> None:
            if record["step"] == 5:
                os.kill(os.getpid(), signal.SIGINT)

    _, first = train(tmp_path / "cut", kind, reporter=Interrupting(Console(file=io.StringIO())))
    assert (first.step, first.interrupted) == (5, "SIGINT")
    resumed, second = train(tmp_path / "cut", kind)
    assert second.val_loss == expected.val_loss
    for name, tensor in whole.state_dict().items():  # thresholds, gains and counters too
        assert torch.equal(resumed.state_dict()[name], tensor), name
    told = [{k: r[k] for k in ("train_loss", "firing") if k in r} for r in metrics(tmp_path / "whole")]
    assert [{k: r[k] for k in ("train_loss", "firing") if k in r} for r in metrics(tmp_path / "cut")] == told


def test_firing_is_shown_and_logged(tmp_path: Path) -> None:
    out = io.StringIO()
    model, _ = train(tmp_path, "hatching", reporter=Reporter(Console(file=out, width=200)))
    shown, logged = out.getvalue(), [r for r in metrics(tmp_path) if "firing" in r]
    assert "(target 10.0)" in shown
    assert all(word in shown for word in ("spiking per level", "dead", "saturated", "branching ratio"))
    assert len(logged) == 3
    assert logged[-1]["firing_target"] == 0.1
    assert 0.05 < logged[0]["firing"]["rate"][0] < 0.2  # calibrated before the first step
    threshold = model.parts.lif[0].threshold
    assert not torch.equal(threshold, BDH.from_seed(model.config, TRAIN.seed).parts.lif[0].threshold)
    assert not any("firing" in r for r in metrics_of_plain(tmp_path / "plain"))


def metrics_of_plain(path: Path) -> list[dict]:
    fit(BDH.from_seed(BDHConfig(**SHAPE), 0), corpus(), TRAIN, Run(path), Reporter(Console(file=io.StringIO())))
    return metrics(path)


def test_losses_on_activity_are_reported_apart_and_lower_it(tmp_path: Path) -> None:
    plain = TrainConfig(**(TRAIN.to_dict() | {"max_steps": 30, "eval_interval": 30}))
    sparse = TrainConfig(**(plain.to_dict() | {"sparse_weight": 3.0, "rate_weight": 10.0}))
    before, _ = train(tmp_path / "plain", "lif", plain)
    after, _ = train(tmp_path / "sparse", "lif", sparse)
    last = [r for r in metrics(tmp_path / "sparse") if "train_loss" in r][-1]
    assert {"train_loss", "sparse_loss", "rate_loss"} <= last.keys()
    idx = torch.from_numpy(corpus().validation[:40].astype("int64"))[None]

    def strength(model: BDH) -> float:
        return sum(level.to_dense().mean().item() for level in model.get_sparse_activations(idx))

    assert strength(after) < 0.7 * strength(before)


def test_a_window_in_pieces_costs_what_it_costs_in_one() -> None:
    model = BDH.from_seed(BDHConfig(**(SHAPE | {"dropout": 0.0})), 0)
    losses = ActivityLosses(model.config, TrainConfig(sparse_weight=2.0))
    idx = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    model(idx, tap=losses)
    whole = losses.take()
    state = None
    for piece in idx.split([4, 26], dim=1):
        _, state = model.advance(piece, state, tap=losses)
    assert error(losses.take().detach(), whole.detach()) < SAME[torch.float32]


def test_activity_losses_are_those_of_their_equations() -> None:
    config = BDHConfig(**(SHAPE | KINDS["lif"] | {"dropout": 0.0}))
    model = BDH.from_seed(config, 0)
    losses = ActivityLosses(config, TrainConfig(sparse_weight=2.0, rate_weight=5.0))
    idx = torch.randint(0, 256, (2, 30), generator=torch.Generator().manual_seed(0))
    model(idx[:, :12], tap=losses)
    losses.take()  # of another window
    model(idx, tap=losses)
    x = [level.to_dense() for level in model.get_sparse_activations(idx)]
    rates = [level.to_dense().mean((0, 1)) for level in model.get_spikes(idx)]
    expected = 2.0 * sum(map(sparsity_loss, x)) / 2 + 5.0 * sum(rate_loss(r, 0.1) for r in rates) / 2
    total = losses.take()
    assert error(total.detach(), expected) < SAME[torch.float32]
    total.backward()
    assert model.encoder.grad.norm() > 0
