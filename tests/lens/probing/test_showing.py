"""What is said of a probe is what was found."""

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bdh.lens import Probe, Protocol, print_probes, probe_panel
from bdh.lens.probing.findings import CRITERIA, Causal, Finding, Nulls
from bdh.lens.probing.showing import verdict
from bdh.lens.probing.units import Unit

PASSES = Finding(
    unit=Unit(2, 604), effect_a=0.9, u=3400.0, effect=0.889, low=0.7, high=1.0, p=1e-16, q=1e-15, p_words=0.0002,
    q_words=0.004, lexical=0.8, lexical_low=0.5, lexical_high=1.0, activity=0.2, p_matched=0.01, beats_init=True,
    causal=Causal(effect=0.8, divergence=0.01, loss=0.002, largest_control=0.4, p=1 / 21, n_controls=20),
)  # fmt: skip
FAILS = replace(PASSES, unit=Unit(1, 7), effect=0.3, lexical_low=-0.1, causal=None)


def found(*findings: Finding) -> Probe:
    nulls = Nulls(shuffled=0.02, shuffled_most=3, init=0.0, init_effect=0.42, matched=0.01)
    return Probe(
        "kinship", "members of a family, against other persons", "ab" * 32, "neurons", "x_sparse", (0, 1, 2), 3072,
        (60, 60), (12, 12), Protocol(), findings, 1, nulls, len(findings),
    )  # fmt: skip


def printed(probe: Probe, width: int = 100) -> str:
    out = io.StringIO()
    print_probes([probe], Console(file=out, width=width, highlight=False))
    return out.getvalue()


BREAKS = {
    "effect": {"effect": 0.49},
    "fdr": {"q": 0.051},
    "words": {"q_words": 0.051},
    "lexical": {"lexical_low": 0.0},
    "init": {"beats_init": False},
    "matched": {"p_matched": 0.051},
    "causal": {"causal": None},
}


@pytest.mark.parametrize("name", CRITERIA)
def test_each_criterion_alone_makes_a_unit_fail(name: str) -> None:
    assert PASSES.failed(Protocol()) == ()
    assert replace(PASSES, **BREAKS[name]).failed(Protocol()) == (name,)  # type: ignore[arg-type]


def test_an_interval_that_has_zero_fails_the_effect() -> None:
    assert replace(PASSES, low=-0.01).failed(Protocol()) == ("effect",)


def test_the_last_line_says_which_pass() -> None:
    out = printed(found(PASSES, FAILS))
    last = " ".join(out.split())
    assert last.endswith("kinship: 1 of 2 tested neurons pass everything: neuron 604, level 2 (r = 0.89).")
    assert "EFWLIMC" in out
    assert ".FW.IM." in out
    assert "0.02 with shuffled labels" in " ".join(out.split())
    assert "abababababababab" in out
    assert max(map(len, out.splitlines())) <= 100


def test_a_row_of_synapses_fits_a_narrow_terminal() -> None:
    widest = replace(FAILS, unit=Unit(10, 32767, 32764), effect=-0.25, low=-0.75, high=-0.25, q=1e-15, q_words=1e-15)
    out = printed(found(widest), 80)
    assert "32764>32767 L10" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_last_line_says_that_none_passes_and_why() -> None:
    out = " ".join(printed(found(FAILS)).split())
    assert out.endswith("none passes. The nearest of the 1 tested neurons, neuron 7, level 1 (r = 0.30), fails: "
                        "effect, lexical, causal.")  # fmt: skip


def test_the_panel_has_every_unit_and_its_nulls(tmp_path: Path) -> None:
    panel = probe_panel(found(PASSES, FAILS), "bdh probe kinship")
    assert panel.note.startswith(verdict(found(PASSES, FAILS)))
    assert "largest effect 0.42" in panel.baseline
    assert panel.tables["Tested units"].column("failed") == ("", "effect lexical causal")
    assert panel.tables["Tested units"].column("causal_p") == (1 / 21, None)
    assert panel.tables["What a unit has to pass"].column("criterion") == tuple(CRITERIA)
    ET.fromstring(str(panel.pictures[0]))
    assert "neuron 604, level 2, passes" in str(panel.pictures[0])
    assert {"concept-kinship-neurons-1.svg", "concept-kinship-neurons-2.csv"} <= {
        file.name for file in panel.save(tmp_path)
    }


def test_json_has_the_verdicts_and_what_was_fixed_before() -> None:
    values = json.loads(json.dumps(found(PASSES, FAILS).to_dict(), allow_nan=False))
    assert [one["passes"] for one in values["findings"]] == [True, False]
    assert values["protocol"]["seed"] == 0
    assert values["criteria"]["effect"].startswith("rank-biserial of half b at least 0.5")
    assert values["sha256"] == "ab" * 32
    assert values["n_discovered"] == 1
