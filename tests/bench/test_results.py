"""Figures and what is derived from them."""

import math

import pytest

from bdh.bench import Column, Learning, Memory, Point, Settings, Table, Timing
from bdh.bench.measure import _sitting_out
from bdh.bench.results import Cell
from bdh.config import preset

POINT = Point("train", 2, 50)


def column(**cells: Cell) -> Column:
    return Column(POINT, {"x": 0.2, "xy": 0.05}, {name.replace("_", "-"): cell for name, cell in cells.items()})


def test_the_median_counts_not_the_mean() -> None:
    timing = Timing((0.3, 0.1, 9.0, 0.2, 0.4), 7)
    assert timing.cost == 0.3
    assert timing.to_dict(POINT)["tokens_per_second"] == pytest.approx(100 / 0.3)
    assert timing.to_dict(POINT)["seconds"] == [0.3, 0.1, 9.0, 0.2, 0.4]


def test_ratios_are_to_the_reference_wherever_it_stands() -> None:
    both = column(native=Timing((0.5,), 0), reference=Timing((2.0,), 0))
    assert both.ratio("native") == 4.0
    assert both.ratio("reference") == 1.0
    alone = column(composed=Timing((1.0,), 0), native=Timing((0.5,), 0))
    assert alone.baseline == "composed"
    assert alone.ratio("native") == 2.0


def test_no_ratio_to_a_reference_that_failed() -> None:
    assert column(reference="out of memory", native=Timing((1.0,), 0)).ratio("native") is None


def test_one_more_token_counts_once_per_sequence() -> None:
    assert Point("decode", 3, 512).tokens_per_call == 3
    assert Point("prefill", 3, 512).tokens_per_call == 1536


def test_activations_are_counted_per_token() -> None:
    figures = Memory(1000, 300, 600, 1.0).to_dict(POINT)
    assert figures["kept_bytes_per_token"] == 6.0
    assert Memory(1000, None, None, 1.0).to_dict(POINT)["kept_bytes_per_token"] is None


def test_time_to_a_loss_is_that_of_the_first_validation_below_it() -> None:
    curve = ((0.0, 5.5), (10.0, 2.1), (20.0, 1.85), (30.0, 1.95))
    assert Learning(curve, 1.9, 150, {}).cost == 20.0
    assert Learning(curve, 1.8, 150, {}).cost is None
    assert Learning(curve, 1.8, 150, {}).best == 1.85


def test_json_says_why_there_are_no_figures() -> None:
    table = Table("train", "train", "nano", (column(reference=Timing((2.0,), 5), gpt2="skipped: no"),), {})
    (point,) = table.to_dict()["points"]
    assert point["density"] == {"x": 0.2, "xy": 0.05}
    assert point["rows"][1] == {"contender": "gpt2", "skipped": "skipped: no"}
    assert point["rows"][0]["median_seconds"] == 2.0


def length_column(tokens: int, **cells: Cell) -> Column:
    return Column(Point("train", 1, tokens), None, dict(cells))


def test_what_would_take_too_long_sits_out() -> None:
    columns = [
        length_column(256, reference=Timing((0.1,), 0), native=Timing((0.1,), 0), gpt2="its window ends"),
        length_column(512, reference=Timing((0.4,), 0), native=Timing((0.2,), 0), gpt2="its window ends"),
    ]
    names = ("reference", "native", "gpt2")
    out = _sitting_out(names, columns, Point("train", 1, 4096))
    assert out == {
        "reference": "sits out from 4,096 tokens on: about 26 s per call",
        "gpt2": "its window ends",
    }
    assert _sitting_out(names, columns, Point("train", 1, 1024)) == {"gpt2": "its window ends"}


def test_what_suits_a_model_is_measured_unless_told_otherwise() -> None:
    usual = Settings(cases=("train", "length", "decode"))
    assert usual.models() == {"nano": ("train", "length", "decode"), "25m": ("train", "decode")}
    assert Settings(cases=("loss",), model_size=("25m",)).models() == {"25m": ("loss",)}
    assert usual.points("train", preset("nano")) == (Point("train", 8, 128),)
    assert usual.points("train", preset("25m")) == (Point("train", 1, 256),)
    asked = Settings(batch_size=3, block_size=40)
    assert asked.points("prefill", preset("25m")) == (Point("prefill", 3, 40),)
    assert [point.tokens for point in asked.points("length", preset("nano"))][:5] == [40, 80, 160, 640, 2560]
    assert [point.position for point in asked.points("decode", preset("nano"))] == [None, None, 1000, 100_000]
    assert asked.training("nano").block_size == 40


def test_numbers_must_be_finite() -> None:
    for wrong in ({"max_seconds": math.inf}, {"target_loss": math.nan}, {"repeats": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="expected"):
            Settings(**wrong)
