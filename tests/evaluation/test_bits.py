"""Bits per byte: every token once, with the context that is promised, in any tokens."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bdh import BDH, BDHConfig
from bdh.data import ByteTokenizer, fixed_windows, train_bpe
from bdh.evaluation import bits_per_byte, by_position, loglikelihoods, ratio, share
from bdh.evaluation import reading as reading_module
from tolerances import CONTROL, SAME

BYTES = ByteTokenizer()
TEXT = BYTES.encode("the cat sat on the mat, and the dog lay by the door. " * 14)
CLOSE = SAME[torch.float32]


def nats_in_one_pass(model: BDH, tokens: np.ndarray) -> np.ndarray:
    idx = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        logits, _ = model(idx[:, :-1])
    return F.cross_entropy(logits[0].double(), idx[0, 1:], reduction="none").numpy()


@pytest.fixture
def chunks_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "PREFILL_BLOCK", 7)


def test_a_stream_in_chunks_is_one_pass(tiny: BDH, chunks_of_seven: None) -> None:
    found = bits_per_byte(tiny, TEXT[:200], BYTES)
    expected = nats_in_one_pass(tiny, TEXT[:200])
    assert (found.tokens, found.bytes, found.stride) == (199, 199, None)
    assert found.nats_per_token == pytest.approx(expected.mean(), rel=CLOSE)
    assert found.bits_per_byte.mean == pytest.approx(expected.mean() / math.log(2), rel=CLOSE)
    assert found.perplexity == pytest.approx(math.exp(expected.mean()), rel=CLOSE)
    # control: without what was read before the last chunk
    alone = nats_in_one_pass(tiny, TEXT[193:200])
    assert abs(alone.mean() - expected[-6:].mean()) > CONTROL


def test_windows_are_those_of_the_training(tiny: BDH) -> None:
    text = TEXT[: 16 * 9 + 1]
    idx, targets = fixed_windows(text, block_size=16)
    with torch.no_grad():
        _, loss = tiny(idx, targets)
    assert loss is not None
    assert bits_per_byte(tiny, text, BYTES, block_size=16).nats_per_token == pytest.approx(loss.item(), rel=CLOSE)


@given(n=st.integers(2, 60), block=st.integers(1, 70), stride=st.integers(1, 70))
def test_every_token_is_scored_once_with_its_context(n: int, block: int, stride: int) -> None:
    model = BDH.from_seed(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, dropout=0.0), 0)
    text = TEXT[:n]
    if stride > block:
        with pytest.raises(ValueError, match=r"expected 1 \.\. block_size"):
            bits_per_byte(model, text, BYTES, block_size=block, stride=stride)
        return
    found = bits_per_byte(model, text, BYTES, block_size=block, stride=stride)
    assert found.tokens == found.bytes == n - 1
    total, scored, end = 0.0, 0, 0
    while scored < n - 1:  # the definition, window by window
        end = min(end + (stride if end else block), n - 1)
        nats = nats_in_one_pass(model, text[max(0, end - block) : end + 1])
        total += nats[len(nats) - (end - scored) :].sum()
        scored = end
    assert found.nats_per_token == pytest.approx(total / (n - 1), rel=CLOSE)


def test_more_context_at_a_stride_changes_the_figure(tiny: BDH) -> None:
    apart, close = (bits_per_byte(tiny, TEXT[:120], BYTES, block_size=16, stride=s).nats_per_token for s in (16, 4))
    assert abs(apart - close) > CONTROL


def test_separators_are_read_and_not_scored(tiny: BDH) -> None:
    text = BYTES.encode(b"\0one\0two three\0four")
    found = bits_per_byte(tiny, text, BYTES, separator=0)
    nats = nats_in_one_pass(tiny, text)
    scored = text[1:] != 0
    assert found.bytes == scored.sum() == len("onetwo threefour")
    assert found.nats_per_token == pytest.approx(nats[scored].mean(), rel=CLOSE)


def test_other_tokens_are_counted_in_bytes() -> None:
    words = train_bpe(iter([TEXT.tobytes()] * 3), 300)
    text = words.encode("the dog, né, sat on the mat")
    model = BDH.from_seed(
        BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, vocab_size=300, dropout=0.0), 0
    )
    found = bits_per_byte(model, text, words)
    first = len(words.decode(text[:1]).encode())
    assert found.bytes == len("the dog, né, sat on the mat".encode()) - first > found.tokens
    expected = nats_in_one_pass(model, text).sum() / math.log(2) / found.bytes
    assert found.bits_per_byte.mean == pytest.approx(expected, rel=CLOSE)


def test_order_0_is_the_entropy_of_what_is_scored(tiny: BDH) -> None:
    assert bits_per_byte(tiny, BYTES.encode("xabababab"), BYTES).order0 == pytest.approx(1.0)
    assert bits_per_byte(tiny, BYTES.encode("xaaaaaaaa"), BYTES).order0 == 0.0


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        sizes = rng.integers(50, 150, 32).astype(float)
        found = ratio(sizes * rng.normal(2.0, 0.5, 32), sizes)
        assert found.half_width is not None
        hits += abs(found.mean - 2.0) < found.half_width
    assert 0.92 < hits / 400 < 0.98
    assert ratio(np.array([4.0, 0.0]), np.array([2.0, 0.0])).half_width is None
    assert share(0, 5)[0] == 0.0 < share(0, 5)[1] < 1.0


def test_positions_are_those_of_blocks_read_alone(tiny: BDH, chunks_of_seven: None) -> None:
    found = by_position(tiny, TEXT[: 8 * 20 + 1], BYTES, block_size=20, trained=8)
    blocks = np.stack([nats_in_one_pass(tiny, TEXT[20 * i : 20 * i + 21]) for i in range(8)]) / math.log(2)
    assert [(b.first, b.last, b.bytes) for b in found.bins] == [
        (1, 1, 8), (2, 3, 16), (4, 7, 32), (8, 15, 64), (16, 20, 40)
    ]  # fmt: skip
    for b in found.bins:
        part = blocks[:, b.first - 1 : b.last]
        assert b.bits_per_byte.mean == pytest.approx(part.mean(), rel=CLOSE)
        if b.first == 4:
            assert b.change is None
        else:
            paired = part.mean(1) - blocks[:, 3:7].mean(1)
            assert b.change is not None
            assert b.change.mean == pytest.approx(paired.mean(), rel=CLOSE, abs=CLOSE)


def test_what_cannot_be_scored_is_refused(tiny: BDH) -> None:
    with pytest.raises(ValueError, match="expected at least 2"):
        bits_per_byte(tiny, TEXT[:1], BYTES)
    with pytest.raises(ValueError, match="expected windows; give a block_size"):
        bits_per_byte(tiny, TEXT, BYTES, stride=4)
    with pytest.raises(ValueError, match="expected at most 24, so that a text of 200 tokens has 8 blocks"):
        by_position(tiny, TEXT[:200], BYTES, block_size=100)
    with torch.no_grad():
        tiny.lm_head.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        bits_per_byte(tiny, TEXT[:20], BYTES)


def test_a_continuation_is_scored_behind_its_context(tiny: BDH) -> None:
    nats = nats_in_one_pass(tiny, TEXT[:30])
    (first, _), (second, _), (other, _) = loglikelihoods(
        tiny, [(TEXT[:20], TEXT[20:30]), (TEXT[:20], TEXT[20:21]), (TEXT[10:20], TEXT[20:30])]
    )
    assert -first == pytest.approx(nats[19:].sum(), rel=CLOSE)
    assert -second == pytest.approx(nats[19], rel=CLOSE)
    assert abs(other - first) > CONTROL
    greedy = tiny.generate(tiny.as_ids("the c"), 4, temperature=0)[0].tolist()
    assert [g for _, g in loglikelihoods(tiny, [(greedy[:5], greedy[5:]), (greedy[:5], [*greedy[5:8], 0])])] == [
        True, greedy[8] == 0
    ]  # fmt: skip
