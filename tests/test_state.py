"""State is a value, and reading in pieces is reading."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bdh
from bdh import BDH, BDHConfig, State
from bdh.ops import parallel
from tolerances import CONTROL, SAME, error

CONFIGS = [
    BDHConfig(n_layer=3, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0),
    BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0, sparsity=0.8),
]


def scaled(config: BDHConfig) -> BDH:
    model = BDH.from_seed(config, 0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


MODELS = [scaled(config) for config in CONFIGS]


def text(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(length))


@torch.no_grad()
@pytest.mark.parametrize("model", MODELS, ids=["relu", "k_winners"])
@given(lengths=st.lists(st.integers(1, 17), min_size=1, max_size=8), batch=st.integers(1, 3))
def test_any_split_equals_one_forward(model: BDH, lengths: list[int], batch: int) -> None:
    idx = text(batch, sum(lengths))
    whole, _ = model(idx)
    state, parts = None, []
    for piece in idx.split(lengths, dim=1):
        logits, state = model.advance(piece, state)
        parts.append(logits)
    assert error(torch.cat(parts, 1), whole) <= SAME[torch.float32]
    assert state.position == sum(lengths)
    _, at_once = model.advance(idx)
    for mine, theirs in zip(state.rho, at_once.rho, strict=True):
        assert error(mine, theirs) <= SAME[torch.float32]


@torch.no_grad()
def test_blocks_and_the_long_form_equal_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    idx = text(2, 150)
    whole, _ = MODELS[0](idx)
    for block in (1, 16, 64):
        monkeypatch.setattr(parallel, "BLOCK", block)
        assert error(MODELS[0](idx)[0], whole) <= SAME[torch.float32]
        assert error(MODELS[0].advance(idx)[0], whole) <= SAME[torch.float32]


@torch.no_grad()
def test_a_lost_state_is_caught() -> None:
    idx = text(1, 20)
    _, state = MODELS[0].advance(idx[:, :10])
    forgotten = State(tuple(torch.zeros_like(r) for r in state.rho), state.position)
    misplaced = State(state.rho, state.position + 1)
    whole = MODELS[0](idx)[0][:, 10:]
    assert error(MODELS[0].advance(idx[:, 10:], state)[0], whole) <= SAME[torch.float32]
    for wrong in (forgotten, misplaced):
        assert error(MODELS[0].advance(idx[:, 10:], wrong)[0], whole) > CONTROL


@torch.no_grad()
@given(st.integers(0, 18))
def test_the_past_does_not_depend_on_the_future(t: int) -> None:
    one, two = text(1, 20), text(1, 20)
    two[0, t + 1 :] = (two[0, t + 1 :] + 1) % 256
    a, b = MODELS[0](one)[0], MODELS[0](two)[0]
    assert torch.equal(a[:, : t + 1], b[:, : t + 1])
    assert not torch.equal(a[:, t + 1 :], b[:, t + 1 :])


@torch.no_grad()
def test_rows_of_a_batch_do_not_see_each_other() -> None:
    idx = text(4, 20)
    together, state = MODELS[0].advance(idx)
    for row in range(4):
        alone, own = MODELS[0].advance(idx[row : row + 1])
        assert error(together[row], alone[0]) <= SAME[torch.float32]
        for mine, theirs in zip(state.rows([row]).rho, own.rho, strict=True):
            assert error(mine, theirs) <= SAME[torch.float32]


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 9])
def test_a_state_is_never_changed(length: int) -> None:
    _, state = MODELS[0].advance(text(1, 10))
    before = [rho.clone() for rho in state.rho]
    MODELS[0].advance(text(1, length), state)
    list(MODELS[0].stream(text(1, length), 5, state=state, seed=0))
    assert all(torch.equal(a, b) for a, b in zip(state.rho, before, strict=True))
    assert state.position == 10


@torch.no_grad()
def test_a_forked_state_continues_both_ways() -> None:
    idx, left, right = text(1, 10), text(1, 5), text(1, 6)
    _, state = MODELS[0].advance(idx)
    for more in (left, right):
        expected = MODELS[0](torch.cat([idx, more], 1))[0][:, 10:]
        assert error(MODELS[0].advance(more, state)[0], expected) <= SAME[torch.float32]


@torch.no_grad()
def test_state_moves_between_types_and_files(tmp_path) -> None:
    _, state = MODELS[0].advance(text(2, 10))
    back = bdh.load_state(bdh.save_state(state, tmp_path / "memory.safetensors"))
    assert back.position == 10
    assert all(torch.equal(a, b) for a, b in zip(back.rho, state.rho, strict=True))
    assert state.to(dtype=torch.float64).rho[0].dtype == torch.float64
    assert state.nbytes == 3 * 2 * 2 * 64 * 16 * 4


@torch.no_grad()
def test_a_state_stored_in_half_precision_stays_so_and_is_read_in_float32() -> None:
    idx = text(2, 20)
    _, state = MODELS[0].advance(idx[:, :10])
    stored = state.to(dtype=torch.bfloat16)
    logits, after = MODELS[0].advance(idx[:, 10:], stored)
    exact, wide = MODELS[0].advance(idx[:, 10:], stored.to(dtype=torch.float32))
    assert after.rho[0].dtype == torch.bfloat16
    assert error(logits, exact) <= SAME[torch.float32]
    for mine, theirs in zip(after.rho, wide.rho, strict=True):
        assert error(mine, theirs) <= 2**-8


def test_size_does_not_depend_on_what_was_read() -> None:
    sizes = {MODELS[0].advance(text(1, n))[1].nbytes for n in (1, 50, 300)}
    assert len(sizes) == 1


def test_gradients_pass_through_the_state() -> None:
    """Truncated backpropagation needs it: the loss on the second half reaches the weights through rho."""
    model = scaled(CONFIGS[0]).double()
    idx = text(1, 20)
    whole = torch.autograd.grad(model(idx)[0][:, 10:].square().sum(), model.decoder)[0]
    _, state = model.advance(idx[:, :10])
    split = torch.autograd.grad(model.advance(idx[:, 10:], state)[0].square().sum(), model.decoder)[0]
    assert error(split, whole) <= 1e-9


@pytest.mark.parametrize("wrong", ["batch", "levels"])
def test_a_foreign_state_is_refused(wrong: str) -> None:
    _, state = MODELS[0].advance(text(2, 3))
    bad = state.rows([0]) if wrong == "batch" else State(state.rho[:2], 3)
    with pytest.raises(ValueError, match="expected 3 levels of"):
        MODELS[0].advance(text(2, 1), bad)


@pytest.mark.parametrize("content", [b"", b"not a state", b"\x10\0\0\0\0\0\0\0garbage"])
def test_a_broken_state_file_is_refused(tmp_path, content: bytes) -> None:
    file = tmp_path / "memory"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not a saved state"):
        bdh.load_state(file)
