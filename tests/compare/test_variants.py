"""What a name stands for, and the one line that says why it stands for nothing."""

import pytest

from bdh import preset
from bdh.compare import Settings, parse_variants


def test_plain_names_are_the_members_of_the_family() -> None:
    first, hatching, advanced, gpt = parse_variants("bdh, hatching,advanced,gpt", "2m")
    assert first.model == preset("2m")
    assert hatching.model == preset("2m", variant="hatching")
    assert advanced.model == preset("2m", variant="advanced")
    assert (gpt.model, gpt.peer) == (preset("2m"), True)
    assert not any(v.peer or v.training for v in (first, hatching, advanced))


def test_settings_change_what_they_name_and_nothing_else() -> None:
    name = "hatching+stdp.form=off+dale.excitatory=None+lif.rate=0.2+lif.gate=true+n_layer=2+learning_rate=1e-3"
    (found,) = parse_variants(name)
    plain = preset("nano", variant="hatching")
    assert found.name == name
    assert not found.model.stdp.on
    assert not found.model.dale.on
    assert (found.model.lif.tau, found.model.lif.rate, found.model.lif.gate) == (plain.lif.tau, 0.2, True)
    assert found.model.n_layer == 2
    assert found.model.scale_free == plain.scale_free
    assert found.training == {"learning_rate": 1e-3}


def test_a_plus_sign_inside_a_number_does_not_part() -> None:
    (found,) = parse_variants("bdh+lif.tau=1e+1")
    assert found.model.lif.tau == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bdh,hatchling", "did you mean 'hatching'"),
        ("", "expected one of bdh, hatching, advanced, gpt"),
        ("bdh,bdh", "comes twice"),
        ("bdh+lif.tua=10", "did you mean 'tau'"),
        ("bdh+lfi.tau=10", "did you mean 'lif'"),
        ("bdh+lif.tau", "expected FIELD=VALUE"),
        ("bdh+lif.tau=", "expected FIELD=VALUE"),
        ("bdh+lif.tau=ten", "expected float or None"),
        ("bdh+lif.tau=10+lif.gate=3", "expected bool"),
        ("bdh+lif.rate=0.2", "lif to be on"),
        ("bdh+lif.tau=-1", "number > 0"),
        ("bdh+batch_size=4", "'batch_size'"),  # would be another comparison
        ("bdh+seed=4", "'seed'"),
        ("bdh+variant=hatching", "'variant'"),
        ("bdh+learning_rate=0", "learning_rate=0.0: expected a number > 0"),
        ("gpt+n_layer=3", "'n_layer'"),
    ],
)
def test_a_mistake_is_named(text: str, words: str) -> None:
    with pytest.raises(ValueError) as error:
        parse_variants(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"minutes": 1.0, "max_steps": 3}, "one of them"),
        ({"minutes": -1.0}, "--minutes"),
        ({"max_steps": 0}, "--max-steps"),
        ({"model_size": "nan"}, "did you mean 'nano'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**values)


@pytest.mark.parametrize("seeds", ["", "1,", "1,-2", "a", "1,1", "1.5"])
def test_seeds_are_different_whole_numbers(seeds: str) -> None:
    with pytest.raises(ValueError, match="--seeds"):
        _ = Settings(seeds=seeds).seed_list


def test_an_interval_of_nothing_is_refused() -> None:
    assert Settings(eval_interval=7).training(100, {}).eval_interval == 7
    with pytest.raises(ValueError, match="eval_interval=0"):
        Settings(eval_interval=0).training(100, {})
