"""What a tail may be called, on samples of which it is known; the stated rule is what is tested."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bdh.lens.topology import Comparison, Tail, ccdf, fit_tail, word

Draw = Callable[[np.random.Generator], np.ndarray]


def power_law(rng: np.random.Generator, alpha: float, low: int, count: int) -> np.ndarray:
    weight = np.cumsum(np.arange(low, 10**6) ** -alpha)
    return low + np.searchsorted(weight / weight[-1], rng.random(count))


@pytest.mark.parametrize(
    ("verdict", "draw"),
    [
        ("power law", lambda rng: power_law(rng, 2.5, 3, 600)),
        ("heavy-tailed", lambda rng: np.rint(rng.lognormal(1, 1.5, 1000)).astype(int)),
        ("not heavy-tailed", lambda rng: rng.geometric(0.1, 1000)),
        ("not heavy-tailed", lambda rng: rng.poisson(20, 1000)),
    ],
    ids=["power law", "lognormal", "exponential", "Poisson"],
)
def test_a_tail_is_called_what_it_is(verdict: str, draw: Draw, capfd: pytest.CaptureFixture[str]) -> None:
    tail = fit_tail(draw(np.random.default_rng(1)))
    assert tail is not None
    assert tail.verdict == verdict
    assert tail.n >= 50
    assert capfd.readouterr() == ("", "")
    if verdict == "power law":
        assert tail.alpha == pytest.approx(2.5, abs=3 * 1.5 / np.sqrt(tail.n))  # three standard errors
        assert tail.xmin <= 6
        assert tail.truncated is not None
        assert tail.truncated.R <= 0.1  # what contains the other fits no worse


def test_too_little_to_fit_is_no_heavy_tail() -> None:
    assert fit_tail([0] * 1000 + [1, 2, 3]) is None
    assert fit_tail([4] * 1000) is None
    assert word(None) == "not heavy-tailed"


BETTER, WORSE, EVEN = Comparison(20, 0.01), Comparison(-20, 0.01), Comparison(-0.1, 0.8)
LAW = Tail(2.5, 3, 900, 1000, 400, BETTER, EVEN, BETTER, truncated=EVEN, plausible=0.5)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "power law"),
        ({"lognormal": WORSE}, "heavy-tailed"),
        ({"truncated": WORSE}, "heavy-tailed"),
        ({"truncated": BETTER}, "heavy-tailed"),  # cannot be: its fit failed
        ({"truncated": None}, "heavy-tailed"),
        ({"plausible": None}, "heavy-tailed"),
        ({"n": 200}, "heavy-tailed"),
        ({"n": 90, "connected": 200}, "heavy-tailed"),
        ({"largest": 29}, "heavy-tailed"),
        ({"plausible": 0.05}, "heavy-tailed"),
        ({"exponential": Comparison(3, 0.4)}, "heavy-tailed"),
        ({"exponential": Comparison(3, 0.4), "lognormal_exponential": Comparison(3, 0.4)}, "not heavy-tailed"),
        ({"exponential": Comparison(-3, 0.4)}, "not heavy-tailed"),
    ],
)
def test_the_rule(change: dict[str, object], verdict: str) -> None:
    assert replace(LAW, **change).verdict == verdict


def test_a_ccdf_counts_from_above() -> None:
    values, share = ccdf([3, 0, 3, 7])
    assert (values.tolist(), share.tolist()) == ([0, 3, 7], [1.0, 0.75, 0.25])
