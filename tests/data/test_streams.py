"""Batches: where windows come from, that they can be had again, and that none is out of range."""

import numpy as np
import pytest
import torch

from bdh.data import fixed_windows, random_windows, spread

# idx == its own offset, so that a batch shows which windows were drawn
COUNTING = np.arange(1000)


def offsets(*, tokens: np.ndarray = COUNTING, seed: int = 0, step: int = 0, batch_size: int = 4) -> list[int]:
    """The offsets that are drawn for windows of 8 tokens."""
    idx, _ = random_windows(tokens, seed=seed, step=step, batch_size=batch_size, block_size=8)
    return idx[:, 0].tolist()


def test_offsets_are_pinned() -> None:
    # a change here changes the data order of every run that is resumed
    assert offsets(seed=0, step=0) == [731, 338, 281, 796]
    assert offsets(seed=1337, step=1) == [489, 613, 63, 850]
    assert offsets(seed=2**63 - 1, step=10**12) == [151, 6, 536, 880]


def test_windows_are_a_pure_function_of_seed_and_step() -> None:
    np.random.seed(0)
    torch.manual_seed(0)
    before = offsets(seed=3, step=5)
    np.random.rand(7)
    torch.rand(7)
    offsets(seed=3, step=6)
    assert offsets(seed=3, step=5) == before


def test_steps_and_seeds_draw_different_windows() -> None:
    drawn = [tuple(offsets(seed=seed, step=step)) for seed in range(10) for step in range(100)]
    assert len(set(drawn)) == len(drawn)


def test_steps_share_no_words_with_their_neighbours() -> None:
    # an overlapping counter would make a later window of one step the first one of the next
    text = np.arange(10**6)
    first, second = (set(offsets(tokens=text, step=step, batch_size=64)) for step in (0, 1))
    assert len(first & second) <= 1


def test_a_larger_batch_begins_with_the_smaller_one() -> None:
    assert offsets(batch_size=16)[:4] == offsets(batch_size=4)


def test_targets_are_the_next_tokens() -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 500, dtype=np.uint8)
    idx, targets = random_windows(tokens, seed=1, step=2, batch_size=5, block_size=16)
    assert idx.shape == targets.shape == (5, 16)
    assert idx.dtype == targets.dtype == torch.int64
    assert torch.equal(idx[:, 1:], targets[:, :-1])
    for row, target in zip(idx, targets, strict=True):
        window = bytes([*row.tolist(), int(target[-1])])
        assert window in tokens.tobytes()


def test_shortest_text_has_one_window() -> None:
    tokens = np.arange(9)
    for step in range(20):
        idx, targets = random_windows(tokens, seed=0, step=step, batch_size=3, block_size=8)
        assert idx.tolist() == [list(range(8))] * 3
        assert targets.tolist() == [list(range(1, 9))] * 3


def test_both_ends_of_the_text_are_drawn_and_nothing_beyond() -> None:
    tokens = np.arange(11)
    drawn = {offset for step in range(50) for offset in offsets(tokens=tokens, step=step)}
    assert drawn == {0, 1, 2}


def test_offsets_are_uniform() -> None:
    counts = np.bincount(offsets(tokens=np.arange(108), batch_size=100_000), minlength=100)
    assert len(counts) == 100
    # 1000 expected in each of 100 bins; chi squared with 99 degrees of freedom: 99 +- 14
    assert 40 < float(((counts - 1000) ** 2 / 1000).sum()) < 200


def test_memory_mapped_and_read_only_tokens_give_tensors_of_their_own(tmp_path) -> None:
    path = tmp_path / "tokens.bin"
    COUNTING.astype(np.uint8).tofile(path)
    idx, targets = random_windows(np.memmap(path, np.uint8, "r"), seed=0, step=0, batch_size=2, block_size=4)
    idx.zero_()
    assert targets.min() >= 1 or targets.ne(idx).any()
    assert path.read_bytes() == COUNTING.astype(np.uint8).tobytes()


def test_fixed_windows_cover_the_text_without_overlap() -> None:
    idx, targets = fixed_windows(np.arange(30), block_size=7)
    # 4 windows of 7 and one more target; token 29 is left over
    assert idx.flatten().tolist() == list(range(28))
    assert targets.flatten().tolist() == list(range(1, 29))


@pytest.mark.parametrize(("n", "windows"), [(8, 1), (14, 1), (15, 2), (21, 2), (22, 3)])
def test_fixed_windows_need_one_token_more_for_the_targets(n: int, windows: int) -> None:
    idx, _ = fixed_windows(np.arange(n), block_size=7)
    assert len(idx) == windows


def test_fixed_windows_are_evenly_spread() -> None:
    idx, targets = fixed_windows(np.arange(101), block_size=10, max_windows=4)
    assert idx[:, 0].tolist() == [0, 20, 50, 70]
    assert torch.equal(targets, idx + 1)
    everything, _ = fixed_windows(np.arange(101), block_size=10, max_windows=99)
    assert everything[:, 0].tolist() == list(range(0, 100, 10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"seed=-1 must be in 0\.\.2\*\*63-1"),
        ({"seed": 2**63}, r"seed=9223372036854775808 must be"),
        ({"step": -1}, "step=-1 must be"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"block_size": 0}, "block_size=0 must be at least 1"),
        ({"block_size": 10}, r"block_size=10 needs at least 11 tokens \(a window and its targets\), got 10; use"),
    ],
)
def test_random_windows_refuses(change: dict[str, int], message: str) -> None:
    arguments = {"seed": 0, "step": 0, "batch_size": 1, "block_size": 4} | change
    with pytest.raises(ValueError, match=message):
        random_windows(np.arange(10), **arguments)


def test_fixed_windows_refuses() -> None:
    with pytest.raises(ValueError, match="needs at least 11 tokens"):
        fixed_windows(np.arange(10), block_size=10)
    with pytest.raises(ValueError, match="max_windows=0 must be at least 1"):
        fixed_windows(np.arange(10), block_size=2, max_windows=0)
    with pytest.raises(ValueError, match=r"one sequence \(n,\), got shape \(2, 5\)"):
        fixed_windows(np.arange(10).reshape(2, 5), block_size=2)


def test_validation_text_is_sampled_from_all_of_it() -> None:
    text = bytes(i // 1000 for i in range(200_000))  # each byte says where it stood
    sample = spread(text, 40_000)
    assert len(sample) == 9 * 4096
    assert sample[0] == 0
    assert sample[-1] > 190
    assert spread(text[:300], 40_000) == text[:300]
