"""Documents in order: every token is predicted once per epoch, by rows that know where they begin anew."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh.data import DocumentStreams, RandomWindows, cut_documents, document_starts, random_windows
from bdh.data.shards import TokenShards


def streams_of(lengths: list[int], rows: int, block: int, *, seed: int = 0, passes: int = 1) -> DocumentStreams:
    starts = np.cumsum([0, *lengths[:-1]])
    tokens = np.arange(sum(lengths))
    return DocumentStreams(tokens, starts, seed=seed, batch_size=rows, block_size=block, passes=passes)


@given(st.lists(st.integers(1, 12), min_size=4, max_size=9), st.integers(1, 3), st.integers(1, 5), st.integers(1, 2))
def test_an_epoch_reads_documents_to_their_ends_and_no_token_twice(
    lengths: list[int], rows: int, block: int, passes: int
) -> None:
    if sum(lengths) - 1 < rows * passes * block:
        return
    order = streams_of(lengths, rows, block, passes=passes)
    starts = set(np.cumsum([0, *lengths[:-1]]))
    before: list[int | None] = [None] * (rows * passes)
    seen: list[int] = []
    for step in range(order.steps_per_epoch):
        batches = list(order.passes(step))
        idx, targets, fresh = (torch.cat([batch[i] for batch in batches]) for i in range(3))
        assert idx.shape == (rows * passes, block)
        assert targets.equal(idx + 1)  # what follows in the text
        for row, (tokens, begins) in enumerate(zip(idx.tolist(), fresh.tolist(), strict=True)):
            for token, begin in zip(tokens, begins, strict=True):
                # a row goes on where it stopped, or a document begins; it begins inside one only at first
                assert (begin and (token in starts or before[row] is None)) or token == before[row] + 1
                assert begin or token not in starts
                before[row] = token
            seen += tokens
    assert len(seen) == len(set(seen))
    assert sum(lengths) - 1 - len(seen) < rows * passes * (block + 1)  # what fills no step waits for another epoch


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
    assert all(batch.fresh[:, 0].all() for batch in first)
    assert len({tuple(batch.idx.flatten().tolist()) for batch in first}) > 1


def test_the_end_of_a_document_predicts_the_separator_of_the_next() -> None:
    text = np.array([0, 5, 6, 0, 7, 8, 0, 9, 9], np.uint8)
    order = DocumentStreams(text, document_starts(text, 0), seed=1, batch_size=1, block_size=8)
    (batch,) = order.passes(0)
    ends = [place for place in range(8) if batch.idx[0, place] in (6, 8)]
    assert batch.targets[0, ends].tolist() == [0, 0]
    assert batch.fresh[0].tolist() == (batch.idx[0] == 0).tolist()


def test_a_text_with_fewer_tokens_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="3 rows of 8 tokens: expected at most the 17 that the text has"):
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
