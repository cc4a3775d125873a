"""What is said about mechanisms is what the parts compute; a model without any has nothing said."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from bdh import BDH, BDHConfig
from bdh.lens import Mechanisms, firing, inspect_mechanisms, inspect_text, print_inspection, write_report
from bdh.lens.wording import NO_PROOF, sentences
from bdh.mechanisms import ei_balance, scale_free_degrees, sign_purity, stdp_window
from bdh.sections import BCM, LIF, SECTIONS, STDP, VARIANTS, Dale

TEXT = b"To be or not to be, that is"
BASELINE = b"the quick ones ask; no iraq & co\n" * 20
SHAPE: dict[str, Any] = {"n_layer": 2, "n_embd": 32, "n_head": 2, "mlp_internal_dim_multiplier": 4}


def model_of(**more: Any) -> BDH:
    model = BDH.from_seed(BDHConfig(**SHAPE, **more), seed=0)
    with torch.no_grad():  # as if it had learned: another scale, so that the membranes move
        model.embed.weight.mul_(3)
    model.calibrate(ids(BASELINE)[:, :200])
    return model.eval()


def ids(text: bytes) -> Tensor:
    return torch.tensor([list(text)])


def found_in(model: BDH, **options: Any) -> Mechanisms:
    found = inspect_mechanisms(model, ids(TEXT), ids(BASELINE)[0], **options)
    assert found is not None
    return found


def drives(model: BDH) -> list[Tensor]:
    """Drive of the neurons of each level (1, H, T, K), from the parallel pass."""
    entering: list[Tensor] = []

    def keep(name: str, tensor: Tensor) -> Tensor:
        if name == "embed" or name.endswith(".v"):
            entering.append(tensor)
        return tensor

    with torch.no_grad():
        model(ids(TEXT), tap=keep)
        found = [model.parts.drive(v, model.encoder) for v in entering[: model.config.n_layer]]
    bcm = model.parts.bcm
    return found if bcm is None else [part(drive) for part, drive in zip(bcm, found, strict=True)]


@pytest.mark.parametrize(
    "options",
    [
        {"lif": LIF(tau=10)},
        {"lif": LIF(tau=3, reset="hard", refractory=2)},
        {"lif": LIF(tau=5, reset="none", output="binary")},
        {"variant": "hatching", "bcm": BCM(kappa=2.0)},
    ],
    ids=["soft", "hard and refractory", "none", "with a sliding threshold"],
)
def test_membranes_are_those_of_the_scan(options: dict[str, Any]) -> None:
    model = model_of(**options).double()
    if model.parts.bcm is not None:
        for part in model.parts.bcm:
            part.theta.copy_(torch.rand(part.theta.shape))
    found = found_in(model)
    assert found.lif is not None
    traces = found.lif.membranes
    assert {trace.level for trace in traces} == {0, 1}
    for trace in traces:
        neurons = model.parts.lif[trace.level]
        drive = drives(model)[trace.level]
        v, threshold, silent = 0.0, trace.threshold, 0
        for t in range(len(TEXT)):
            fired, state = neurons.sequence(drive[:, :, : t + 1])
            membrane = state.membrane[0, trace.head, trace.index].item()
            alpha = math.exp(-1 / neurons.tau[0])
            charge = 0.0 if silent else alpha * v + (1 - alpha) * drive[0, trace.head, t, trace.index].item()
            spikes = fired.spikes[0, trace.head, t, trace.index].item() == 1
            assert trace.charge[t] == pytest.approx(charge, abs=1e-10)
            assert trace.membrane[t] == pytest.approx(membrane, abs=1e-10)
            assert (t in trace.spikes) == spikes == (charge >= threshold and not silent)
            v, silent = membrane, state.refractory[0, trace.head, trace.index].item()
        assert len(trace.spikes) >= 1
        # a trace of another neuron would not pass
        other = drive[0, trace.head, :, trace.index - 1]
        assert not torch.allclose(other, drive[0, trace.head, :, trace.index])


def test_neurons_asked_for_are_followed_if_they_spike() -> None:
    model = model_of(variant="hatching")
    counts = torch.stack([level.to_dense()[0].sum(0) for level in model.get_spikes(TEXT)])
    lively = divmod(int((counts == counts[counts >= 3].min()).flatten().nonzero()[0]), counts.shape[1])
    silent = divmod(int((counts == 0).flatten().nonzero()[0]), counts.shape[1])
    found = found_in(model, neurons=[silent, lively])
    assert found.lif is not None
    traces = found.lif.membranes
    assert (traces[0].level, traces[0].neuron) == lively
    assert silent not in {(trace.level, trace.neuron) for trace in traces}


def test_the_raster_has_the_spikes_of_the_model() -> None:
    model = model_of(variant="hatching")
    found = found_in(model, rows=128, tokens=20)
    assert found.lif is not None
    raster = found.lif.raster
    assert (raster.n_tokens, len(raster.shown), raster.n_neurons) == (len(TEXT), 20, 128)
    for level, spikes in zip(raster.levels, model.get_spikes(TEXT), strict=True):
        assert set(level.events) == {(t, n) for t, n in spikes.to_dense()[0, :20].nonzero().tolist()}
        assert level.rate == pytest.approx(spikes.to_dense()[0, :20].mean(1).tolist())


@pytest.mark.parametrize("form", ["kernel", "trace"])
def test_windows_are_those_of_the_part_now_and_at_the_start(form: Any) -> None:
    model = model_of(stdp=STDP(form=form, tau=12.0, strength=0.7))
    _, start = stdp_window(model.parts.stdp)
    with torch.no_grad():
        model.parts.stdp.strength.add_(torch.tensor([0.5, -2.0]))
    dt, now = stdp_window(model.parts.stdp)
    found = found_in(model).stdp
    assert found is not None
    assert found.dt == tuple(dt.tolist())
    assert torch.equal(torch.tensor(found.learned), now)
    assert torch.equal(torch.tensor(found.initial), start)
    assert not torch.equal(now, start)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_signs_are_measured_in_the_weights_and_in_the_graph_in_use(norm: Any) -> None:
    model = model_of(norm=norm, dale=Dale(excitatory=0.75))
    found = found_in(model).dale
    assert found is not None
    assert found.excitatory == 0.75
    assert found.purity == sign_purity(model.decoder).mean().item() == 1
    assert found.balance == tuple(ei_balance(model.decoder.detach()).sort().values.tolist())
    # a norm that centres mixes the signs again
    assert (found.graph == pytest.approx(1)) == (norm == "rms") == (not found.centred)
    assert found.graph > 0.99 or found.graph < 0.5


def test_degrees_are_counted_and_compared_with_the_law_they_were_drawn_from() -> None:
    found = found_in(model_of(variant="hatching")).scale_free
    assert found is not None
    degrees = scale_free_degrees(128, 32, gamma=2.5, k_min=8)
    assert found.degree == tuple(sorted(set(degrees.tolist())))
    assert found.share == pytest.approx([(degrees >= k).double().mean().item() for k in found.degree])
    weights = {k: k**-2.5 for k in range(8, 33)}
    law = [sum(w for j, w in weights.items() if j >= k) / sum(weights.values()) for k in found.degree]
    assert found.law == pytest.approx(law)


def test_gains_are_those_of_the_heads_at_each_token() -> None:
    model = model_of(variant="advanced")
    with torch.no_grad():
        model.parts.neuromodulation.weight.normal_(std=0.5)
    found = found_in(model).neuromodulation
    assert found is not None
    entering: list[Tensor] = []

    def keep(name: str, tensor: Tensor) -> Tensor:
        entering.extend([tensor] if name == "embed" or name.endswith(".v") else [])
        return tensor

    with torch.no_grad():
        model(ids(TEXT), tap=keep)
        for values, v in zip(found.values, entering, strict=False):
            gain, _ = model.parts.neuromodulation(v)
            torch.testing.assert_close(torch.tensor(values), gain[0, :, :, 0], rtol=1e-4, atol=1e-4)
            assert gain.std() > 0.01


def test_rates_are_those_of_the_validation_text() -> None:
    model = model_of(variant="hatching")
    found = found_in(model).firing
    assert found is not None
    data = ids(BASELINE)[0]
    starts = torch.linspace(0, len(data) - 256, 2).long().tolist()
    expected = firing(model, torch.stack([data[start : start + 256] for start in starts]))
    assert (found.n_tokens, found.target) == (512, 0.1)
    assert list(found.rate) == expected["rate"]
    assert [list(m) for m in found.branching if m] == expected["branching"]


def test_each_mechanism_alone_is_found_and_no_other() -> None:
    for name in SECTIONS:
        model = model_of(**{name: VARIANTS["advanced"][name]})
        found = found_in(model)
        assert found.on == (name,)
        values = found.to_dict()
        assert set(values) - {"variant", "on", "firing"} == {name}
        assert ("firing" in values) == (name in ("lif", "bcm", "criticality"))
        json.dumps(values, allow_nan=False)
        assert set(sentences(found)) == set(values) - {"variant", "on"}
        assert (NO_PROOF in " ".join(sentences(found).values())) == ("firing" in values)


@pytest.mark.parametrize("config", [BDHConfig(**SHAPE), BDHConfig(**SHAPE, sparsity=0.8, norm="rms")])
def test_nothing_is_said_of_a_model_without_mechanisms(config: BDHConfig, tmp_path: Path) -> None:
    model = BDH.from_seed(config, seed=0)
    assert inspect_mechanisms(model, ids(TEXT)) is None
    inspection = inspect_text(model, TEXT, BASELINE, min_fires=2)
    assert inspection.to_dict()["mechanisms"] is None
    page, out = write_report(inspection, tmp_path / "page.html").read_text(encoding="utf-8"), io.StringIO()
    print_inspection(inspection, Console(file=out, width=100, no_color=True))
    for shown in (page.partition("</style>")[2], out.getvalue()):
        assert "mechanism" not in shown.lower()


def test_an_inspection_carries_the_mechanisms_to_terminal_and_json() -> None:
    inspection = inspect_text(model_of(variant="advanced"), TEXT, BASELINE, min_fires=2)
    values = json.loads(json.dumps(inspection.to_dict(), allow_nan=False))["mechanisms"]
    assert values["on"] == list(SECTIONS)
    assert values["hippo"]["gate"] == pytest.approx(0.1)
    out = io.StringIO()
    print_inspection(inspection, Console(file=out, width=100, no_color=True))
    printed = out.getvalue()
    assert all(len(line.rstrip()) <= 100 for line in printed.splitlines())
    assert "Mechanisms" in printed
    assert "alone proves no criticality" in " ".join(printed.split())


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected one text \(1, T\)"):
        inspect_mechanisms(model_of(variant="hatching"), torch.zeros(2, 3, dtype=torch.int64))
