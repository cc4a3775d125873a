"""What a step reads and remembers: as one long pass would, value and gradient, row by row."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from bdh import BDH, BDHConfig, TrainConfig, manifest, ops
from bdh.config import preset
from bdh.data import Corpus
from bdh.model import cross_entropy
from bdh.ops import native
from bdh.sections import LIF, HiPPOMemory
from bdh.train import Reporter, Run, fit
from bdh.train.fit import Training
from bdh.train.reading import Reading
from bdh.train.sharing import Copies
from bdh.train.validation import validation_loss
from tolerances import CONTROL, SAME, error

SHAPE = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0)
HATCHING = preset("nano", n_layer=2, n_embd=16, dropout=0.0, variant="hatching")
TRAIN = TrainConfig(
    block_size=8, batch_size=2, batches="streams", max_steps=8, warmup_steps=1, learning_rate=1e-2,
    eval_interval=4, log_interval=1, save_every=4, eval_windows=4, dtype="float32",
)  # fmt: skip
TEXT = np.frombuffer(b"\0the cat sat on the mat\0a dog\0she sells sea shells by the sea shore" * 4, np.uint8)
CORPUS = Corpus("cats", TEXT, TEXT[:90], separator=0)


def documents() -> list[Tensor]:
    ends = [*np.flatnonzero(TEXT == 0)[1:], len(TEXT)]
    starts = np.flatnonzero(TEXT == 0)
    return [torch.from_numpy(TEXT[a:b].astype(np.int64)) for a, b in zip(starts, ends, strict=True)]


def model_of(config: BDHConfig = SHAPE) -> BDH:
    model = BDH.from_seed(config, 0).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@pytest.mark.parametrize("config", [SHAPE, HATCHING], ids=["bdh", "hatching"])
def test_losses_are_those_of_whole_documents(config: BDHConfig) -> None:
    model = model_of(config).eval()
    reading = Reading(Copies(model, TRAIN), CORPUS, TRAIN)
    losses: list[float] = []
    scored = inside = 0
    with torch.no_grad():
        for step in range(reading.order.steps_per_epoch):
            (batch,) = reading.order.passes(step)
            inside += int(batch.fresh[:, 1:].sum())
            ((loss, weight),) = reading.losses(step, {})
            assert weight == 1
            losses.append(loss.item())
            scored += batch.targets.numel()
        assert inside > 1, "no document began inside a window"
        # what the rows read: documents from their beginning, save the one in which the second row began
        expected = _explicit(model, reading)
    size = batch.targets.numel()
    assert sum(losses) * size == pytest.approx(expected[0], rel=1e-9)
    assert scored == expected[1]
    # a control: with no memory carried the losses are others
    with torch.no_grad():
        batches = [next(iter(reading.order.passes(step))) for step in range(reading.order.steps_per_epoch)]
        forgetful = [model(batch.idx, batch.targets)[1].item() for batch in batches]
    assert max(abs(mine - other) for mine, other in zip(losses, forgetful, strict=True)) > 0.01


def _explicit(model: BDH, reading: Reading) -> tuple[float, int]:
    """Loss and count of the same documents, each read in one pass."""
    texts: list[tuple[list[int], list[int]]] = []
    rows: list[tuple[list[int], list[int]]] = [([], []), ([], [])]
    for step in range(reading.order.steps_per_epoch):
        (batch,) = reading.order.passes(step)
        for row in range(2):
            for token, target, begins in zip(*(part[row].tolist() for part in batch[:3]), strict=True):
                if begins:
                    rows[row] = ([], [])
                    texts.append(rows[row])
                rows[row][0].append(token)
                rows[row][1].append(target)
    total = 0.0
    for idx, targets in texts:
        total += cross_entropy(model(torch.tensor([idx]))[0], torch.tensor([targets])).item() * len(idx)
    return total, sum(len(idx) for idx, _ in texts)


def test_gradients_inside_a_window_are_those_of_one_pass_after_a_detached_beginning() -> None:
    model = model_of()
    reading = Reading(Copies(model, TRAIN), CORPUS, replace(TRAIN, batch_size=1))
    steps = [next(iter(reading.order.passes(step))) for step in range(6)]
    # a window that goes on with a document of which a window was read, or more
    at = next(n for n in range(1, 6) if not (steps[n - 1].fresh[0, 1:].any() or steps[n].fresh.any()))
    with torch.no_grad():
        for step in range(at):
            list(reading.losses(step, {}))
    ((loss, _),) = reading.losses(at, {})
    got = torch.autograd.grad(loss, list(model.parameters()))
    read = torch.cat([steps[n].idx for n in range(at)], dim=1)
    begin = int(torch.cat([steps[n].fresh for n in range(at)], dim=1)[0].nonzero().max())
    with torch.no_grad():
        _, state = model.advance(read[:, begin:])
    logits, _ = model.advance(steps[at].idx, state.detach())
    expected = torch.autograd.grad(cross_entropy(logits, steps[at].targets), list(model.parameters()))
    alone = torch.autograd.grad(model(steps[at].idx, steps[at].targets)[1], list(model.parameters()))
    for mine, theirs, control in zip(got, expected, alone, strict=True):
        assert error(mine, theirs) <= 1e3 * SAME[torch.float64]
        assert mine.norm() == 0 or error(control, theirs) > CONTROL


@pytest.mark.parametrize("config", [SHAPE, HATCHING], ids=["bdh", "hatching"])
def test_gradients_of_texts_that_begin_inside_a_window_are_those_of_each_alone(config: BDHConfig) -> None:
    model = model_of(config)
    reading = Reading(Copies(model, TRAIN), CORPUS, replace(TRAIN, batch_size=1, block_size=60))
    ((loss, _),) = reading.losses(0, {})
    got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    (batch,) = reading.order.passes(0)
    cuts = [*batch.fresh[0].nonzero().flatten().tolist(), 60]
    assert len(cuts) > 3
    alone = [
        cross_entropy(model(batch.idx[:, a:b])[0], batch.targets[:, a:b]) * (b - a) / 60 for a, b in pairwise(cuts)
    ]
    expected = torch.autograd.grad(sum(alone), list(model.parameters()), allow_unused=True)
    leaking = torch.autograd.grad(model(batch.idx, batch.targets)[1], list(model.parameters()), allow_unused=True)
    for mine, theirs, control in zip(got, expected, leaking, strict=True):
        if theirs is not None and theirs.norm() > 0:
            assert error(mine, theirs) <= 1e3 * SAME[torch.float64]
            assert error(control, theirs) > CONTROL


@pytest.mark.parametrize("config", [SHAPE, HATCHING], ids=["bdh", "hatching"])
def test_a_resumed_run_takes_the_same_steps(config: BDHConfig, tmp_path: Path) -> None:
    train = replace(TRAIN, grad_acc_steps=2)
    fit(BDH.from_seed(config, 0), CORPUS, train, Run(tmp_path / "whole"))
    half = tmp_path / "again"
    _copy_until(tmp_path / "whole", half, step=4)
    resumed = BDH.from_seed(config, 1)
    fit(resumed, CORPUS, train, Run(half))
    end = "checkpoints/step-00000008"
    for name in ("model.safetensors", "optimizer.safetensors", "state-0.safetensors", "state-1.safetensors"):
        mine, theirs = (load_file(folder / end / name) for folder in (half, tmp_path / "whole"))
        assert mine.keys() == theirs.keys()
        assert all(mine[key].equal(theirs[key]) for key in mine), name
    # a control: without what the rows remembered the steps are others
    forgetful = tmp_path / "forgetful"
    _copy_until(tmp_path / "whole", forgetful, step=4)
    source = tmp_path / "whole" / end
    for number in range(2):
        file = f"state-{number}.safetensors"
        (forgetful / "checkpoints/step-00000004" / file).write_bytes((source / file).read_bytes())
    manifest.write(forgetful / "checkpoints/step-00000004")
    fit(BDH.from_seed(config, 1), CORPUS, train, Run(forgetful))
    mine, theirs = (load_file(folder / end / "model.safetensors") for folder in (forgetful, tmp_path / "whole"))
    assert not mine["encoder"].equal(theirs["encoder"])


def _copy_until(source: Path, target: Path, step: int) -> None:
    """A copy of a run as it stood at a step."""
    name = f"step-{step:08d}"
    (target / "checkpoints").mkdir(parents=True)
    (target / "checkpoints" / name).mkdir()
    for file in (source / "checkpoints" / name).iterdir():
        (target / "checkpoints" / name / file.name).write_bytes(file.read_bytes())
    (target / "checkpoints" / "last").write_text(name + "\n")
    (target / "run.json").write_bytes((source / "run.json").read_bytes())


def test_without_gradient_through_time_values_stay_and_keys_and_values_are_constants() -> None:
    model = model_of(replace(SHAPE, n_layer=1))
    windows = replace(TRAIN, batches="windows")
    plain, cut = (Reading(Copies(model, TRAIN), CORPUS, replace(windows, bptt=bptt)) for bptt in ("window", "none"))
    parameters = [model.embed.weight, model.encoder, model.encoder_v, model.decoder, model.lm_head]
    ((loss, _),), ((same, _),) = plain.losses(0, {}), cut.losses(0, {})
    assert same.item() == pytest.approx(loss.item(), rel=1e-12)
    got = torch.autograd.grad(same, parameters)
    (batch,) = cut.order.passes(0)
    expected = torch.autograd.grad(_with_constant_memory(model, batch.idx, batch.targets), parameters)
    through = torch.autograd.grad(loss, parameters)
    for mine, theirs in zip(got, expected, strict=True):
        assert error(mine, theirs) <= 1e2 * SAME[torch.float64]
    assert error(through[1], expected[1]) > CONTROL


def _with_constant_memory(model: BDH, idx: Tensor, targets: Tensor) -> Tensor:
    """One level written out: the loss with keys and values detached."""

    def norm(x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:])

    v = norm(model.embed(idx))
    x = (v[:, None] @ model.encoder).relu()
    q = ops.rotate(x, ops.rotation(model.config.neurons_per_head, 0, idx.shape[1], like=model.encoder))
    a = (q @ q.detach().mT).tril(-1) @ v.detach()[:, None]
    y = (norm(a) @ model.encoder_v).relu()
    write = (x * y).transpose(1, 2).flatten(2) @ model.decoder
    return cross_entropy(norm(v + norm(write)) @ model.lm_head, targets)


def test_streams_and_constant_memory_go_together_over_long_windows() -> None:
    long = replace(TRAIN, bptt="none", block_size=300, batch_size=1)
    text = np.tile(TEXT, 4)
    model = model_of()
    reading = Reading(Copies(model, TRAIN), Corpus("long", text, text), long)
    for step in range(2):  # longer than a block: the state between blocks is a constant too
        ((loss, _),) = reading.losses(step, {})
        loss.backward()
    assert model.encoder.grad.isfinite().all()


@pytest.mark.parametrize(
    ("config", "train", "said"),
    [
        (replace(SHAPE, hippo=HiPPOMemory(measure="legs")), TRAIN, "use --hippo.measure legt"),
        (replace(SHAPE, lif=LIF(tau=2.0)), replace(TRAIN, batches="windows", bptt="none"), "got lif"),
    ],
)
def test_what_cannot_be_is_refused(config: BDHConfig, train: TrainConfig, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Reading(Copies(BDH.from_seed(config, 0), TRAIN), CORPUS, train)


@pytest.mark.skipif(not native.available(), reason=f"native back end {native.why_not}")
def test_kernels_carry_a_memory_as_composed_levels_do(tmp_path: Path) -> None:
    curves = []
    for backend in ("native", "composed"):
        run = Run(tmp_path / backend)
        fit(BDH.from_seed(SHAPE, 0), CORPUS, replace(TRAIN, backend=backend), run)
        records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        curves.append([record["train_loss"] for record in records if "train_loss" in record])
    assert len(curves[0]) == TRAIN.max_steps
    assert curves[0] == pytest.approx(curves[1], abs=1e-5, rel=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "tiled"},
        {"backend": "tiled", "batches": "windows", "bptt": "none"},
        {"compile": True},
        {"batches": "rivers"},
        {"bptt": "all"},
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        TrainConfig(**({"batches": "streams"} | wrong))


def test_the_memory_of_a_preset_is_carried_by_every_step() -> None:
    reading = Reading(Copies(BDH.from_seed(preset("nano"), 0), TRAIN), CORPUS, replace(TRAIN, batch_size=1))
    for step in range(3):
        list(reading.losses(step, {}))
        assert reading.states[0].position == (step + 1) * TRAIN.block_size
        assert not reading.states[0].rho[0].requires_grad


@pytest.mark.parametrize(("config", "apart"), [(SHAPE, True), (HATCHING, False)], ids=["bdh", "hatching"])
def test_validation_of_streams_reads_documents_apart(config: BDHConfig, apart: bool, tmp_path: Path) -> None:
    train = replace(TRAIN, block_size=40, batch_size=1, eval_windows=None, max_steps=1, warmup_steps=0)
    training = Training(model_of(config), CORPUS, train, Run(tmp_path), Reporter(Console(quiet=True)))
    model = training.model.eval()
    found = validation_loss(model, *training.val, **training._validated())
    whole = validation_loss(model, *training.val, at_once=1)
    assert (found != whole) == apart
    if apart:
        idx, targets = training.val
        cuts = [[0, *row.nonzero().flatten().tolist(), 40] for row in idx == 0]
        pieces = [
            (row[None, a:b], goals[None, a:b])
            for row, goals, at in zip(idx, targets, cuts, strict=True)
            for a, b in pairwise(at)
            if b > a
        ]
        assert len(pieces) > len(idx)
        with torch.no_grad():
            sums = [
                torch.nn.functional.cross_entropy(model(row)[0][0], goals[0], reduction="sum").item()
                for row, goals in pieces
            ]
        assert found == pytest.approx(sum(sums) / int((targets >= 0).sum()), rel=1e-9)
