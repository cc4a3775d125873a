"""How the GPT is trained: on the same batches, with the same optimiser and schedule, evaluated on the same windows.

It is a yardstick and no product: no checkpoints, no samples; a run that was stopped begins again.
"""

from __future__ import annotations

import contextlib
import math
import time

import torch
from torch import Tensor
from torch.nn import functional as F

from bdh.bench.gpt2 import GPT2
from bdh.bench.protocol import Declined
from bdh.config import BDHConfig, TrainConfig
from bdh.data import Corpus, random_windows, scored_share
from bdh.train import NonFiniteError, Reporter, Result, Run, learning_rate, pick_device, pick_dtype


def make_peer(model: BDHConfig, train: TrainConfig) -> GPT2:
    """Return the GPT-2 with as many parameters as a model, and as many positions as a training window has.

    Args:
        model: the model whose size, vocabulary and dropout it takes.
        train: its windows and seed.

    Raises:
        ValueError: transformers is not installed, or no shape has that size.
    """
    try:
        # positions that no window reaches would be parameters that are never trained
        return GPT2(model, train.block_size, train.seed, positions=1, dropout=model.dropout)
    except Declined as reason:
        raise ValueError(f"variant gpt cannot take part: {str(reason).removeprefix('skipped: ')}") from None


class PeerTraining:
    """The objects of one run of the peer.

    Args:
        peer: trained in place.
        corpus: text.
        config: as for every other variant.
    """

    def __init__(self, peer: GPT2, corpus: Corpus, config: TrainConfig) -> None:
        corpus.require(config.block_size, peer.module.config.vocab_size)
        self.device = pick_device(config.device)
        self.dtype = pick_dtype(config.dtype, self.device)
        self.peer, self.corpus, self.config = peer, corpus, config
        peer.module.to(self.device)
        # the embedding is the readout too, so that it is decayed as a readout is
        parameters = list(peer.module.parameters())
        groups = [
            {"params": [p for p in parameters if (p.ndim > 1) == matrix], "weight_decay": decay}
            for matrix, decay in ((True, config.weight_decay), (False, 0.0))
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.val = corpus.validation_windows(config.block_size, config.eval_windows)
        self.step = 0

    def take_step(self) -> tuple[float, float]:
        """Take one optimiser step, and return the mean training loss and the gradient norm before clipping."""
        c = self.config
        total = 0.0
        for micro in range(c.grad_acc_steps):
            idx, targets = random_windows(
                self.corpus.train,
                seed=c.seed,
                step=self.step * c.grad_acc_steps + micro,
                batch_size=c.batch_size,
                block_size=c.block_size,
            )
            with self._autocast():
                loss = self.peer.loss(idx.to(self.device), targets.to(self.device))
            (loss / c.grad_acc_steps).backward()
            total += loss.item() / c.grad_acc_steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, c)
        norm = torch.nn.utils.clip_grad_norm_(self.peer.module.parameters(), c.grad_clip or math.inf).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            raise NonFiniteError(f"step {self.step}: loss {total:g}, gradient norm {norm:g}: expected finite numbers")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return total, norm

    @torch.no_grad()
    def evaluate(self) -> float:
        """Return the mean loss on the fixed windows, those of every other variant."""
        module = self.peer.module.eval()
        idx, targets = self.val
        total = 0.0
        for start in range(0, len(idx), self.config.batch_size):
            rows = slice(start, start + self.config.batch_size)
            here, wanted = idx[rows].to(self.device), targets[rows].to(self.device)
            with self._autocast():
                logits: Tensor = module(here, use_cache=False).logits
                total += F.cross_entropy(logits.flatten(0, 1), wanted.flatten()).item() * scored_share(wanted)
        return total / scored_share(targets)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def fit_peer(peer: GPT2, corpus: Corpus, config: TrainConfig, run: Run, reporter: Reporter) -> Result:
    """Train the peer from its first step, and write the records that `bdh.train.fit` writes, but for activity.

    Args:
        peer: trained in place.
        corpus: text; each split must hold at least one window.
        config: batches, optimiser, schedule.
        run: where metrics go.
        reporter: what to show.

    Returns:
        How it ended.

    Raises:
        ValueError: the corpus is too short, or the device is not there.
        NonFiniteError: loss or gradient became infinite or NaN.
    """
    training = PeerTraining(peer, corpus, config)
    run.describe(model=peer.module.config.to_dict(), train=config.to_dict(), data=corpus.info, about=peer.about)
    run.rewind(-1)
    seconds, best = 0.0, math.inf

    def evaluate() -> float:
        nonlocal best
        loss = training.evaluate()
        record = {
            "step": training.step,
            "tokens": training.step * config.tokens_per_step,
            "train_seconds": round(seconds, 3),
            "val_loss": loss,
            "val_bits_per_byte": loss / math.log(2),
            "best": loss < best,
            "density": {},
        }
        if not math.isfinite(loss):
            raise NonFiniteError(f"step {training.step}: validation loss {loss}")
        best = min(best, loss)
        run.log(record)
        reporter.evaluation(record, {})
        return loss

    reporter.start(0, config.max_steps)
    devices = [training.device] if training.device.type == "cuda" else []
    with contextlib.ExitStack() as ending:
        ending.callback(reporter.stop)
        ending.enter_context(torch.random.fork_rng(devices=devices))
        torch.manual_seed(config.seed)  # of the dropout
        last = evaluate()
        while training.step < config.max_steps:
            started = time.perf_counter()
            loss, norm = training.take_step()
            seconds += time.perf_counter() - started
            ends = training.step == config.max_steps
            if training.step % config.log_interval == 0 or ends:
                record = {
                    "step": training.step,
                    "tokens": training.step * config.tokens_per_step,
                    "train_loss": loss,
                    "learning_rate": learning_rate(training.step - 1, config),
                    "grad_norm": norm,
                    "tokens_per_s": training.step * config.tokens_per_step / seconds,
                    "train_seconds": round(seconds, 3),
                }
                run.log(record)
                reporter.step(record, training.step, config.max_steps)
            if training.step % config.eval_interval == 0 or ends:
                last = evaluate()
    return Result(training.step, last, best, None, seconds)
