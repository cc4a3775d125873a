"""What is planned for several devices is what their processes tell each other."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from rich.console import Console

from bdh import BDH, BDHConfig, TrainConfig
from bdh.cli import main
from bdh.config import Parallel, preset, train_preset
from bdh.data import Corpus
from bdh.planning import Message, on_devices
from bdh.train import Reporter, Run, joined
from bdh.train.fit import Training
from ranks import on_ranks

MODEL = BDHConfig(n_layer=3, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, vocab_size=256, dropout=0.0)
TRAIN = TrainConfig(block_size=16, batch_size=4, grad_acc_steps=2, max_steps=4, warmup_steps=1)


@contextmanager
def counted() -> Iterator[list[tuple[int, int]]]:
    """Give the list of (bytes, ranks) of every sum while the block runs."""
    found: list[tuple[int, int]] = []
    real = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: object, group: dist.ProcessGroup | None = None) -> None:
        found.append((tensor.nbytes, dist.get_world_size(group)))
        real(tensor, *args, group=group)

    with mock.patch.object(dist, "all_reduce", all_reduce):
        yield found


def step_of(parallel: Parallel, ranks_per_model: int | None, path: Path) -> list[tuple[int, int]]:
    text = np.arange(2000, dtype=np.uint8)
    reporter = Reporter(Console(file=io.StringIO()))
    with joined(30.0, parallel=parallel, ranks_per_model=ranks_per_model) as world:
        training = Training(BDH.from_seed(MODEL, 0), Corpus("all", text, text, {}), TRAIN, Run(path), reporter, world)
        with counted() as found:
            training._stop([])
            training._optimizer_step()
    return found


@pytest.mark.parametrize(
    ("size", "parallel", "each"),
    [(2, "data", None), (4, "data", None), (2, "neurons", None), (4, "neurons", None), (4, "neurons", 2)],
)
def test_bytes_of_a_step_are_those_planned(tmp_path: Path, size: int, parallel: Parallel, each: int | None) -> None:
    planned: dict[int, int] = {}
    for message in on_devices(MODEL, TRAIN, size, parallel, each).messages.values():
        planned[message.ranks] = planned.get(message.ranks, 0) + message.payload_bytes
    for found in on_ranks(size, step_of, parallel, each, tmp_path):
        assert isinstance(found, list), found
        summed: dict[int, int] = {}
        for count, of in found:
            summed[of] = summed.get(of, 0) + count
        assert summed == planned


def test_what_neurons_tell_each_other_does_not_grow_with_them() -> None:
    few, many = (
        on_devices(preset("25m", mlp_internal_dim_multiplier=m), train_preset("25m"), 16, "neurons") for m in (64, 128)
    )
    assert few.messages == many.messages
    assert many.state_bytes == 2 * few.state_bytes


def test_what_is_held() -> None:
    model, train = preset("25m"), train_preset("25m")
    P = 4 * model.n_parameters
    data, fsdp, neurons = (on_devices(model, train, 8, parallel) for parallel in ("data", "fsdp", "neurons"))
    assert data.held_bytes["moments"] == 2 * P
    assert fsdp.held_bytes["moments"] == pytest.approx(2 * P / 8, abs=2)
    maps, vocabulary = 4 * 3 * model.n_neurons * model.n_embd, 4 * 2 * 256 * model.n_embd
    assert neurons.held_bytes["moments"] == 2 * (maps // 8 + vocabulary)
    assert neurons.state_bytes == data.state_bytes // 8


def test_a_ring_sends_each_part_to_all_others() -> None:
    assert Message(800, ranks=4, passes=2).sent_bytes == 2 * 3 * 200
    assert Message(800, ranks=4, passes=1).sent_bytes == 3 * 200


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, expected in (
        (["--devices", "4", "--parallel", "neurons"], 0, "each of 4 devices holds (neurons shared out)"),
        (["--devices", "0"], 2, "devices=0: expected at least 2 to share a training"),
        (
            ["--devices", "4", "--parallel", "neurons", "--ranks-per-model", "3"],
            2,
            "ranks_per_model=3: expected 2 or more",
        ),
        (["--devices", "4", "--ranks-per-model", "2"], 2, "expected --parallel neurons beside it"),
        (["--devices", "3"], 2, "batch_size=8: expected a multiple of the 3 processes"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["plan", *arguments])
        said = capsys.readouterr()
        assert end.value.code == code
        assert expected in said.out + said.err
