"""Panels of memory and predictions have the figures of what they show, and their pictures parse."""

import xml.etree.ElementTree as ET

import pytest

from bdh import BDH, BDHConfig
from bdh.lens import (
    attribute_logit,
    diff_states,
    explain_reading,
    logit_lens,
    measure_repetition,
    measure_surprise,
    memory_energy,
    memory_span,
    repeated_words,
    signed_attention,
    snapshots,
    strongest_growth,
    synapse_course,
    write_ledger,
)
from bdh.lens.logit_panels import (
    attention_panel,
    attribution_panel,
    logit_panel,
    repetition_panel,
    surprise_panel,
)
from bdh.lens.memory_panels import course_panel, diff_panel, energy_panel, growth_panel, reading_panel, span_panel
from bdh.lens.panel import Panel

TEXT = 'a <b>&"' + "one euro, two euros. " * 3
SVG = "{http://www.w3.org/2000/svg}"


def small() -> BDH:
    return BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0), 0)


def every_panel() -> list[Panel]:
    model = small()
    states = snapshots(model, TEXT, [4, 20])
    return [
        energy_panel(memory_energy(model, TEXT)),
        span_panel(memory_span(model, TEXT)),
        diff_panel(diff_states(model, *states)),
        diff_panel(diff_states(model, states[0], states[0])),
        growth_panel(strongest_growth(model, TEXT, (4, 8), 1), (0.0, 1.0), "<b>", 1),
        course_panel(synapse_course(model, TEXT, 1, 3, 5)),
        reading_panel(explain_reading(model, TEXT, 1, 20)),
        reading_panel(explain_reading(model, TEXT, 1, 20, gate=70)),
        repetition_panel(measure_repetition(model, 2, resamples=9)),
        surprise_panel(measure_surprise(model, repeated_words(3), resamples=9)),
        logit_panel(logit_lens(model, TEXT)),
        attribution_panel(attribute_logit(model, TEXT, 9)),
        attention_panel(signed_attention(model, TEXT, 1)),
    ]


def test_every_panel_stands_on_a_page() -> None:
    for panel in every_panel():
        assert "<b>" not in panel.html().replace("<b>Compared with</b>", "")
        assert panel.python.startswith("bdh.lens.")
        for picture in panel.pictures:
            whole = ET.fromstring(str(picture))
            assert "nan" not in picture.body
            for element in whole.iter():
                for name in ("x", "x1", "x2", "cx"):
                    assert -1 <= float(element.get(name, 0)) <= picture.width + 1


def test_a_picture_of_scores_has_their_signs() -> None:
    found = signed_attention(small(), TEXT[-40:], 1)
    panel = attention_panel(found)
    for head, picture in zip(found.heads, panel.pictures, strict=True):
        most = max(abs(score) for row in head.scores for score in row)
        seen = [score for row in head.scores for score in row if abs(score) >= 0.02 * most]
        words = [element.text for element in ET.fromstring(str(picture)).iter(f"{SVG}text")]
        assert words.count("−") == sum(score < 0 for score in seen) > 0
        colours = [element.get("fill") for element in ET.fromstring(str(picture)).iter(f"{SVG}rect")]
        assert colours.count("#b35806") == words.count("−")
        assert colours.count("#542788") == sum(score > 0 for score in seen)


@pytest.mark.parametrize("gate", [None, 70])
def test_single_contributions_are_those_of_the_ledger(gate: int | None) -> None:
    model = small()
    idx = model.as_ids(TEXT)
    found = explain_reading(model, idx, 1, 20, gate, top=9999)
    ledger = write_ledger(model, idx, 1, 20)
    K = model.config.neurons_per_head
    by_token = [0.0] * 20
    for one in found.through:
        by_token[one.position] += one.part
    expected = ledger.scores[0].sum(0) if gate is None else ledger.to_gate(gate)[0]
    assert by_token == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
    assert sum(by_token) == pytest.approx(found.total, rel=1e-3)
    if gate is None:
        one = found.through[0]
        score = ledger.through[0, one.neuron // K, one.position, one.neuron % K].item()
        assert one.part == pytest.approx(score) == pytest.approx(ledger.through.abs().max().item())
    else:
        assert {one.neuron // K for one in found.through} == {gate // K}


def test_a_first_token_reads_nothing() -> None:
    with pytest.raises(ValueError, match="position=0"):
        explain_reading(small(), TEXT, 0, 0)
    with pytest.raises(ValueError, match="top=0"):
        explain_reading(small(), TEXT, 0, 3, top=0)
