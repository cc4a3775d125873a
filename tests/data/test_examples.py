"""Examples as rows: what is scored, what padding does, and an order that depends on seed and step alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH
from bdh.data import Corpus, CorpusError, Example, Examples, load_examples, opening
from bdh.data.examples import as_rows
from bdh.data.prepare import Settings, prepare
from bdh.data.streams import NOT_SCORED
from bdh.model import cross_entropy
from tolerances import CONTROL, SAME, error

ROWS = [
    {"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(1, n + 1)))} for n in range(1, 61)
]


def example(told: bytes, said: bytes) -> Example:
    return Example(np.frombuffer(told + said, np.uint8), len(told))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "count.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = Settings(template="short", validation_share=0.2, out_dir=tmp_path / "data")
    return prepare(str(tmp_path / "count.jsonl"), settings)


def test_only_the_answer_and_its_end_are_scored() -> None:
    idx, targets = as_rows([example(b"2+2=", b"4"), example(b"1+1=", b"two")], 0, 64)
    assert bytes(idx[0].tolist()) == b"\x002+2=4\0\0"
    assert bytes(idx[1].tolist()) == b"\x001+1=two"
    no = NOT_SCORED
    assert targets.tolist() == [[no] * 4 + [ord("4"), 0, no, no], [no] * 4 + [*b"two", 0]]


def test_an_answer_that_does_not_fit_is_cut_and_has_no_end() -> None:
    idx, targets = as_rows([example(b"say", b"abcdef")], 0, 6)
    assert bytes(idx[0].tolist()) == b"\0sayab"
    assert targets[0].tolist() == [NOT_SCORED] * 3 + [*b"abc"]


def test_padding_changes_no_logit_and_no_loss(tiny: BDH) -> None:
    short, long = example(b"name it:", b"cat"), example(b"name it, and at length:", b"a hatchling")
    rows = [as_rows([one], 0, 64) for one in (short, long)]
    idx, targets = as_rows([short, long], 0, 64)
    assert idx.shape[1] == rows[1][0].shape[1] > rows[0][0].shape[1]
    with torch.no_grad():
        logits, loss = tiny(idx, targets)
        for row, (alone, wanted) in enumerate(rows):
            single = tiny(alone)[0]
            assert error(logits[row : row + 1, : alone.shape[1]], single) < SAME[torch.float32]
            assert wanted.max() > 0
        counts = [int((wanted != NOT_SCORED).sum()) for _, wanted in rows]
        parts = [tiny(alone, wanted)[1].item() for alone, wanted in rows]
        mean = sum(n * part for n, part in zip(counts, parts, strict=True)) / sum(counts)
        assert abs(loss.item() - mean) < SAME[torch.float32] * mean
        # and what is in the padding does not matter, whereas what is in the prompt does
        noisy, other = idx.clone(), idx.clone()
        noisy[0, rows[0][0].shape[1] :] = 77
        other[0, 3] = 77
        assert abs(cross_entropy(tiny(noisy)[0], targets) - loss) < SAME[torch.float32] * mean
        assert abs(cross_entropy(tiny(other)[0], targets) - loss) > CONTROL


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=4, max_size=40),
    st.integers(1, 4),
    st.integers(0, 2**40),
)
def test_an_epoch_reads_every_example_at_most_once_and_as_many_as_fill_batches(
    sizes: list[tuple[int, int]], rows: int, seed: int
) -> None:
    made = [Example(np.full(told + said, 1 + number), told) for number, (told, said) in enumerate(sizes)]
    order = Examples(made, 0, seed=seed, batch_size=rows, block_size=32)
    seen = [int(row[1]) for step in range(order.passes_per_epoch) for row in next(order.passes(step)).idx]
    assert len(seen) == len(set(seen)) == len(made) // rows * rows
    # a pure function of seed and step: asked for in another order, by another object, it is the same
    again = Examples(made, 0, seed=seed, batch_size=rows, block_size=32)
    for step in (3 * order.passes_per_epoch + 1, 1, 0):
        (a,), (b,) = again.passes(step), order.passes(step)
        assert torch.equal(a.idx, b.idx)
        assert torch.equal(a.targets, b.targets)


def test_order_depends_on_seed_and_epoch_and_puts_similar_lengths_together() -> None:
    made = [Example(np.full(2 + 3 * (n % 20), n), 1) for n in range(200)]
    order, other = (Examples(made, 0, seed=seed, batch_size=10, block_size=99) for seed in (1, 2))
    widths = [next(order.passes(step)).idx.shape[1] for step in range(20)]
    places = sum(10 * width for width in widths)
    assert sum(len(one.tokens) + 1 for one in made) > 0.95 * places
    assert widths != sorted(widths), "batches are shuffled"
    assert not torch.equal(next(order.passes(20)).idx, next(order.passes(0)).idx)
    assert not torch.equal(next(other.passes(0)).idx[:, 1], next(order.passes(0)).idx[:, 1])


def test_passes_of_a_step_have_examples_of_their_own() -> None:
    made = [Example(np.full(3, n), 1) for n in range(1, 41)]
    order = Examples(made, 0, seed=0, batch_size=5, block_size=9, passes=4)
    assert len({int(row[1]) for step in (0, 1) for batch in order.passes(step) for row in batch.idx}) == 40


def test_replay_is_whole_windows_of_the_other_text_and_has_its_share_of_rows_and_loss(directory: Path) -> None:
    text = np.frombuffer(b"\0she sells sea shells by the sea shore. " * 40, np.uint8)
    corpus = load_examples(directory, 256, replay=Corpus("shells", text, text, separator=0), replay_share=0.25)
    for rows, passes, of_replay in ((8, 1, 2), (2, 1, 1), (8, 2, 2)):
        order = corpus.order("windows", seed=0, batch_size=rows, block_size=256, passes=passes)
        for step in range(3):
            batches = list(order.passes(step))
            told, replayed = batches[:passes], batches[passes:]
            assert sum(batch.weight for batch in replayed) == pytest.approx(0.25)
            assert sum(batch.weight for batch in told) == pytest.approx(0.75)
            scored = [int((batch.targets != NOT_SCORED).sum()) for batch in told]
            for batch, count in zip(told, scored, strict=True):
                assert batch.weight == pytest.approx(0.75 * count / sum(scored))
            for one, other in zip(told, replayed, strict=True):
                assert other.idx.shape == (of_replay, one.idx.shape[1])
                assert len(one.idx) == rows - of_replay
                assert torch.equal(other.idx[:, 1:], other.targets[:, :-1])
                assert all(bytes(row.tolist()) in bytes(text) for row in other.idx)
                assert not any(bytes(row.tolist()) in bytes(text) for row in one.idx)


def test_examples_of_prepared_text(directory: Path) -> None:
    corpus = load_examples(directory, 64)
    assert corpus.prompting is not None
    assert corpus.prompting.template == "short"
    texts = {bytes(example.tokens[example.prompt :]).decode() for example in (*corpus.examples, *corpus.held_out)}
    assert texts == {row["output"] for row in ROWS}
    first = corpus.held_out[0]
    assert bytes(opening(first, 0).tolist()).startswith(b"\0### Instruction:\nCount to ")
    # the prompt takes about 40 of 64 tokens
    cut = sum(len(one.tokens) > 63 for one in corpus.examples)
    assert corpus.info["examples"]["cut"] == cut > 0
    assert corpus.bytes_per_token < 1, "the end token has no byte"
    idx, targets = corpus.validation_windows(64, 3)
    assert idx.shape == targets.shape == (3, 64)
    fewer = load_examples(directory, 64, max_examples=5)
    assert len(fewer.examples) == 5
    assert len(fewer.held_out) == len(corpus.held_out)
    assert fewer.hashes != corpus.hashes


def test_what_cannot_be_learned_is_refused_in_one_line(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="below 8 tokens in both splits, found 0 to learn"):
        load_examples(directory, 8)
    corpus = load_examples(directory, 64)
    with pytest.raises(CorpusError, match="batches='streams': expected windows"):
        corpus.order("streams", seed=0, batch_size=2, block_size=64)
    with pytest.raises(CorpusError, match="batch_size=500: expected 1 to"):
        corpus.order("windows", seed=0, batch_size=500, block_size=64)
    with pytest.raises(CorpusError, match="beside 1 of replay; got 0"):
        Examples(corpus.examples, 0, seed=0, batch_size=1, block_size=64, replay=corpus.train, replay_share=0.2)
    (tmp_path / "plain.txt").write_text("a cat\n<|endoftext|>\n" * 50 + "a dog\n<|endoftext|>\n" * 50)
    plain = prepare(str(tmp_path / "plain.txt"), Settings(out_dir=tmp_path / "plain", validation_share=0.5))
    with pytest.raises(CorpusError, match="learn plain text by bdh train"):
        load_examples(plain, 64)
