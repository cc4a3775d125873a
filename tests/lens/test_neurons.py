"""The right neurons are found, for the right reason: planted ones, and figures computed another way."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH, BDHConfig
from bdh.lens import inspect_text, neuron_statistics, readable, record, texts

CONFIG = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2, dropout=0.3)
PLANTED = 37
"""Global id: head 1, neuron 5."""


def model_of(seed: int = 0, config: BDHConfig = CONFIG) -> BDH:
    torch.manual_seed(seed)
    return BDH(config)


@torch.no_grad()
def planted() -> BDH:
    """One level in which neuron 37 fires on the byte 'q' alone, and all other neurons on every byte."""
    model = model_of(config=dataclasses.replace(CONFIG, n_layer=1))
    q, own, common = ord("q"), 3, 7
    model.embed.weight[:, own] = -1.0
    model.embed.weight[q, own] = 4.0
    model.embed.weight[:, common] = 2.0
    model.encoder.zero_()
    model.encoder[:, common] = torch.linspace(0.1, 0.5, CONFIG.neurons_per_head)
    head, k = divmod(PLANTED, CONFIG.neurons_per_head)
    model.encoder[head, :, k] = 0.0
    model.encoder[head, own, k] = 1.0
    return model


TEXT = b"all is quiet and the queen is"
BASELINE = b"the quick ones ask; no iraq\n" * 3 + b"nothing of that kind is here" * 3 + b"q and a quart"


def test_statistics_equal_direct_computation_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = model_of().eval(), np.frombuffer(BASELINE, dtype=np.uint8)
    monkeypatch.setattr(texts, "BLOCK_CELLS", 3 * 16 * CONFIG.n_neurons)  # three windows at once
    stats = neuron_statistics(model, data, window=16)
    assert stats.n_bytes == len(data)
    assert len(data) % 16  # the rest is read too
    parts = [data[start : start + 16].astype(np.int64) for start in range(0, len(data), 16)]
    for level in range(2):
        x = torch.cat(
            [record(model, torch.from_numpy(part)[None])[1].neurons("x_sparse", level)[0] for part in parts]
        ).double()
        torch.testing.assert_close(stats.mean[level], x.mean(0), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(stats.std[level], x.std(0, unbiased=False), rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(stats.max[level].double(), x.amax(0), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(stats.rate[level], (x > 0).double().mean(0), rtol=0, atol=1e-12)
        assert stats.density["x"][level] == pytest.approx((x > 0).double().mean().item(), abs=1e-12)
        # windows start anew: one long window is another reading from level 1 on
        whole = record(model, torch.from_numpy(data.astype(np.int64))[None])[1].neurons("x_sparse", level)[0]
        assert torch.allclose(whole.double().mean(0), stats.mean[level], atol=1e-6) is (level == 0)


def test_a_planted_neuron_is_the_most_telling() -> None:
    found = inspect_text(planted(), TEXT, BASELINE, min_fires=2, window=28).telling[0]
    assert (found.firing.level, found.firing.head, found.firing.index, found.firing.neuron) == (0, 1, 5, PLANTED)
    assert found.firing.position == TEXT.index(b"q")
    assert found.firing.rate == BASELINE.count(b"q") / len(BASELINE)
    # negative control: a text without the byte does not bring it up
    other = inspect_text(planted(), b"all is still", BASELINE, min_fires=2, window=28)
    assert PLANTED not in [t.firing.neuron for t in other.telling if t.firing.level == 0]


def test_contexts_are_the_places_of_the_byte_one_per_window() -> None:
    inspection = inspect_text(planted(), TEXT, BASELINE, min_fires=2, window=28, contexts=99, margin=6)
    contexts = inspection.telling[0].contexts
    assert {c.shown for c in contexts} == {"q"}
    starts = [start for start in range(0, len(BASELINE), 28) if b"q" in BASELINE[start : start + 28]]
    assert sorted(c.position for c in contexts) == [BASELINE.index(b"q", start) for start in starts]
    for c in contexts:
        around = BASELINE[max(0, c.position - 6) : c.position + 7].decode().replace("\n", "␊")
        assert c.left + c.shown + c.right == around
    assert [c.activation for c in contexts] == sorted((c.activation for c in contexts), reverse=True)


def test_a_neuron_that_always_fires_heads_the_raw_ranking_but_is_not_telling() -> None:
    model = planted()
    always = 50
    with torch.no_grad():  # the axis that is negative for every byte but q, strongly
        head, k = divmod(always, CONFIG.neurons_per_head)
        model.encoder[head, :, k] = 0.0
        model.encoder[head, 3, k] = -40.0
    raw = inspect_text(model, TEXT, BASELINE, rank="activation", min_fires=2, window=28)
    assert raw.words[0].strongest[0].neuron == always
    assert raw.words[0].strongest[0].rate > 0.9
    assert raw.telling[0].firing.neuron == PLANTED
    assert raw.telling[0].firing.activation < raw.words[0].strongest[0].activation
    by_z = inspect_text(model, TEXT, BASELINE, min_fires=2, window=28)
    assert by_z.words[2].shown == "quiet"
    assert by_z.words[2].strongest[0].neuron == PLANTED


@pytest.mark.parametrize("signal", ["x_sparse", "y_sparse", "xy_sparse"])
def test_every_figure_agrees_with_a_recording(signal: str) -> None:
    model = model_of().eval()
    i = inspect_text(model, TEXT, BASELINE, signal=signal, min_fires=3, top=4, window=20)
    idx = torch.tensor([list(TEXT)])
    logits, trace = record(model, idx, "*")
    stats = neuron_statistics(model, BASELINE, signal=signal, window=20)
    a = torch.stack([trace.neurons(signal, level)[0] for level in range(2)])  # (L, T, N)
    z = (a.double() - stats.mean[:, None]) / stats.std[:, None]
    z[(a <= 0) | (stats.fires < 3)[:, None] | (stats.std == 0)[:, None]] = -math.inf
    spans = [(t, t + 1) for t in range(len(TEXT))] + [(word.start, word.stop) for word in i.words]
    for (start, stop), view in zip(spans, [*i.bytes, *i.words], strict=True):
        best = z[:, start:stop].amax((0, 1))  # each neuron at its best level and byte
        expected = [value for value in best.sort(descending=True).values[:4].tolist() if value > -math.inf]
        assert [f.z for f in view.strongest] == pytest.approx(expected, rel=1e-4)
        for f in view.strongest:
            assert start <= f.position < stop
            assert f.activation == pytest.approx(a[f.level, f.position, f.neuron].item(), rel=1e-5)
            assert f.rate == stats.rate[f.level, f.neuron].item()
            assert f.neuron == f.head * CONFIG.neurons_per_head + f.index
    log_p = logits[0].double().log_softmax(-1)
    expected_surprisal = [-log_p[t, byte].item() for t, byte in enumerate(TEXT[1:])]
    assert i.bytes[0].surprisal is None
    assert [view.surprisal for view in i.bytes[1:]] == pytest.approx(expected_surprisal, rel=1e-5)
    _, loss = model(idx[:, :-1], idx[:, 1:])
    assert i.surprisal == pytest.approx(loss.item(), rel=1e-5)
    for (level, neuron), values in zip(i.raster.rows, i.raster.values, strict=True):
        assert values == pytest.approx(a[level, :, neuron].tolist(), rel=1e-5)
    for t in i.telling:
        assert t.text_profile == pytest.approx(a[:, :, t.firing.neuron].double().mean(1).tolist(), rel=1e-5, abs=1e-9)
        assert t.baseline_profile == pytest.approx(stats.mean[:, t.firing.neuron].tolist())
    often = stats.fires >= 3
    assert i.n_unseen == int(((a > 0).any(1) & ~often).sum())


def test_words_are_maximal_runs_of_bytes_that_are_not_space() -> None:
    i = inspect_text(model_of(), "né\tto  b.\n".encode(), BASELINE)
    assert [(w.start, w.stop, w.shown) for w in i.words] == [(0, 3, "né"), (4, 6, "to"), (8, 10, "b.")]


def test_the_same_call_gives_the_same_inspection_and_leaves_the_model_alone() -> None:
    model = model_of().train()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (inspect_text(model, TEXT, BASELINE, min_fires=2) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert first == second
    assert model.training
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.text = b""  # type: ignore[misc]


@pytest.mark.parametrize("text", [TEXT, b"a", b"   ", bytes(range(256))])
def test_an_inspection_goes_into_json(text: bytes) -> None:
    # min_fires beyond reach: nothing to rank is no error either
    for min_fires in (2, 10_000):
        plain = inspect_text(model_of(), text, BASELINE, min_fires=min_fires).to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert bytes(plain["text"]) == text
        assert len(plain["bytes"]) == len(text)
        assert (plain["telling"] == []) or min_fires == 2


def test_ids_come_as_bytes_arrays_or_tensors() -> None:
    model, array = model_of(), np.frombuffer(TEXT, dtype=np.uint8)
    expected = inspect_text(model, TEXT, BASELINE)
    assert inspect_text(model, array, torch.tensor(list(BASELINE))) == expected
    assert inspect_text(model, torch.tensor([list(TEXT)]), BASELINE) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"idx": b""}, "text: expected a non-empty"),
        ({"baseline_ids": b""}, "validation text: expected a non-empty"),
        ({"idx": np.array([1, 300])}, r"expected byte ids 0\.\.255, got 1\.\.300"),
        ({"idx": np.array([0.5])}, "float64"),
        ({"signal": "x"}, "did you mean|x_sparse"),
        ({"rank": "best"}, "'z' or 'activation'"),
        ({"top": 0}, "top=0"),
        ({"window": 0}, "window=0"),
    ],
)
def test_mistakes_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect_text(model_of(), **({"idx": TEXT, "baseline_ids": BASELINE} | arguments))  # type: ignore[arg-type]


@given(st.binary(max_size=40))
def test_readable_gives_one_string_per_byte(data: bytes) -> None:
    shown = readable(data)
    assert len(shown) == len(data)
    assert all(text == "" or text.startswith("0x") or len(text) == 1 for text in shown)
    assert all(text.isprintable() for text in shown)


@given(st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Co", "Cn", "Z"]), max_size=20))
def test_readable_keeps_text_that_prints(text: str) -> None:
    assert "".join(readable(text.encode())) == text


def test_readable_names_the_rest() -> None:
    assert readable(b"a b\n\t\x7f") == ["a", " ", "b", "␊", "0x09", "0x7F"]
    assert readable("é€".encode() + b"\xc3", "␣") == ["é", "", "€", "", "", "0xC3"]
    # a change of writing direction would reorder the text around it
    assert readable("\u202e".encode()) == ["0xE2", "0x80", "0xAE"]
