"""An index is the same however it came about, says what is true of planted neurons, and refuses what is not its own."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import bdh
from bdh import BDH, BDHConfig
from bdh.lens import Index, build_index, texts
from bdh.lens.index import build, panel
from bdh.lens.index.neuronpedia import export_neuronpedia
from bdh.lens.index.page import _quantiles
from bdh.lens.index.wiring import KINDS, logit_effects, partners, written
from tolerances import CONTROL, SAME, error

CONFIG = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2, dropout=0.0)
TEXT = b"the quick ones ask; no iraq\n" * 9 + b"nothing of that kind is here" * 9 + b"q and a quart"
PLANTED = 37
"""Global id: head 1, neuron 5."""


@torch.no_grad()
def planted() -> BDH:
    """One level in which neuron 37 fires on the byte 'q' alone, with 1.5, and neuron 0 on none."""
    model = BDH.from_seed(dataclasses.replace(CONFIG, n_layer=1), 0).eval()
    q, own = ord("q"), 3
    model.embed.weight.mul_(50)
    model.embed.weight[:, own] = -1.0
    model.embed.weight[q] = -1.0
    model.embed.weight[q, own] = 31.0
    head, k = divmod(PLANTED, CONFIG.neurons_per_head)
    model.encoder[head, :, k] = 0.0
    model.encoder[0, :, 0] = 0.0
    # the normalised embedding of q is 31 / sqrt(31) in its own direction
    model.encoder[head, own, k] = 1.5 / 31**0.5
    return model


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three windows, saved after each."""
    monkeypatch.setattr(texts, "BLOCK_CELLS", 3 * 16 * CONFIG.n_neurons)
    monkeypatch.setattr(build, "SAVE_SECONDS", 0.0)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_planted_neuron_is_found_out(tmp_path: Path) -> None:
    index = build_index(planted(), TEXT, tmp_path / "index", window=28)
    assert index is not None
    page = index.neuron("h1:5")
    (level,) = page.levels
    assert (page.neuron, page.fires, level.rate) == (PLANTED, TEXT.count(b"q"), TEXT.count(b"q") / len(TEXT))
    assert level.largest == pytest.approx(1.5, rel=1e-4)
    assert {e.context.shown for e in page.contexts} == {"q"}
    assert {e.context.position // 28 for e in page.contexts} == {p // 28 for p, b in enumerate(TEXT) if b == ord("q")}
    best = page.ngrams[1][0]
    assert (best.shown, best.count, best.rate) == ("q", TEXT.count(b"q"), 1.0)
    assert best.lift == pytest.approx(len(TEXT) / TEXT.count(b"q"))
    assert {g.shown[-1] for row in page.ngrams.values() for g in row} == {"q"}
    assert all(TEXT[e.context.position] == ord("q") for q in page.quantiles for e in q.examples)
    inside = [p % 28 for p, b in enumerate(TEXT) if b == ord("q")]
    assert page.mean_place == pytest.approx(sum(inside) / len(inside))
    # the others do not: one is silent, the rest fire at other bytes too
    assert index.neuron(0).fires == 0
    assert index.neuron(0).mean_place is None
    for other in (index.neuron(n) for n in range(1, 64) if n != PLANTED):
        assert {e.context.shown for q in other.quantiles for e in q.examples} != {"q"}
    assert index.density_init[0] == pytest.approx(0.5, abs=0.1)


def test_a_stopped_build_goes_on_to_the_same_index(tmp_path: Path, blocks: None, tiny: BDH) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    whole = build_index(tiny, TEXT, tmp_path / "whole", window=16)
    assert whole is not None
    with pytest.raises(KeyboardInterrupt):
        build_index(tiny, TEXT, tmp_path / "stopped", window=16, progress=stop)
    assert not (tmp_path / "stopped").exists()
    seen: list[int] = []
    build_index(tiny, TEXT, tmp_path / "stopped", window=16, progress=lambda what, done, total: seen.append(done))
    assert seen[0] > len(TEXT) / 2  # it did go on
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")
    assert not list(tmp_path.glob("*.building"))
    other = build_index(tiny, TEXT, tmp_path / "other", window=16, seed=1)
    assert other is not None
    different = {n for n, c in content(tmp_path / "other").items() if c != content(tmp_path / "whole")[n]}
    assert different == {"index.json", "samples.npy", "sample_strips.npy"}


def test_shards_come_to_the_same_index(
    tmp_path: Path, blocks: None, tiny: BDH, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_index(tiny, TEXT, tmp_path / "whole", window=16)
    assert whole is not None
    assert build_index(tiny, TEXT, tmp_path / "shards", window=16, shard=(2, 3)) is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert build_index(tiny, TEXT, tmp_path / "shards", window=16) is None
    merged = build_index(tiny, TEXT, tmp_path / "shards", window=16, shard=(1, 3))
    assert merged is not None
    for name, array in whole.arrays.items():
        np.testing.assert_array_equal(merged.arrays[name], array, err_msg=name)
    assert merged.density == whole.density
    for name, column in whole.levels.items():
        assert error(torch.tensor(merged.levels[name]), torch.tensor(column)) < SAME[torch.float32]


def test_an_index_is_refused_for_another_model_text_or_setting(tmp_path: Path, tiny: BDH) -> None:
    folder = tmp_path / "index"
    build_index(tiny, TEXT, folder)
    assert Index.open(folder, tiny).plan.n_bytes == len(TEXT)
    other = BDH.from_seed(tiny.config, 1)
    with pytest.raises(ValueError, match="index of another model"):
        Index.open(folder, other)
    assert build_index(tiny, TEXT, folder) is not None  # there already
    for call, what in (((other, TEXT), "model"), ((tiny, TEXT[1:]), "text, n_bytes")):
        with pytest.raises(ValueError, match=f"index of another {what}"):
            build_index(*call, folder)
    with pytest.raises(ValueError, match="no index of neurons"):
        Index.open(tmp_path)
    (tmp_path / "new.building").mkdir()
    (tmp_path / "new.building" / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="unfinished index of another kind"):
        build_index(tiny, TEXT, tmp_path / "new")
    with pytest.raises(ValueError, match=r"shard=\(3, 3\)"):
        build_index(tiny, TEXT, tmp_path / "newer", shard=(3, 3))
    (folder / "wires.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read"):
        Index.open(folder)


@pytest.mark.parametrize("name", ["64", "h2:0", "h1:32", "-1", "q", "h1", 1 << 40])
def test_an_unknown_neuron_is_refused_in_one_line(name: str | int) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.\.63, or h0:0 \.\. h1:31") as refused:
        bdh.lens.names.neuron_id(name, CONFIG)
    assert "\n" not in str(refused.value)


def test_one_neuron_is_answered_at_once(tmp_path: Path, tiny: BDH) -> None:
    index = build_index(tiny, TEXT, tmp_path / "index")
    assert index is not None
    seconds = []
    for neuron in range(0, 128, 16):
        start = time.perf_counter()
        index.neuron(neuron)
        seconds.append(time.perf_counter() - start)
    assert sorted(seconds)[4] < 0.05


def test_wires_are_those_of_the_whole_graph(tiny: BDH) -> None:
    ids, weights = partners(tiny)
    rows = tiny.decoder - tiny.decoder.mean(1, keepdim=True)
    for encoder, first in ((tiny.encoder, "x in"), (tiny.encoder_v, "y in")):
        graph = torch.einsum("jd,hdk->jhk", rows, encoder).flatten(1)  # (from, to)
        for kind, whole in ((first, graph.T), (first.replace("in", "out"), graph)):
            at = KINDS.index(kind)
            best = whole.abs().topk(10).values
            found = torch.from_numpy(weights[:, at])
            assert error(found.abs(), best.detach()) < SAME[torch.float32]
            picked = whole.gather(1, torch.from_numpy(ids[:, at].astype(np.int64))).detach()
            assert error(found, picked) < SAME[torch.float32]
            assert error(found, whole.T.gather(1, torch.from_numpy(ids[:, at].astype(np.int64))).detach()) > CONTROL


def test_logit_effects_are_what_the_readout_makes_of_a_write(tiny: BDH) -> None:
    effects = logit_effects(tiny)
    normed = torch.nn.functional.layer_norm(tiny.decoder[9], (16,))
    # LayerNorm divides by a number as well: directions are equal, not lengths
    scale = tiny.decoder[9].var(unbiased=False).add(1e-5).sqrt()
    assert error(effects[9], (scale * normed @ tiny.lm_head).detach()) < SAME[torch.float32]
    plain = BDH.from_seed(dataclasses.replace(tiny.config, norm="rms"), 0)
    assert torch.equal(written(plain), plain.decoder.detach())


def test_a_page_has_the_weights_and_the_timescale_of_its_neuron(tmp_path: Path, tiny: BDH) -> None:
    index = build_index(tiny, TEXT, tmp_path / "index")
    assert index is not None
    page, K = index.neuron("h1:10"), tiny.config.neurons_per_head
    assert page.neuron == K + 10
    assert page.period == pytest.approx(2 * np.pi * 2.0 ** (16 * 10 / K))
    effects = logit_effects(tiny)[page.neuron]
    assert [e.token for e in page.up[:2]] == effects.topk(2).indices.tolist()
    assert [e.token for e in page.down[:2]] == effects.topk(2, largest=False).indices.tolist()
    assert [w.weight for w in page.wires["x out"]] == partners(tiny)[1][page.neuron, 1].tolist()
    assert json.loads(json.dumps(page.to_dict()))["ngrams"]["1"]
    shown = panel(page)
    assert "random initialisation" in shown.baseline
    assert shown.tables["By level"].column("rate") == tuple(level.rate for level in page.levels)
    assert len(shown.save(tmp_path / "panel")) == 2 * (len(shown.pictures) + len(shown.tables)) == 16


def test_quantiles_part_a_sample_by_strength(tmp_path: Path, tiny: BDH) -> None:
    index = build_index(tiny, TEXT, tmp_path / "index")
    assert index is not None
    page = max((index.neuron(n) for n in range(128)), key=lambda p: p.fires)
    sample = [e for q in page.quantiles for e in q.examples]
    assert len(sample) == index.plan.samples
    assert [len(q.examples) for q in page.quantiles] == [4] * 10
    strengths = [e.context.activation for e in sample]
    assert strengths == sorted(strengths)
    for q in page.quantiles:
        assert (q.low, q.high) == (q.examples[0].context.activation, q.examples[-1].context.activation)
        assert q.share == pytest.approx(0.1)
    few = _quantiles(tuple(sample[:7]))
    assert [len(q.examples) for q in few] == [1] * 7
    assert _quantiles(()) == ()


def test_neuronpedia_gets_numbers_that_can_be_checked_by_hand(tmp_path: Path) -> None:
    index = build_index(planted(), TEXT, tmp_path / "index", window=28)
    assert index is not None
    assert export_neuronpedia(index, tmp_path / "out", ["h1:5", 0]) == 2
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["0.json", "37.json"]
    found = json.loads((tmp_path / "out" / "37.json").read_text())
    assert (found["index"], found["layer"]) == ("37", "x_sparse")
    assert found["frac_nonzero"] == pytest.approx(TEXT.count(b"q") / len(TEXT), rel=1e-5)
    assert found["maxActApprox"] == pytest.approx(1.5, rel=1e-4)
    # 1.5 is an edge, and what rounding makes of 1.5 lies on either side of it
    assert sum(found["freq_hist_data_bar_heights"]) == TEXT.count(b"q")
    assert set(found["freq_hist_data_bar_values"]) <= {1.25, 1.75}
    assert len(found["freq_hist_data_bar_values"]) == len(found["freq_hist_data_bar_heights"])
    assert sum(found["logits_hist_data_bar_heights"]) == 256
    assert found["pos_values"] == sorted(found["pos_values"], reverse=True)
    assert found["neg_values"] == sorted(found["neg_values"])
    first = found["activations"][0]
    assert first["tokens"][first["maxValueTokenIndex"]] == "q"
    assert first["maxValueTokenIndex"] == first["qualifyingTokenIndex"] or first["tokens"].count("q") > 1
    assert len(first["tokens"]) == len(first["values"])
    for example in found["activations"]:
        at = example["qualifyingTokenIndex"]
        assert [v > 0 for v in example["values"]] == [token == "q" for token in example["tokens"]]
        assert example["binMin"] <= example["values"][at] <= example["binMax"]
        assert 0 < example["binContains"] <= 1
    silent = json.loads((tmp_path / "out" / "0.json").read_text())
    assert (silent["frac_nonzero"], silent["activations"], silent["freq_hist_data_bar_values"]) == (0, [], [])
    with pytest.raises(ValueError, match="exists"):
        export_neuronpedia(index, tmp_path / "out")
    with pytest.raises(ValueError, match="no such neuron"):
        export_neuronpedia(index, tmp_path / "none", ["64"])
    assert not (tmp_path / "none").exists()
