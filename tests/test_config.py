import dataclasses
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH, BDHConfig, TrainConfig, preset
from bdh.config import PRESETS, TRAIN_PRESETS, train_preset
from bdh.sections import LIF, SECTIONS, STDP, Branches, Dale, ScaleFreeWiring


@pytest.mark.parametrize(("name", "count"), [("25m", 25_296_896), ("100m", 100_925_440)])
def test_presets_have_the_published_number_of_parameters(name: str, count: int) -> None:
    assert preset(name).n_parameters == count


def test_counted_parameters_are_the_models() -> None:
    config = preset("nano")
    assert sum(p.numel() for p in BDH(config).parameters()) == config.n_parameters


def test_parameters_do_not_depend_on_depth() -> None:
    assert preset("25m", n_layer=12).n_parameters == preset("25m").n_parameters


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"n_layer": 0}, "n_layer=0: expected an integer >= 1"),
        ({"n_layer": True}, "n_layer=True"),
        ({"n_embd": 2.5}, "n_embd=2.5"),
        ({"n_head": "4"}, "n_head='4'"),
        ({"vocab_size": -1}, "vocab_size=-1"),
        ({"dropout": 1.0}, "dropout=1.0: expected a number >= 0 and < 1"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"sparsity": 1.0}, "sparsity=1.0"),
        ({"sparsity": -0.1}, "sparsity=-0.1"),
        ({"sparsity": 0.99999, "n_embd": 8}, "at least one of"),
        ({"variant": "swan"}, "variant='swan': expected one of bdh"),
        ({"n_embd": 10, "n_head": 4, "mlp_internal_dim_multiplier": 3}, "divisible by 2 * n_head = 8"),
    ],
)
def test_a_bad_value_says_what_was_expected(bad: dict, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        BDHConfig(**bad)
    assert says in str(caught.value)


def test_the_remedy_for_indivisible_neurons_works() -> None:
    with pytest.raises(ValueError, match="nearest: 4 or 8"):
        BDHConfig(n_embd=10, n_head=4, mlp_internal_dim_multiplier=6)
    for multiplier in (4, 8):
        BDHConfig(n_embd=10, n_head=4, mlp_internal_dim_multiplier=multiplier)


@given(
    n_layer=st.integers(1, 50),
    n_head=st.integers(1, 16),
    width=st.integers(1, 64),
    multiplier=st.integers(1, 64),
    sparsity=st.none() | st.floats(0, 0.9),
)
def test_every_config_is_refused_or_survives_json(
    n_layer: int, n_head: int, width: int, multiplier: int, sparsity: float | None
) -> None:
    values = {
        "n_layer": n_layer,
        "n_head": n_head,
        "n_embd": width,
        "mlp_internal_dim_multiplier": multiplier,
        "sparsity": sparsity,
    }
    try:
        config = BDHConfig(**values)
    except ValueError:
        refused_for_shape = width * multiplier % (2 * n_head) != 0
        assert refused_for_shape or sparsity is not None
    else:
        assert BDHConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert config.neurons_per_head % 2 == 0


def test_unknown_names_get_a_near_match() -> None:
    with pytest.raises(ValueError, match="did you mean '25m'"):
        preset("25M")
    with pytest.raises(ValueError, match="did you mean 'n_layer'"):
        preset("nano", n_layers=3)


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("nano").n_layer = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "bad",
    [
        {"block_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"warmup_steps": -1},
        {"schedule": "step"},
        {"dtype": "int8"},
        {"backend": "fast"},
        {"backend": "tiled", "compile": True},
        {"seed": 2**63},
        {"beta2": 1.0},
        {"grad_clip": -1.0},
        {"eval_windows": 0},
    ],
)
def test_bad_training_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        TrainConfig(**bad)


def test_every_size_has_training_settings() -> None:
    assert TRAIN_PRESETS.keys() == PRESETS.keys()
    for name in PRESETS:
        train_preset(name)


def test_a_variant_presets_sections_and_each_can_be_set_alone() -> None:
    hatching = preset("nano", variant="hatching")
    assert {name for name in SECTIONS if getattr(hatching, name).on} == {"lif", "stdp", "dale", "scale_free"}
    alone = preset("nano", lif=LIF(tau=5.0))
    assert {name for name in SECTIONS if getattr(alone, name).on} == {"lif"}
    without = preset("nano", variant="hatching", stdp=STDP())
    assert {name for name in SECTIONS if getattr(without, name).on} == {"lif", "dale", "scale_free"}
    advanced = preset("nano", variant="advanced")
    assert {name for name in SECTIONS if getattr(advanced, name).on} == set(SECTIONS)
    assert preset("nano").released
    assert not any(config.released for config in (hatching, alone, without, advanced))
    assert preset("nano", variant="hatching", lif=LIF(), stdp=STDP()).released  # masks and signs change weights alone


@pytest.mark.parametrize("variant", ["bdh", "hatching", "advanced"])
def test_sections_go_through_json(variant: str) -> None:
    config = preset("nano", variant=variant, lif=LIF(tau=3.0, reset="hard"))
    assert BDHConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_from_before_there_were_sections_is_the_released_model() -> None:
    old = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4, "variant": "bdh"}
    assert BDHConfig.from_dict(old).released


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LIF(tau=-1.0), "lif.tau=-1.0: expected a number > 0"),
        (lambda: LIF(tau=float("nan")), "lif.tau=nan"),
        (lambda: LIF(tau=10.0, rate=0.5, refractory=1), "lif.rate=0.5: expected a number > 0 and < 0.5"),
        (lambda: LIF(tau=10.0, reset="softly"), "did you mean 'soft'?"),
        (lambda: LIF(rate=0.2), "lif.rate=0.2: expected lif to be on; set lif.tau (10 is usual), or leave it away"),
        (lambda: STDP(form="kernle"), "stdp.form='kernle': expected one of off, kernel, trace; did you mean 'kernel'?"),
        (lambda: ScaleFreeWiring(gamma=1.0), "scale_free.gamma=1.0: expected a number > 1"),
        (lambda: Branches(branches=0), "dendrites.branches=0: expected an integer >= 1"),
        (lambda: preset("nano", lif=LIF(tau=1.0), sparsity=0.5), "both decide who fires"),
        (lambda: preset("nano", scale_free=ScaleFreeWiring(gamma=2.0, k_min=999)), "at most n_embd=128"),
        (lambda: preset("nano", dale=Dale(excitatory=0.0001)), "of both kinds"),
        (lambda: preset("nano", lif=0.5), "lif=0.5: expected a LIF"),
        (lambda: BDHConfig.from_dict({"lif": {"tua": 1.0}}), "unknown LIF field 'tua': did you mean 'tau'?"),
    ],
)
def test_a_bad_section_says_what_was_expected(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value)
