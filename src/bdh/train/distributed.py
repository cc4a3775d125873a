"""Several processes that train one model together: who they are, and what they say to each other.

`torchrun --nproc-per-node K -m bdh train ...` starts K processes, called ranks. Each reads its own rows of the same
batch; gradients are sums over the ranks, weighted by the tokens that count, so that every rank takes the step that one
process with the whole batch would take. Only rank 0 writes and speaks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bdh.config import Parallel

PATIENCE = 600.0
"""Seconds that a rank waits for the others: longer than rank 0 takes to save or to write a sample."""


class LostRankError(RuntimeError):
    """Another process of the training died, or does not answer."""


@dataclass(frozen=True)
class World:
    """The processes of a training; by default this one alone, to which every method below is without effect.

    Examples:
        >>> World().rows(8), World(rank=1, size=4).rows(8)
        (slice(0, 8, None), slice(2, 4, None))
    """

    rank: int = 0
    """Number of this process, from 0."""
    size: int = 1
    """How many there are."""
    parallel: Parallel = "data"
    """What they share out, see `bdh.train.sharing`."""
    ranks_per_model: int | None = None
    """With neurons: how many consecutive ranks have a model together; None: all."""
    group: Any = None
    """Of torch.distributed; None: all that torchrun has started."""

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Return which of `count` rows of a batch are read here.

        Raises:
            ValueError: they cannot be shared out evenly.
        """
        if count % self.size:
            raise ValueError(
                f"batch_size={count}: expected a multiple of the {self.size} processes, which share its rows out"
            )
        each = count // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def split(self, inner: int) -> tuple[World, World]:
        """Return the processes at the same place of each run of `inner` ranks, and those of the run that this is in.

        All ranks call it together.

        Raises:
            ValueError: the runs are not of one length.
        """
        if inner < 1 or self.size % inner:
            raise ValueError(f"groups of {inner} processes: expected a divisor of the {self.size} that were started")
        if inner in (1, self.size):
            alone = replace(self, rank=0, size=1)
            return (self, alone) if inner == 1 else (alone, self)
        place, run = self.rank % inner, self.rank // inner
        return self._among(range(place, self.size, inner)), self._among(range(run * inner, (run + 1) * inner))

    def _among(self, ranks: range) -> World:
        everywhere = dist.get_process_group_ranks(self.group)
        group = dist.new_group([everywhere[rank] for rank in ranks], use_local_synchronization=True)
        return replace(self, rank=ranks.index(self.rank), size=len(ranks), group=group)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place; one message per type."""
        if self.size == 1:
            return
        for _, same in groupby(sorted(tensors, key=lambda t: str(t.dtype)), key=lambda t: t.dtype):
            parts = list(same)
            if len(parts) == 1 and parts[0].is_contiguous():
                flat = parts[0].detach().view(-1)  # most of what ranks tell each other inside a pass: no copy
            else:
                flat = torch.cat([part.flatten() for part in parts])
            with self.together():
                dist.all_reduce(flat, group=self.group)
            for part, total in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
                part.copy_(total.view_as(part))

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        with self.together():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def joined(self, part: Tensor, dim: int = 0) -> Tensor:
        """Return the parts of all ranks one behind the other, in their order."""
        if self.size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        with self.together():
            dist.all_gather(parts, part.contiguous(), group=self.group)
        return torch.cat(parts, dim)

    def wait(self) -> None:
        """Go on when all ranks have come here."""
        self.largest(0)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """Let rank 0 do what is inside a `with`, and then the others, who find it done or fail as it did."""
        if not self.first:
            self.wait()
        try:
            yield
        finally:
            if self.first:
                self.wait()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Tell what is wrong if a message between ranks inside a `with` fails.

        Raises:
            LostRankError: it did.
        """
        try:
            yield
        except RuntimeError as error:
            # gloo's errors have no type of their own
            words = ("gloo", "nccl")
            of_messages = isinstance(error, dist.DistError) or any(word in str(error).lower() for word in words)
            if isinstance(error, LostRankError) or not of_messages:
                raise
            cause = str(error).strip().splitlines()[0]
            raise LostRankError(
                f"rank {self.rank} of {self.size}: another process died or does not answer ({cause}); its own message "
                "tells why. The step was not taken; start all again with --resume-from (finetune: --resume) to go on"
            ) from error


ALONE = World()


@contextmanager
def joined(
    patience: float = PATIENCE, *, parallel: Parallel = "data", ranks_per_model: int | None = None
) -> Iterator[World]:
    """Join the processes that torchrun has started, and leave them at the end; without torchrun, be alone.

    They talk through gloo between CPUs and NCCL between GPUs, of which each process takes its own.

    Args:
        patience: seconds after which a rank that does not answer counts as lost.
        parallel: see `World`; alone there is nothing to share.
        ranks_per_model: see `World`.

    Raises:
        LostRankError: they did not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), parallel, ranks_per_model)
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "cpu:gloo,cuda:nccl"
    with world.together():
        dist.init_process_group(backend, timeout=timedelta(seconds=patience))
    try:
        yield world
    finally:
        dist.destroy_process_group()
