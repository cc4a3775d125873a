"""Checkpoints written beside the training: of the moment they were asked for, one at a time, errors told."""

import threading
from pathlib import Path

import pytest
import torch

from bdh import BDH, TrainConfig, checkpoint
from bdh.train import Run, make_optimizer
from bdh.train.saving import Background, Snapshot, restore


def trained_once(model: BDH) -> torch.optim.AdamW:
    optimizer = make_optimizer(model, TrainConfig())
    train(model, optimizer)
    return optimizer


def train(model: BDH, optimizer: torch.optim.AdamW) -> None:
    idx = torch.arange(20)[None]
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    optimizer.step()


PROGRESS = {
    "step": 1, "best": True, "best_val_loss": 1.0, "val_loss": 1.0, "train_seconds": 0.0, "train_config": {},
    "corpus": [], "scaler": {},
}  # fmt: skip


def test_what_is_written_later_is_what_was_there_when_it_was_taken(tiny: BDH, tmp_path: Path) -> None:
    optimizer = trained_once(tiny)
    then = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    moments = {name: optimizer.state[p]["exp_avg"].clone() for name, p in tiny.named_parameters()}
    snapshot = Snapshot.take(tiny, optimizer, PROGRESS)
    train(tiny, optimizer)
    assert not torch.equal(tiny.decoder, then["decoder"])  # a control: training did go on
    run = Run(tmp_path)
    run.describe()
    run.save(snapshot)
    back = BDH.from_seed(tiny.config, 9)
    restored = make_optimizer(back, TrainConfig())
    assert restore(run.last, back, restored)["step"] == 1
    for name, parameter in back.named_parameters():
        assert torch.equal(parameter, then[name])
        assert torch.equal(restored.state[parameter]["exp_avg"], moments[name])


def test_the_caller_goes_on_while_work_is_done_and_one_at_a_time() -> None:
    go, order = threading.Event(), []
    with Background() as background:
        background.start(lambda: (go.wait(20), order.append("first")))
        order.append("caller")
        threading.Timer(0.05, go.set).start()
        background.start(order.append, "second")
        assert order == ["caller", "first"] or order == ["caller", "first", "second"]
    assert order == ["caller", "first", "second"]


def failing() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("then", ["wait", "start", "end"])
def test_an_error_comes_with_the_next_call(then: str) -> None:
    with pytest.raises(OSError, match="No space"), Background() as background:
        background.start(failing)
        if then == "wait":
            background.wait()
        elif then == "start":
            background.start(print)
    background.wait()  # told once


def test_an_error_of_the_caller_is_not_hidden_and_the_work_is_finished() -> None:
    done = []
    with pytest.raises(ArithmeticError), Background() as background:
        background.start(lambda: (threading.Event().wait(0.05), done.append(1), failing()))
        raise ArithmeticError
    assert done == [1]


def test_states_are_not_changed_by_what_reads_after_them(tiny: BDH) -> None:
    """Why a snapshot does not copy them."""
    _, state = tiny.advance(torch.tensor([[1, 2, 3]]))
    before = [part.clone() for part in state.rho]
    tiny.advance(torch.tensor([[4, 5]]), state)
    assert all(torch.equal(one, two) for one, two in zip(state.rho, before, strict=True))


def test_a_state_that_was_saved_is_read_back(tiny: BDH, tmp_path: Path) -> None:
    _, state = tiny.advance(torch.tensor([[1, 2, 3]]))
    Snapshot.take(tiny, trained_once(tiny), PROGRESS, states=[None, state]).write(tmp_path)
    assert not (tmp_path / "state-0.safetensors").exists()
    back = checkpoint.load_state(tmp_path / "state-1.safetensors")
    assert all(torch.equal(one, two) for one, two in zip(back.rho, state.rho, strict=True))
