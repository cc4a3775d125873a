"""The loop on a text of a few bytes: it learns, resumes bit for bit, and stops where it must."""

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import bdh
from bdh import BDH, BDHConfig, TrainConfig, manifest, ops
from bdh.data import Corpus
from bdh.train import (
    NonFiniteError,
    Reporter,
    Run,
    fit,
    learning_rate,
    make_optimizer,
    pick_device,
    pick_dtype,
    validation,
)

SHAPE = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.2)
TRAIN = TrainConfig(
    block_size=16,
    batch_size=4,
    max_steps=12,
    learning_rate=1e-2,
    warmup_steps=2,
    eval_interval=5,
    log_interval=1,
    save_every=4,
    eval_windows=8,
    seed=5,
)


def corpus(text: bytes = b"the cat sat on the mat. " * 40) -> Corpus:
    tokens = np.frombuffer(text, dtype=np.uint8)
    cut = int(0.8 * len(tokens))
    return Corpus("cats", tokens[:cut], tokens[cut:], {"source": "test"})


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


def trained(path: Path, config: TrainConfig = TRAIN, text: Corpus | None = None, shape: BDHConfig = SHAPE):
    model = BDH.from_seed(shape, config.seed)
    return model, fit(model, text or corpus(), config, Run(path), quiet())


def changed(config: TrainConfig = TRAIN, **values) -> TrainConfig:
    return TrainConfig.from_dict(config.to_dict() | values)


def metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_a_small_text(tmp_path: Path) -> None:
    _, result = trained(tmp_path, changed(max_steps=150, learning_rate=2e-2, eval_interval=50))
    # knowing only the byte frequencies leaves 2.2 nats; the order must have been learned
    assert result.best_val_loss < 1.2
    assert result.step == 150
    assert result.interrupted is None


def test_the_run_directory_tells_everything(tmp_path: Path) -> None:
    model, result = trained(tmp_path)
    records = metrics(tmp_path)
    evaluations = [r for r in records if "val_loss" in r]
    assert [r["step"] for r in evaluations] == [0, 5, 10, 12]
    assert [r["step"] for r in records if "train_loss" in r] == list(range(1, 13))
    assert evaluations[0]["val_loss"] == pytest.approx(np.log(256), abs=0.1)
    assert evaluations[-1]["val_loss"] == result.val_loss
    assert evaluations[-1]["val_bits_per_byte"] == pytest.approx(result.val_loss / np.log(2))
    for name in ("x", "y", "xy"):
        assert len(evaluations[-1]["density"][name]) == SHAPE.n_layer
    assert abs(evaluations[0]["density"]["x"][0] - 0.5) < 0.1
    assert "--- step 12" in (tmp_path / "samples.txt").read_text()
    assert result.best_val_loss == min(r["val_loss"] for r in evaluations)
    best = bdh.load(tmp_path)
    if evaluations[-1]["best"]:
        assert torch.equal(best.decoder, model.decoder)


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    trained(tmp_path, changed(max_steps=40, save_every=4))
    names = sorted(p.name for p in (tmp_path / "checkpoints").glob("step-*"))
    assert names[-1] == "step-00000040"
    assert len(names) <= 3
    assert (tmp_path / "checkpoints" / "best").read_text().strip() in names


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, expected = trained(tmp_path / "whole")
    # the schedule looks at max_steps, so the first part is cut by a signal and not by a smaller max_steps
    model = BDH.from_seed(SHAPE, TRAIN.seed)
    steps = 0

    class Interrupting(Reporter):
        def step(self, record: dict, *rest) -> None:
            nonlocal steps
            steps += 1
            if record["step"] == 7:
                os.kill(os.getpid(), signal.SIGINT)

    first = fit(model, corpus(), TRAIN, Run(tmp_path / "cut"), Interrupting(Console(file=io.StringIO())))
    assert (first.step, first.interrupted) == (7, "SIGINT")
    fresh = BDH.from_seed(SHAPE, 999)
    second = fit(fresh, corpus(), TRAIN, Run(tmp_path / "cut"), quiet())
    assert second.step == 12
    assert second.val_loss == expected.val_loss
    for name, parameter in whole.named_parameters():
        assert torch.equal(fresh.get_parameter(name), parameter), name

    def losses(path: Path) -> list[float]:
        return [r["train_loss"] for r in metrics(path) if "train_loss" in r]

    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_forgotten_optimiser_would_be_noticed(tmp_path: Path) -> None:
    """Control of the test above: resuming the weights alone does not give the same run."""
    whole, _ = trained(tmp_path / "whole")
    trained(tmp_path / "cut", changed(max_steps=8))
    run = Run(tmp_path / "cut")
    assert run.last is not None
    for file in run.last.glob("optimizer*"):
        save_file({k: torch.zeros_like(v) for k, v in load_file(file).items()}, file)
    manifest.write(run.last)
    model = BDH.from_seed(SHAPE, 0)
    fit(model, corpus(), TRAIN, run, quiet())
    assert not torch.equal(model.decoder, whole.decoder)


def test_the_seed_decides_the_run(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (trained(tmp_path / str(i), changed(seed=s))[0] for i, s in enumerate((5, 5, 6)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.decoder, two.decoder)
    assert not torch.equal(one.decoder, other.decoder)


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    """Same windows in one pass of 4 or in 4 passes of 1: the same step, up to rounding."""
    from bdh.data import random_windows

    text, shape = corpus(), BDHConfig.from_dict(SHAPE.to_dict() | {"dropout": 0.0})
    config = changed(batch_size=1, grad_acc_steps=4, max_steps=1, grad_clip=0.0, warmup_steps=0)
    model, _ = trained(tmp_path, config, text, shape)
    expected = BDH.from_seed(shape, config.seed)
    optimizer = make_optimizer(expected, config)
    windows = [
        random_windows(text.train, seed=config.seed, step=micro, batch_size=1, block_size=16) for micro in range(4)
    ]
    idx, targets = (torch.cat(part) for part in zip(*windows, strict=True))
    expected(idx, targets)[1].backward()
    optimizer.step()
    assert torch.allclose(model.decoder, expected.decoder, atol=1e-6)


class Spy:
    """Notes what the optimiser is given at each step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.norms: list[float] = []
        self.rates: list[set[float]] = []
        step = torch.optim.AdamW.step

        def noting(optimizer: torch.optim.AdamW, *args, **kwargs):
            gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
            self.norms.append(torch.cat(gradients).norm().item())
            self.rates.append({group["lr"] for group in optimizer.param_groups})
            return step(optimizer, *args, **kwargs)

        monkeypatch.setattr(torch.optim.AdamW, "step", noting)


@pytest.mark.parametrize("clip", [1e-3, 0.0])
def test_clipping_bounds_the_gradient_of_the_step(tmp_path: Path, clip: float, monkeypatch) -> None:
    spy = Spy(monkeypatch)
    trained(tmp_path, changed(grad_clip=clip))
    logged = [r["grad_norm"] for r in metrics(tmp_path) if "grad_norm" in r]
    assert min(logged) > 1e-2  # before clipping
    assert spy.norms == pytest.approx([clip] * 12 if clip else logged, rel=1e-3)


def test_the_schedule_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    trained(tmp_path)
    assert spy.rates == [{learning_rate(step, TRAIN)} for step in range(12)]
    assert len(set.union(*spy.rates)) > 10


def test_dropout_differs_from_step_to_step_and_depends_on_seed_and_step_alone(tmp_path: Path, monkeypatch) -> None:
    def drawn(seed: int, name: str) -> list[float]:
        seen: list[float] = []
        forward = BDH.forward

        def noting(self: BDH, *args, **kwargs):
            if self.training:
                seen.append(torch.rand(()).item())
            return forward(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(BDH, "forward", noting)
            trained(tmp_path / name, changed(seed=seed))
        return seen

    one, same, other = drawn(5, "a"), drawn(5, "b"), drawn(6, "c")
    assert one == same
    assert len({*one, *other}) == 24


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_non_finite_number_stops_before_the_step(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path, changed(max_steps=8))
    model = BDH.from_seed(SHAPE, 5)
    run = Run(tmp_path)
    good = bdh.load(run.last)
    if where == "loss":
        forward = BDH.forward
        monkeypatch.setattr(
            BDH,
            "forward",
            lambda self, *a, **k: (
                (forward(self, *a, **k)[0], forward(self, *a, **k)[1] * float("nan"))
                if self.training
                else forward(self, *a, **k)
            ),
        )
    else:
        model.decoder.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match=r"step 8: .* The step was not taken; last good checkpoint: .*step-0*8"):
        fit(model, corpus(), TRAIN, run, quiet())
    assert torch.equal(model.decoder, good.decoder)
    assert torch.equal(bdh.load(run.last).decoder, good.decoder)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"seed": 6}, "trained with seed=5, not 6"),
        ({"batch_size": 2}, "trained with batch_size=4, not 2"),
    ],
)
def test_a_resume_that_would_differ_is_refused(tmp_path: Path, what: dict, says: str) -> None:
    trained(tmp_path, changed(max_steps=4))
    with pytest.raises(ValueError, match=says):
        trained(tmp_path, changed(**what))


def test_a_resume_on_other_text_or_shape_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, changed(max_steps=4))
    with pytest.raises(ValueError, match="other text"):
        trained(tmp_path, text=corpus(b"the dog sat on the mat. " * 40))
    with pytest.raises(ValueError, match="another model"):
        trained(tmp_path, shape=BDHConfig.from_dict(SHAPE.to_dict() | {"n_layer": 3}))


@pytest.mark.parametrize("lost", ["encoder|exp_avg", "decoder|step", "lm_head|exp_avg_sq"])
def test_lost_moments_are_noticed(tmp_path: Path, lost: str) -> None:
    trained(tmp_path, changed(max_steps=4))
    file = Run(tmp_path).last / "optimizer.safetensors"
    moments = load_file(file)
    del moments[lost]
    save_file(moments, file)
    manifest.write(file.parent)
    with pytest.raises(ValueError, match="cannot be resumed from"):
        trained(tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", '{"step": 3}'])
def test_a_foreign_progress_file_is_refused(tmp_path: Path, content: str) -> None:
    trained(tmp_path, changed(max_steps=4))
    (Run(tmp_path).last / "progress.json").write_text(content)
    manifest.write(Run(tmp_path).last)
    with pytest.raises(ValueError, match="cannot be resumed from"):
        trained(tmp_path)


def test_a_stop_before_the_first_step_is_saved(tmp_path: Path) -> None:
    class Impatient(Reporter):
        def evaluation(self, *_args) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    model = BDH.from_seed(SHAPE, TRAIN.seed)
    result = fit(model, corpus(), TRAIN, Run(tmp_path), Impatient(Console(file=io.StringIO())))
    assert (result.step, result.interrupted) == (0, "SIGINT")
    resumed, _ = trained(tmp_path)
    expected, _ = trained(tmp_path / "other")
    assert torch.equal(resumed.decoder, expected.decoder)


def test_too_little_text_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block_size"):
        trained(tmp_path, changed(block_size=1000))


def test_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    one, _ = trained(tmp_path)
    again, result = trained(tmp_path)
    assert result.step == 12
    assert torch.equal(one.decoder, again.decoder)


def test_metrics_cut_off_by_a_crash_are_dropped_on_resume(tmp_path: Path) -> None:
    trained(tmp_path, changed(max_steps=8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "train_loss": 0}\n{"step": 1')
    trained(tmp_path)
    assert [r["step"] for r in metrics(tmp_path) if "train_loss" in r] == list(range(1, 13))


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_mixed_precision_trains_float32_weights(tmp_path: Path, dtype: str) -> None:
    model, result = trained(tmp_path, changed(dtype=dtype, max_steps=60, learning_rate=2e-2))
    assert model.decoder.dtype == torch.float32
    assert result.best_val_loss < 2.2


@pytest.mark.parametrize("backend", ["tiled", "composed"])
def test_the_back_end_that_was_asked_for_trains(tmp_path: Path, backend: str, monkeypatch) -> None:
    taken = []
    levels_backend = ops.levels_backend
    monkeypatch.setattr(ops, "levels_backend", lambda *a, **k: taken.append(levels_backend(*a, **k)) or taken[-1])
    out = io.StringIO()
    model = BDH.from_seed(SHAPE, TRAIN.seed)
    fit(model, corpus(), changed(backend=backend), Run(tmp_path / "a"), Reporter(Console(file=out)))
    # one question for the header, one per step, and those of the samples, which take what they can
    assert taken[:3] == [backend] * 3
    assert taken.count(backend) >= 13
    assert f"trains with {'tiled ' if backend == 'tiled' else ''}PyTorch operations (asked for)" in out.getvalue()
    again, _ = trained(tmp_path / "b", changed(backend=backend))
    assert torch.equal(model.decoder, again.decoder)


def test_a_back_end_that_cannot_be_used_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ops.native, "kernels", None)
    monkeypatch.setattr(ops.native, "why_not", "not built (test)")
    with pytest.raises(ValueError, match=r"'native' cannot be used: .* leave the choice to 'auto'"):
        trained(tmp_path / "run", changed(backend="native"))
    assert not (tmp_path / "run").exists()


def test_large_batches_are_evaluated_in_pieces_with_the_same_result(tmp_path: Path, monkeypatch) -> None:
    _, whole = trained(tmp_path / "whole")
    sizes = []
    forward = BDH.forward
    monkeypatch.setattr(
        BDH, "forward", lambda self, idx, *a, **k: (sizes.append(len(idx)), forward(self, idx, *a, **k))[1]
    )
    monkeypatch.setattr(validation, "EVALUATED", 3 * TRAIN.block_size * SHAPE.n_neurons)
    _, pieces = trained(tmp_path / "pieces")
    assert 3 in sizes
    assert pieces.val_loss == pytest.approx(whole.val_loss, rel=1e-6)


def test_devices_and_types_that_are_not_there() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu) == torch.float32
    with pytest.raises(ValueError, match="needs a GPU"):
        pick_dtype("float16", cpu)
    for name in ("tpu", "cuda" if not torch.cuda.is_available() else "xpu"):
        with pytest.raises(ValueError, match="not present"):
            pick_device(name)


def test_only_the_embedding_is_not_decayed() -> None:
    model = BDH.from_seed(SHAPE, 0)
    decay = {id(p): g["weight_decay"] for g in make_optimizer(model, TRAIN).param_groups for p in g["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "embed.weight": 0.0,
        "encoder": 0.1,
        "encoder_v": 0.1,
        "decoder": 0.1,
        "lm_head": 0.1,
    }


def test_progress_is_shown_in_a_log_file(tmp_path: Path) -> None:
    out = io.StringIO()
    fit(BDH.from_seed(SHAPE, 5), corpus(), TRAIN, Run(tmp_path), Reporter(Console(file=out, width=120)))
    text = out.getvalue()
    assert "step 12: validation" in text
    assert "tokens/s" in text
    assert "xy active per level" in text
    assert "random init" in text
