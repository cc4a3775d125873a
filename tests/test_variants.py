"""Every variant, and every mechanism alone, as a whole model: causal, splittable, alive at the start, able to learn."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bdh import BDH, BDHConfig, State, checkpoint
from bdh.mechanisms import Homeostatic, ThresholdController, sign_purity
from bdh.sections import (
    BCM,
    LIF,
    SECTIONS,
    STDP,
    VARIANTS,
    Branches,
    Criticality,
    Dale,
    HiPPOMemory,
    Modulation,
    ScaleFreeWiring,
)
from tolerances import CONTROL, SAME, error

SHAPE = {
    "n_layer": 2, "n_embd": 32, "n_head": 2, "mlp_internal_dim_multiplier": 8, "vocab_size": 16, "dropout": 0.1
}  # fmt: skip
QUICK = Criticality(target=0.98, steps=8)
ALONE = {
    "lif": {"lif": LIF(tau=10.0)},
    "lif hard": {"lif": LIF(tau=5.0, reset="hard", refractory=1)},
    "lif no reset": {"lif": LIF(tau=5.0, reset="none")},
    "lif binary": {"lif": LIF(tau=5.0, output="binary", surrogate="arctan", detach_reset=False)},
    "lif gate": {"lif": LIF(tau=10.0, gate=True)},
    "stdp kernel": {"stdp": STDP(form="kernel")},
    "stdp trace": {"stdp": STDP(form="trace")},
    "dale": {"dale": Dale(excitatory=0.8)},
    "scale free": {"scale_free": ScaleFreeWiring(gamma=2.5)},
    "legs": {"hippo": HiPPOMemory(measure="legs")},
    "legt": {"hippo": HiPPOMemory(measure="legt", theta=20.0)},
    "bcm": {"bcm": BCM(kappa=1.0)},
    "criticality": {"criticality": QUICK},
    "dendrites": {"dendrites": Branches(branches=4)},
    "neuromodulation": {"neuromodulation": Modulation(tau=10.0)},
    "rms": {"norm": "rms", "dale": Dale(excitatory=0.8)},
    "k winners": {"sparsity": 0.8},
    "hatching": {"variant": "hatching"},
    "advanced": {"variant": "advanced", "criticality": QUICK},
}
EACH = pytest.mark.parametrize("name", ALONE)
ALONE = ALONE | {"nothing": {}}
IDX = torch.randint(0, 16, (2, 40), generator=torch.Generator().manual_seed(0))


def tokens(seed: int, rows: int = 4, length: int = 40) -> torch.Tensor:
    return torch.randint(0, 16, (rows, length), generator=torch.Generator().manual_seed(seed))


def make(name: str, seed: int = 0, **changes: object) -> BDH:
    model = BDH.from_seed(BDHConfig(**(SHAPE | ALONE[name] | changes)), seed)
    model.calibrate(tokens(99))
    return model


def lived(name: str) -> BDH:
    """A model that has adapted: every threshold, gain and strength has moved away from where it starts."""
    model = make(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(3):
        model(tokens(step), tokens(step + 1))[1].backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    return model


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_a_later_token_changes_no_logit_before_it_bit_for_bit(name: str, training: bool) -> None:
    model = lived(name).train(training)
    model.drop.p = 0.0  # it would draw other numbers at each call
    other = IDX.clone()
    other[:, 23] = (other[:, 23] + 5) % 16
    one, two = model(IDX)[0], model(other)[0]
    assert torch.equal(one[:, :23], two[:, :23])
    assert error(two[:, 24:], one[:, 24:]) > CONTROL  # the memory carries it on


@EACH
def test_any_split_gives_the_same_logits_and_the_same_state(name: str, tmp_path: Path) -> None:
    model = lived(name).double().eval()
    whole, after = model.advance(IDX)
    assert error(whole, model(IDX)[0]) <= SAME[torch.float64]
    for split in ([1] * 40, [7, 1, 20, 12], [39, 1]):
        state: State | None = None
        logits = []
        for part in IDX.split(split, 1):
            out, state = model.advance(part, state)
            logits.append(out)
            checkpoint.save_state(state, tmp_path / "state.safetensors", model)
            state = checkpoint.load_state(tmp_path / "state.safetensors", model)
        assert error(torch.cat(logits, 1), whole) <= SAME[torch.float64]
        assert state.position == after.position
        for level in range(model.config.n_layer):
            expected = after.level(level)
            assert state.level(level).keys() == expected.keys()
            for key, value in state.level(level).items():
                assert error(value, expected[key]) <= SAME[torch.float64], key
    if model.config.lif.on:  # the control: a membrane that is forgotten shows
        _, state = model.advance(IDX[:, :20])
        rest = [{**state.level(n), "membrane": torch.zeros_like(state.level(n)["membrane"])} for n in range(2)]
        forgot = model.advance(IDX[:, 20:], State.of_levels(rest, 20))[0]
        assert error(forgot, whole[:, 20:]) > CONTROL


@EACH
def test_a_step_in_place_is_a_step(name: str) -> None:
    from bdh.generate import prefill, step

    model = lived(name).eval()
    whole = model(IDX)[0]
    _, state = prefill(model, IDX[:, :20])
    for t in range(20, 40):
        logits, state = step(model, IDX[:, t : t + 1], state)
        assert error(logits[:, 0], whole[:, t]) <= 1e-4


@EACH
def test_at_the_start_every_parameter_learns_and_the_rate_is_near_its_target(name: str) -> None:
    model = make(name).train()
    model(IDX, tokens(1, 2))[1].backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.norm() > 1e-8, key
    if model.config.lif.on:
        for spikes in model.get_spikes(IDX):
            rate = spikes.to_dense().mean().item()
            assert 0.5 * model.config.lif.rate < rate < 2 * model.config.lif.rate


@EACH
def test_it_learns_to_copy_what_only_memory_can_know(name: str) -> None:
    # tokens are independent, so the last one says nothing about the one before: the floor of a bigram model is ln 8
    lag, vocabulary = 2, 8

    def loss_of(model: BDH, seed: int) -> torch.Tensor:
        idx = tokens(seed, 8) % vocabulary
        return F.cross_entropy(model(idx)[0][:, lag:].flatten(0, 1), idx[:, :-lag].flatten())

    model = make(name, dropout=0.0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    floor, loss = math.log(vocabulary), math.inf
    for step in range(300):  # how long it takes hangs on roundings: 40 to 200 steps
        loss_of(model.train(), step).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        if step % 20 == 19:
            with torch.no_grad():
                loss = loss_of(model.eval(), 1000).item()
            if loss < 0.8 * floor:
                break
    assert loss < 0.8 * floor


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_in_is_precision_out(name: str, dtype: torch.dtype) -> None:
    model = make(name).to(dtype)
    logits, loss = model.train()(IDX, IDX)
    assert logits.dtype == dtype
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in model.parameters())
    logits, state = model.eval().advance(IDX)
    assert logits.dtype == dtype
    assert model.advance(IDX[:, :1], state)[0].isfinite().all()


@EACH
def test_a_saved_model_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = lived(name)
    again = checkpoint.load(checkpoint.save(model, tmp_path / "model"))
    assert again.config == model.config
    assert torch.equal(again(IDX)[0], model.eval()(IDX)[0])
    # and goes on learning under the same constraints
    again.train()(IDX, IDX)[1].backward()
    torch.optim.AdamW(again.parameters(), lr=1e-2).step()
    again.after_step()
    if again.parts.scale_free is not None:
        absent = ~again.parts.scale_free.mask
        assert absent.any()
        assert (again.decoder[absent] == 0).all()
        assert (again.decoder.grad[absent] == 0).all()
    if again.parts.dale is not None:
        assert (sign_purity(again.decoder.detach()) == 1).all()
        assert (again.encoder >= 0).all()


@EACH
def test_eval_mode_changes_nothing(name: str) -> None:
    model = lived(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(IDX)
    model.advance(IDX)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    adapting = [part for part in model.modules() if isinstance(part, (Homeostatic, ThresholdController))]
    model.train()(IDX)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert bool(moved) == bool(adapting)  # the control: in training they watch


@pytest.mark.parametrize("variant", VARIANTS)
def test_switching_all_off_is_the_released_model(variant: str) -> None:
    off = {name: section() for name, section in SECTIONS.items()}
    model = BDH.from_seed(BDHConfig(**SHAPE, variant=variant, **off), 0)
    plain = BDH.from_seed(BDHConfig(**SHAPE), 0)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(model.eval()(IDX)[0], plain.eval()(IDX)[0])
    assert model.config.released


@EACH
def test_each_switch_does_something(name: str) -> None:
    model, plain = lived(name).eval(), lived("nothing").eval()
    assert error(model(IDX)[0], plain(IDX)[0]) > CONTROL


@EACH
def test_counted_parameters_are_the_models(name: str) -> None:
    model = make(name)
    assert sum(p.numel() for p in model.parameters()) == model.config.n_parameters
