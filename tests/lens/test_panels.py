"""Pictures show the values, stay readable for many neurons, and escape what they quote."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch

from bdh import BDH, BDHConfig
from bdh.lens import Picture, inspect_mechanisms, spike_raster, spike_raster_plot
from bdh.lens.panels import figures
from bdh.lens.svg import Plot, Scale, picture, span

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</text><script>alert("1")</script> & \x00\n'


def spikes_of(*shape: int, rate: float = 0.1) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(0)) < rate).float()


def texts(drawn: Picture) -> list[str]:
    return [element.text or "" for element in ET.fromstring(str(drawn)).iter(f"{SVG}text")]


@pytest.mark.parametrize("sparse", [True, False])
def test_the_raster_has_exactly_the_spikes(sparse: bool) -> None:
    dense = spikes_of(2, 9, 30)
    raster = spike_raster([dense.to_sparse() if sparse else dense] * 2, neurons=range(30), sequence=1)
    assert len(raster.levels) == 2
    for level in raster.levels:
        assert level.events == tuple((t, n) for t, n in dense[1].nonzero().tolist())
        assert level.rate == pytest.approx(dense[1].mean(1).tolist())
    drawn = spike_raster_plot(dense, neurons=range(30), sequence=1)
    path = next(p for p in ET.fromstring(str(drawn)).iter(f"{SVG}path") if p.get("class") == "spike")
    assert len(re.findall("M", path.get("d") or "")) == int(dense[1].sum())


def test_rows_are_the_most_active_neurons_or_evenly_spaced_ones() -> None:
    spikes = torch.zeros(1, 6, 1000)
    for often, neuron in enumerate([700, 3, 44], start=2):
        spikes[0, :often, neuron] = 1
    assert spike_raster(spikes, neurons=2).levels[0].neurons == (3, 44)
    assert spike_raster(spikes, neurons=4, choice="even").levels[0].neurons == (125, 375, 625, 875)
    assert spike_raster(spikes, neurons=[44, 2, 44]).levels[0].neurons == (2, 44)
    # tokens that are not shown do not choose
    assert spike_raster(spikes, neurons=1, tokens=2).levels[0].neurons == (3,)


def test_thousands_of_neurons_stay_readable_and_the_picture_says_what_is_left_out() -> None:
    drawn = spike_raster_plot([spikes_of(1, 900, 5000)] * 3, text=b"x" * 900)
    assert "40 most active of 5,000 neurons per level, first 240 of 900 tokens" in texts(drawn)
    assert drawn.width < 1200
    assert drawn.height < 1000
    assert len(str(drawn)) < 1_000_000


def test_characters_stand_below_and_are_escaped() -> None:
    drawn = spike_raster_plot(spikes_of(1, len(HOSTILE), 12), text=HOSTILE)
    shown = texts(drawn)  # parses: nothing broke out
    assert [c for c in shown if c in ("<", ">", '"', "&", "↵", "␣")] == [
        c.replace("\n", "↵").replace(" ", "␣") for c in HOSTILE if c in '<>"& \n'
    ]
    assert "<script>" not in str(drawn)


def test_a_picture_is_a_file_and_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    drawn = spike_raster_plot(spikes_of(1, 5, 8), tmp_path / "raster.svg")
    assert (tmp_path / "raster.svg").read_text(encoding="utf-8") == str(drawn) == drawn._repr_svg_()
    assert "xmlns" not in drawn.inline
    assert "style" not in drawn.inline  # the policy of the report allows none
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png"):
        drawn.save(tmp_path / "raster.gif")


@pytest.mark.parametrize(
    ("spikes", "options", "match"),
    [
        ([], {}, "get_spikes"),
        (torch.zeros(3, 4), {}, r"\(3, 4\)"),
        (torch.zeros(1, 3, 4), {"neurons": 0}, "neurons=0"),
        (torch.zeros(1, 3, 4), {"neurons": [4]}, r"0\.\.3"),
        (torch.zeros(1, 3, 4), {"tokens": 0}, "tokens=0"),
        (torch.zeros(1, 3, 4), {"sequence": 1}, "sequence=1"),
        (torch.zeros(1, 3, 4), {"choice": "some"}, "active, even"),
        (torch.zeros(1, 3, 4), {"text": "four"}, "3 bytes that were read, got 4"),
    ],
)
def test_what_cannot_be_drawn_is_refused(spikes: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        spike_raster_plot(spikes, **options)


def test_silence_is_drawn_too() -> None:
    drawn = spike_raster_plot(torch.zeros(1, 3, 4))
    assert "level 0: 0.0% of all neurons spike per token" in texts(drawn)


@pytest.mark.parametrize("variant", ["hatching", "advanced"])
def test_every_mechanism_with_a_picture_has_one_that_parses(variant: Any) -> None:
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=4, variant=variant)
    model = BDH.from_seed(config, seed=0)
    model.calibrate(torch.arange(256)[None])
    found = inspect_mechanisms(model, torch.tensor([list(HOSTILE.encode() * 3)]), torch.arange(256).repeat(8))
    assert found is not None
    made = figures(found)
    titles = ["Spikes", "Membranes", "Neuromodulation", "STDP window", "Firing", "Dale's law", "Degrees"]
    assert [figure.title for figure in made] == [t for t in titles if variant == "advanced" or t != "Neuromodulation"]
    for figure in made:
        whole = ET.fromstring(str(figure.picture))
        assert "nan" not in figure.picture.body
        for element in whole.iter():
            for name in ("x", "x1", "x2", "cx"):
                assert -1 <= float(element.get(name, 0)) <= figure.picture.width + 1


def test_marks_stand_where_the_values_are() -> None:
    plot = Plot(Scale(0, 10, 100, 200), Scale(1, 100, 50, 10, log=True))
    drawn = picture(210, 60, "x & y", [plot.line((0, 10), (1, 10)).points([5], [100]).bars((0, 5, 10), (1, 10))])
    assert '<path class="one" d="M100 50L200 30"/>' in drawn.body
    assert 'cx="150" cy="10"' in drawn.body
    assert '<rect class="fill" x="150.5" y="30" width="49" height="20"/>' in drawn.body
    assert drawn.body.count("<rect") == 1  # nothing to draw of the lowest value
    assert 'aria-label="x &amp; y"' in drawn.inline


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 1, 0, 0), [0, 0.5, 1]),
        (Scale(-0.13, 0.06, 0, 0), [-0.1, -0.05, 0, 0.05]),
        (Scale(0, 2300, 0, 0), [0, 1000, 2000]),
        (Scale(32, 128, 0, 0, log=True), [32, 64, 128]),
        (Scale(1e-3, 1, 0, 0, log=True), [1e-3, 1e-2, 0.1, 1]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float]) -> None:
    assert scale.ticks() == pytest.approx(ticks)


def test_a_span_is_never_empty() -> None:
    for values in ([], [0.0], [5.0, 5.0], [-1.0], [float("nan"), 2.0]):
        for zero in (True, False):
            low, high = span(values, zero)
            assert low < high
