"""Documents in order: every token is predicted once per epoch, by rows that know where they begin anew."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh.data import DocumentStreams, RandomWindows, cut_documents, document_starts, random_windows
from bdh.data.shards import TokenShards
from bdh.data.streams import NOT_SCORED


def streams_of(lengths: list[int], rows: int, block: int, *, seed: int = 0, passes: int = 1) -> DocumentStreams:
    starts = np.cumsum([0, *lengths[:-1]])
    tokens = np.arange(sum(lengths))
    return DocumentStreams(tokens, starts, seed=seed, batch_size=rows, block_size=block, passes=passes)


@given(st.lists(st.integers(2, 12), min_size=4, max_size=9), st.integers(1, 3), st.integers(1, 5), st.integers(1, 2))
def test_an_epoch_predicts_every_token_but_the_first_of_each_document_once(
    lengths: list[int], rows: int, block: int, passes: int
) -> None:
    order = streams_of(lengths, rows, block, passes=passes)
    seen: list[int] = []
    ends = set(np.cumsum(lengths) - 1)
    before = [None] * (rows * passes)
    for step in range(order.steps_per_epoch):
        row = 0
        for batch in order.passes(step):
            for idx, targets, fresh in zip(
                batch.idx.tolist(), batch.targets.tolist(), batch.fresh.tolist(), strict=True
            ):
                scored = [(x, y) for x, y in zip(idx, targets, strict=True) if y != NOT_SCORED]
                assert scored
                assert all(y == x + 1 and x not in ends for x, y in scored)
                # a row goes on where it stopped, or begins anew
                assert fresh or scored[0][0] == before[row]
                before[row] = scored[-1][1]
                seen += [y for _, y in scored]
                row += 1
    assert len(seen) == len(set(seen))
    windows = sum(-(-(n - 1) // block) for n in lengths)
    if windows % (rows * passes) == 0:
        assert len(seen) == sum(lengths) - len(lengths)


def test_the_order_is_a_function_of_seed_and_step() -> None:
    one, other = (streams_of([9, 5, 7, 8, 6], 2, 3) for _ in range(2))
    late = next(one.passes(9)).idx
    for step in range(9):
        next(other.passes(step))
    assert next(other.passes(9)).idx.equal(late)
    orders = {
        tuple(next(streams_of([9, 5, 7, 8, 6], 2, 3, seed=seed).passes(0)).idx.flatten().tolist()) for seed in range(6)
    }
    assert len(orders) > 1
    first = [next(one.passes(epoch * one.steps_per_epoch)) for epoch in range(6)]
    assert all(batch.fresh.all() for batch in first)
    assert len({tuple(batch.idx.flatten().tolist()) for batch in first}) > 1


def test_padding_is_counted() -> None:
    assert streams_of([9, 9], 1, 8).padding == 0
    assert streams_of([9, 5], 1, 8).padding == pytest.approx(4 / 16)


def test_a_text_with_fewer_windows_than_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most the 2 windows of 8 tokens"):
        streams_of([9, 9], 3, 8)


def test_documents_begin_at_separators_in_every_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdh.data.order.SCANNED", 2)
    parts = [np.array([0, 5, 6], np.uint8), np.array([7, 0, 8], np.uint8), np.array([0, 9], np.uint8)]
    assert document_starts(TokenShards(parts), 0).tolist() == [0, 4, 6]
    assert document_starts(np.array([3, 0, 4]), 0).tolist() == [0, 1]
    assert document_starts(np.array([3, 0, 4]), None).tolist() == [0]


def test_windows_are_those_of_random_windows() -> None:
    tokens = np.arange(100)
    order = RandomWindows(tokens, seed=3, batch_size=2, block_size=4, passes=2)
    for micro, batch in enumerate(order.passes(5)):
        expected = random_windows(tokens, seed=3, step=10 + micro, batch_size=2, block_size=4)
        assert batch.idx.equal(expected[0])
        assert batch.targets.equal(expected[1])
        assert batch.fresh is None


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 6))
def test_pieces_are_no_longer_than_asked_and_keep_the_beginnings(lengths: list[int], longest: int) -> None:
    starts = np.cumsum([0, *lengths[:-1]])
    pieces = cut_documents(starts, sum(lengths), longest)
    assert set(starts) <= set(pieces)
    assert max(np.diff([*pieces, sum(lengths)])) <= longest
    assert len(pieces) == sum(-(-n // longest) for n in lengths)
