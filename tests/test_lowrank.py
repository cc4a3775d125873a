"""Changes of low rank: nothing at first, alone in learning, and gone into the weights of a checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import bdh
from bdh import BDH, BDHConfig
from bdh.checkpoint import CheckpointError, fingerprint
from bdh.lowrank import MAPS, add_low_rank, load_adapter
from bdh.model import cross_entropy
from bdh.train import Run, fit
from small_training import SHAPE, TRAIN, corpus, quiet
from tolerances import CONTROL, SAME, error

IDX = torch.arange(40).view(2, 20)


def test_nothing_changes_at_first_bit_for_bit(tiny: BDH) -> None:
    before = tiny(IDX)[0]
    names = set(tiny.state_dict())
    count = add_low_rank(tiny, 3)
    assert torch.equal(tiny(IDX)[0], before)
    assert set(tiny.state_dict()) == names
    c = tiny.config
    assert count == 3 * 3 * c.n_head * (c.n_embd + c.neurons_per_head)
    assert count == sum(p.numel() for p in tiny.parameters() if p.requires_grad)
    state = torch.random.get_rng_state()
    add_low_rank(BDH.from_seed(c, 1), 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_checkpoint_of_it_is_a_plain_model_with_the_sum(tiny: BDH, tmp_path: Path) -> None:
    base = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    before = tiny(IDX)[0]
    add_low_rank(tiny, 2, alpha=4.0, seed=5)
    tiny.train()
    optimizer = torch.optim.SGD([p for p in tiny.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        cross_entropy(tiny(IDX)[0], IDX.roll(-1, 1)).backward()
        optimizer.step()
        optimizer.zero_grad()
    tiny.eval()
    with torch.no_grad():
        changed = tiny(IDX)[0]
        plain = bdh.load(bdh.save(tiny, tmp_path / "tuned"))
        assert type(plain) is BDH
        assert error(plain(IDX)[0], changed) < SAME[torch.float32]
        assert error(before, changed) > CONTROL
    for name in ("embed.weight", "lm_head"):
        assert torch.equal(plain.state_dict()[name], base[name])
    c = tiny.config
    for name in MAPS:
        change = plain.state_dict()[name] - base[name]
        if name == "decoder":
            change = change.view(c.n_head, c.neurons_per_head, c.n_embd)
        for head in change:
            strength = torch.linalg.svdvals(head.double())
            assert strength[1] > 0
            assert strength[2] < 1e-5 * strength[0], "more than rank 2"


def test_each_head_and_neuron_moves_as_the_equation_says(tiny: BDH) -> None:
    base = tiny.encoder.detach().clone(), tiny.decoder.detach().clone()
    add_low_rank(tiny, 2, alpha=6.0)
    with torch.no_grad():
        for name in ("encoder", "decoder"):
            part = tiny.parametrizations[name][0]
            part.coefficients[1, 0, 5] = 0.5
            expected = 6.0 / 2 * 0.5 * part.directions[1, :, 0]
            if name == "encoder":
                assert error(tiny.encoder[1, :, 5] - base[0][1, :, 5], expected) < 1e-4
            else:
                row = tiny.config.neurons_per_head + 5
                assert error(tiny.decoder[row] - base[1][row], expected) < 1e-4
        assert int((tiny.encoder != base[0]).any(1).sum()) == int((tiny.decoder != base[1]).any(1).sum()) == 1


def test_ranks_and_models_that_cannot_be_are_refused(tiny: BDH) -> None:
    for rank, alpha in ((0, 1.0), (17, 1.0), (2, 0.0)):
        with pytest.raises(ValueError, match="expected 1 <= rank <= n_embd=16"):
            add_low_rank(tiny, rank, alpha)
    add_low_rank(tiny, 2)
    with pytest.raises(ValueError, match="expected a plain model"):
        add_low_rank(tiny, 2)
    held = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, variant="hatching"))
    with pytest.raises(ValueError, match="expected free weights, dale holds them"):
        add_low_rank(held, 2)


@pytest.mark.parametrize("variant", ["bdh", "spiking"])
def test_an_adapter_holds_all_that_training_changed(variant: str, tmp_path: Path) -> None:
    """What mechanisms adapt is no sum, and is kept too."""
    mechanisms = {"lif": {"tau": 5.0}, "bcm": {"kappa": 1.0, "tau": 2.0}} if variant == "spiking" else {}
    config = BDHConfig.from_dict(SHAPE | mechanisms)
    model = BDH.from_seed(config, 0)
    add_low_rank(model, 2)
    train = replace(TRAIN, max_steps=6)
    fit(model, corpus(), train, Run(tmp_path), quiet())
    last = Run(tmp_path).last
    assert last is not None
    plain = BDH.from_seed(config, 0)
    assert load_adapter(plain, last / "adapter.safetensors") is None
    assert all(parameter.requires_grad for parameter in plain.parameters())
    before, found, expected = BDH.from_seed(config, 0).state_dict(), plain.state_dict(), bdh.load(last).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert any(not torch.equal(before[name], found[name]) for name in found if name.startswith("parts.")) == (
        variant == "spiking"
    )
    with pytest.raises(CheckpointError, match="expected the model that it was trained on"):
        load_adapter(plain, last / "adapter.safetensors")


def test_an_adapter_that_does_not_fit_changes_nothing(tiny: BDH, tmp_path: Path) -> None:
    base = {name: tensor.clone() for name, tensor in tiny.state_dict().items()}
    about = {"format": "1", "rank": "2", "alpha": "16.0", "seed": "0", "base": fingerprint(tiny), "prompting": "{}"}
    for change, says in (
        ({"rank": "9999"}, "expected 1 <= rank"),
        ({"rank": "two"}, "invalid literal"),
        ({"prompting": "[]x"}, "Extra data"),
        ({"prompting": "7"}, "not iterable"),
        ({"alpha": "nan"}, "alpha > 0"),
        ({"format": "2"}, "not those of format 1"),
        ({}, "do not fit the model"),
    ):
        save_file({"encoder.directions": torch.ones(2, 16, 2)}, tmp_path / "a", metadata=about | change)
        with pytest.raises(CheckpointError, match=says) as found:
            load_adapter(tiny, tmp_path / "a")
        assert "\n" not in str(found.value)
    (tmp_path / "a").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError, match="is no adapter"):
        load_adapter(tiny, tmp_path / "a")
    assert all(torch.equal(tensor, base[name]) for name, tensor in tiny.state_dict().items())
