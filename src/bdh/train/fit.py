"""The training loop: the only one."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdh import lens, ops, process
from bdh.checkpoint import SHARDS, CheckpointError
from bdh.config import TrainConfig
from bdh.data import Corpus
from bdh.generate import stream_text
from bdh.model import BDH
from bdh.ops.memory import keep_freed_memory, returning_freed_memory
from bdh.train.clipping import clip_gradients
from bdh.train.distributed import ALONE, World
from bdh.train.losses import ActivityLosses
from bdh.train.reading import Reading
from bdh.train.report import Reporter
from bdh.train.run import Run
from bdh.train.saving import Background, Snapshot, restore, restore_states
from bdh.train.schedule import learning_rate, warm_up
from bdh.train.setup import make_optimizer, pick_device, pick_dtype
from bdh.train.sharing import SHARINGS
from bdh.train.stopping import stop_requests
from bdh.train.validation import DENSITY_WINDOWS, activity, validation_loss

SAMPLE_TOKENS = 300
# 2^64 over the golden ratio: its multiples lie far apart, so that no two (seed, step) share a dropout stream
_SPREAD = 0x9E3779B97F4A7C15


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not a finite number; the step was not taken."""


@dataclass(frozen=True)
class Result:
    """How a training run ended."""

    step: int
    """Optimiser steps taken in all."""
    val_loss: float
    """Validation loss of the last evaluation, nats per token."""
    best_val_loss: float
    """Lowest validation loss of the run."""
    interrupted: str | None
    """Name of the signal that asked it to stop early, if one did."""
    seconds: float
    """Time spent in the optimiser steps of this call, evaluations left out."""


def fit(
    model: BDH,
    corpus: Corpus,
    config: TrainConfig,
    run: Run,
    reporter: Reporter | None = None,
    facts: dict[str, Any] | None = None,
    world: World = ALONE,
) -> Result:
    """Train `model` on `corpus`, going on from the newest checkpoint of `run` if there is one.

    Data order and dropout are pure functions of (seed, step), so a resumed run takes the same steps as an
    uninterrupted one, bit for bit on a CPU. Several processes take, up to rounding, the steps of one that reads the
    same `batch_size` rows alone, if there is no dropout: each draws its own.

    Args:
        model: trained in place; if ranks have parts of it, checkpoints alone have what was learned.
        corpus: text; each split must hold at least one window.
        config: batches, optimiser, schedule.
        run: where metrics and checkpoints go.
        reporter: what to show; None for the default.
        facts: what else run.json should tell.
        world: the processes that share the work, see `bdh.train.joined`.

    Returns:
        How it ended.

    Raises:
        ValueError: the corpus is too short, the device or precision is not there, the checkpoint does not fit, another
            process trains in this directory.
        NonFiniteError: loss or gradient became infinite or NaN; the last checkpoint is as it was.
        LostRankError: another process died, or does not answer.
    """
    training = Training(model, corpus, config, run, reporter or Reporter(), world)
    with run.alone() if training.world.first else contextlib.nullcontext():
        newest = run.newest()
        if newest is not None:
            training.resume(newest)
        training.world.wait()
        # only now is it known that the run may go on with these settings
        if training.world.first:
            described = {"model": training.sharing.config.to_dict(), "train": config.to_dict(), "data": corpus.info}
            run.describe(**described, **(facts or {}))
        with training.world.together():  # a sharded model speaks with the other ranks in every pass
            return training.fit()


class Training:
    """The objects of one call of `fit`; `bdh plan` times its steps."""

    def __init__(
        self,
        model: BDH,
        corpus: Corpus,
        config: TrainConfig,
        run: Run,
        reporter: Reporter,
        world: World = ALONE,
    ) -> None:
        corpus.require(config.block_size, model.config.vocab_size)
        if not model.config.released and config.backend in ("native", "tiled"):
            raise ValueError(
                f"backend={config.backend!r}: expected auto, composed or reference, since these levels know no "
                "mechanisms; leave --backend away"
            )
        critical = model.config.criticality
        if critical.on and config.block_size <= critical.steps:
            raise ValueError(
                f"block_size={config.block_size}: expected more than criticality.steps={critical.steps} tokens, over "
                "which the branching ratio is estimated; raise one or lower the other"
            )
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.corpus, self.config, self.run, self.reporter = corpus, config, run, reporter
        self.world = world
        self.sharing = SHARINGS[world.parallel](model, config, world, self.device)
        self.model = model = self.sharing.model
        shape, tokens = model.config, config.batch_size // self.sharing.rows.size * config.block_size
        with self._autocast(), ops.using(config.backend):  # a back end that cannot be used is refused here
            path = ops.levels_path(model.encoder, activities=shape.activities(tokens))
        if (config.bptt == "none" or config.batches == "streams") and not path.startswith("native"):
            path = "PyTorch operations (no other path here carries a memory or cuts gradients)"
        if not shape.released:
            path = "PyTorch operations (the mechanisms of the model have no kernels for whole levels)"
        if self.sharing.neurons.size > 1:
            path = f"PyTorch operations (neurons are shared out over {self.sharing.neurons.size} processes)"
        self.path = "torch.compile" if config.compile else path
        self.activity = ActivityLosses(shape, config)
        self.optimizer = make_optimizer(model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.reading = Reading(self.sharing, corpus, config)
        # the text itself counts on resume, not the name of the place it was read from
        self.text_hashes = list(corpus.hashes)
        self.val = corpus.validation_windows(config.block_size, config.eval_windows)
        self.step = 0
        self.saved_step, self.saved_best = -1, False
        self.saving = Background()
        self.unsound = torch.zeros(1)
        """Which ranks had a loss or gradient that is no finite number at the last step."""
        self.val_loss = self.best = math.inf
        self.seconds = self.seconds_before = 0.0
        self.tokens_before = 0

    def fit(self) -> Result:
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.world.first:
            self.run.rewind(self.saved_step, best=self.saved_best)
        probe = self.val[0][:DENSITY_WINDOWS]
        with returning_freed_memory():
            self.init_density = lens.init_density(self.model.config, probe, seed=self.config.seed)
        self.reporter.note(f"trains with {self.path}")
        first, c = self.step, self.config
        if (rise := warm_up(c)) < c.warmup_steps:
            self.reporter.note(f"warm-up of {c.warmup_steps} steps shortened to {rise}, half of the training")
        self.seconds_before, self.tokens_before = self.seconds, self.reading.tokens
        self.reporter.start(first, c.max_steps)
        stop = ""
        with stop_requests(patient=self.world.size > 1) as asked, self.saving:
            try:
                if self.step == 0:
                    self._calibrate()
                    self._evaluate()
                while self.step < c.max_steps and not (stop := self._stop(asked)):
                    started = time.perf_counter()
                    loss, norm = self._optimizer_step()
                    self.seconds += time.perf_counter() - started
                    if self.step % c.log_interval == 0 or self.step == c.max_steps:
                        self._log(loss, norm, self.step - first)
                    last = self.step == c.max_steps
                    improved = self._evaluate() if self.step % c.eval_interval == 0 or last else False
                    due = self.step % c.save_every == 0 or last
                    if due:
                        self._add_sample()
                    if due or improved:
                        self._save(best=improved)
                if stop and self.saved_step != self.step:
                    self._save(best=False)
            finally:
                self.reporter.stop()
        return Result(self.step, self.val_loss, self.best, stop or None, self.seconds)

    def _stop(self, asked: list[str]) -> str:
        """Return the signal by which any of the processes was asked to stop; all hear the same."""
        found = self.world.largest(signal.Signals[asked[0]] if asked else 0)
        return signal.Signals(found).name if found else ""

    def _calibrate(self) -> None:
        """Set the thresholds of spiking neurons on the first batch."""
        with self._autocast():
            self.model.calibrate(self.reading.first().to(self.device))

    def _optimizer_step(self) -> tuple[Tensor, Tensor]:
        """Take one step and return the mean training loss and the gradient norm before clipping."""
        loss = self.accumulate()
        return loss, self.update(loss)

    def accumulate(self) -> Tensor:
        """Add up the gradients of one step, those of all processes, and return the mean training loss."""
        self.model.train()
        self.activity.step = {}
        total = torch.zeros((), device=self.device)
        tap = {"tap": self.activity} if self.activity.wanted else {}
        with self._dropout_stream(), self._autocast():
            for loss, weight in self.reading.losses(self.step, tap):
                # the way back is not under autocast: it takes the types of the way there
                with torch.autocast(self.device.type, enabled=False):
                    self.scaler.scale((loss + self.activity.take(weight)) * weight).backward()
                total += loss.detach() * weight
        if self.world.size > 1:
            self.unsound = self.sharing.add_up(total, *self.activity.step.values())
        return total

    def update(self, total: Tensor) -> Tensor:
        """Move the weights by the gradients of a step, and return the norm of these before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config)
        self.scaler.unscale_(self.optimizer)
        norm = self.sharing.norm()
        clip_gradients(self.model.named_parameters(), self.config, norm)
        # float16 overflows now and then by design: the scaler skips such a step and lowers its factor
        gradient_ok = bool(norm.isfinite()) or self.scaler.is_enabled()
        if not (bool(total.isfinite()) and gradient_ok):
            raise NonFiniteError(self._non_finite_message(total, norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.model.after_step()
        self.step += 1
        return norm

    def _non_finite_message(self, loss: Tensor, norm: Tensor) -> str:
        self.saving.wait()
        kept = self.run.last
        ranks = self.unsound.nonzero().flatten().tolist()
        where = f" on rank {', '.join(map(str, ranks))} of {self.world.size}" if ranks else ""
        return (
            f"step {self.step}: loss {loss.item():g}, gradient norm {norm.item():g}{where}: expected finite numbers. "
            f"The step was not taken; last good checkpoint: {kept or 'none yet'}. "
            f"Try a lower --learning-rate (now {self.config.learning_rate:g}) or --grad-clip"
        )

    def _validated(self) -> dict[str, Any]:
        """Return how the windows of the validation are read: as training reads its own."""
        by_document = self.config.batches == "streams" and self.model.parts.forgets
        separator = self.corpus.separator if by_document else None
        return {"at_once": self.config.batch_size, "world": self.sharing.rows, "separator": separator}

    @returning_freed_memory()
    def _evaluate(self) -> bool:
        """Measure on the fixed windows, and return whether the loss is the best so far."""
        self.model.eval()
        with self._autocast():
            self.val_loss = validation_loss(self.model, *self.val, **self._validated())
        if not math.isfinite(self.val_loss):
            self.saving.wait()
            kept = self.run.last or "none yet"
            raise NonFiniteError(f"step {self.step}: validation loss {self.val_loss}; last good checkpoint: {kept}")
        improved = self.val_loss < self.best
        self.best = min(self.best, self.val_loss)
        everyone = self.world.first or self.sharing.in_parts
        active = activity(self.model, self.val[0], self.sharing.neurons) if everyone else {}
        if not self.world.first:
            return improved
        record = {
            "step": self.step,
            "tokens": self.reading.tokens,
            "train_seconds": round(self.seconds, 3),
            "val_loss": self.val_loss,
            "val_bits_per_byte": self.val_loss / math.log(2) / self.corpus.bytes_per_token,
            "best": improved,
            **active,
        }
        self.run.log(record)
        self.reporter.evaluation(record, self.init_density)
        return improved

    def _log(self, loss: Tensor, norm: Tensor, steps_done: int) -> None:
        c = self.config
        if not self.world.first:
            return
        record = {
            "step": self.step,
            "tokens": self.reading.tokens,
            "train_loss": loss.item(),
            **{f"{name}_loss": value.item() for name, value in self.activity.step.items()},
            "learning_rate": learning_rate(self.step - 1, c),
            "grad_norm": norm.item(),
            "tokens_per_s": (self.reading.tokens - self.tokens_before) / (self.seconds - self.seconds_before),
            "train_seconds": round(self.seconds, 3),
            "peak_bytes": torch.cuda.max_memory_allocated() if self.device.type == "cuda" else process.peak(),
        }
        self.run.log(record)
        self.reporter.step(record, steps_done, c.max_steps)

    def _save(self, *, best: bool) -> None:
        progress = {
            "step": self.step,
            "tokens": self.reading.tokens,
            "best": best,
            "best_val_loss": self.best,
            "val_loss": self.val_loss,
            "train_seconds": self.seconds,
            "train_config": self.config.to_dict(),
            "corpus": self.text_hashes,
            "scaler": self.scaler.state_dict(),
        }
        self.saving.wait()  # before the copy is made: there is never more than one
        about: dict[str, Any] = {
            "tokenizer": self.corpus.tokenizer,
            "asked": self.corpus.prompting,
            "states": tuple(self.reading.remembered()),
        }
        if self.sharing.in_parts:
            from bdh.train import sharding  # half a second of imports

            rest = Snapshot(self.sharing.config, weights={}, moments={}, progress=progress, **about)
            sharding.save(self.run, rest, self.sharing.tensors(self.optimizer), self.world)
        elif self.world.first:
            with returning_freed_memory():
                snapshot = Snapshot.take(self.model, self.optimizer, progress, **about)
            self.saving.start(self.run.save, snapshot)
        self.saved_step = self.step

    def resume(self, directory: Path) -> None:
        if self.sharing.in_parts or (directory / SHARDS).is_file():
            from bdh.train import sharding

            progress = sharding.restore(directory, self.sharing, self.optimizer)
        else:
            progress = restore(directory, self.model, self.optimizer)
        if progress["corpus"] != self.text_hashes:
            examples = " and --max-examples" if self.corpus.prompting else ""
            raise CheckpointError(f"{directory} was trained on other text: give the same --dataset or --data{examples}")
        stored = TrainConfig.from_dict(progress["train_config"])
        for name in ("seed", "batch_size", "grad_acc_steps", "block_size", "batches", "carry"):
            before, now = getattr(stored, name), getattr(self.config, name)
            if before != now:
                raise CheckpointError(f"{directory} was trained with {name}={before}, not {now}: keep it to resume")
        if (step := progress["step"]) > (most := self.config.max_steps):
            raise CheckpointError(f"{directory} is beyond max_steps={most}: expected more than {step} to go on")
        self.step, self.best = progress["step"], progress["best_val_loss"]
        # rows of examples are of different lengths; without, as in older checkpoints, all are equal
        self.reading.tokens = progress.get("tokens", self.step * self.config.tokens_per_step)
        self.val_loss, self.seconds = progress["val_loss"], progress["train_seconds"]
        self.scaler.load_state_dict(progress["scaler"])
        if self.config.batches == "streams" and self.step:
            self.reading.remember(restore_states(directory, self.config.grad_acc_steps, self.device))
        self.saved_step, self.saved_best = self.step, progress["best"]

    def _add_sample(self) -> None:
        # ranks that have a model together make the same one
        text = self._sample() if self.world.first or self.sharing.in_parts else ""
        if self.world.first:
            self.run.add_sample(self.step, text)

    def _sample(self) -> str:
        corpus = self.corpus
        first = torch.as_tensor(corpus.opening, dtype=torch.int64, device=self.device)[None]
        end = corpus.prompting.end if corpus.prompting else None
        how: dict[str, Any] = {"end": end, "tokenizer": corpus.tokenizer, "temperature": 0.8, "seed": self.config.seed}
        return "".join(stream_text(self.model, first, SAMPLE_TOKENS, **how))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    @contextlib.contextmanager
    def _dropout_stream(self) -> Iterator[None]:
        """Seed the dropout of this step, and give the caller's random state back afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # far beyond any number of steps, so that no two ranks share a stream either
            torch.manual_seed((self.config.seed * _SPREAD + self.step + (self.world.rank << 48)) % 2**63)
            yield
