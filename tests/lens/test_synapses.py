"""Synapses, one at a time, are what the sums over all tokens say; ledgers add up to what was read."""

import pytest
import torch

from bdh import BDH, BDHConfig, State, ops
from bdh.lens import (
    EraseTokens,
    ScaleSynapse,
    erase_tokens,
    intervene,
    pair_strength,
    record,
    sigma,
    strongest_growth,
    write_ledger,
)
from bdh.sections import STDP
from tolerances import CONTROL, SAME, error

N, K, D, L, T = 64, 32, 16, 3, 9
EXACT = SAME[torch.float64]


def lively(seed: int = 0, dtype: torch.dtype = torch.float64, **more: object) -> BDH:
    """With weights so large that what the memory holds matters."""
    shape = {"n_layer": L, "n_embd": D, "n_head": 2, "mlp_internal_dim_multiplier": 4, "dropout": 0.1}
    model = BDH.from_seed(BDHConfig(**shape, **more), seed).to(dtype).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (model.embed.weight, model.decoder, model.lm_head):
            parameter.mul_(10)
    return model


MODELS = {
    "released": {},
    "rms": {"norm": "rms"},
    "kernel": {"stdp": STDP(form="kernel")},
    "hatching": {"variant": "hatching"},
}


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))


def weight(model: BDH, t: int) -> torch.Tensor:
    """What tokens 0..t-1 count for token t, per head (H, t)."""
    part = model.parts.stdp
    if part is None:
        return torch.ones(2, t, dtype=torch.float64)
    ages = t - torch.arange(t, dtype=torch.float64)
    return 1 + part.strength[:, None] * torch.exp(-part.rate()[:, None] * ages)  # type: ignore[operator]


def by_tokens(model: BDH, idx: torch.Tensor, level: int) -> torch.Tensor:
    """Every sigma(i, j) as found by the token after the last: the sum over tokens, N x N, (B, H, K, K)."""
    _, trace = record(model, idx, "*")
    t = idx.shape[1]
    x, v = trace[f"layers.{level}.x_sparse"], trace[f"layers.{level}.value"]
    turn = ops.rotation(K, 0, t + 1, like=x)
    # what was written, as the reading token sees it: turned by its age
    seen = torch.stack([ops.rotate(x[:, :, s, None], (turn[s] * turn[t].conj())[None])[:, :, 0] for s in range(t)], 2)
    columns = model.encoder_v
    if model.config.norm == "layer":
        columns = columns - columns.mean(1, keepdim=True)
    received = torch.einsum("hdi,btd->bhti", columns, v)
    return torch.einsum("bhti,bhtj,ht->bhij", received, seen, weight(model, t)).detach()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_sigma_is_the_sum_over_tokens(kind: str, seed: int) -> None:
    model, idx = lively(seed, **MODELS[kind]), ids(2, T, seed=seed)
    _, state = model.advance(idx)
    for level in range(L):
        expected = by_tokens(model, idx, level)
        for head in range(2):
            i, j = torch.meshgrid(torch.arange(K), torch.arange(K), indexing="ij")
            got = sigma(model, state, level, i.flatten() + head * K, j.flatten() + head * K)
            assert error(got, expected[:, head].flatten(1)) <= EXACT
            assert error(sigma(model, state, level, j.flatten(), i.flatten()), got) > CONTROL
    assert (sigma(model, state, 0, [3, 40], [K + 3, 3]) == 0).all()  # no synapse between heads
    assert torch.equal(sigma(model, state, 0, 3, [4, 5])[:, 1], sigma(model, state, 0, [3], 5)[:, 0])


@pytest.mark.parametrize("kind", [*MODELS, "trace"])
def test_sigma_makes_the_drive_of_the_gates(kind: str) -> None:
    model = lively(**MODELS.get(kind, {"stdp": STDP(form="trace")}))
    idx = ids(2, T)
    _, state = model.advance(idx[:, :-1])
    _, trace = record(model, idx, "*")
    for level in range(L):
        x, a = (trace[f"layers.{level}.{name}"][:, :, -1] for name in ("x_sparse", "attn_out"))
        spread = a.square().mean(-1) + torch.finfo(a.dtype).eps
        if model.config.norm == "layer":
            spread = a.var(-1, unbiased=False) + 1e-5
        for target in (5, K + 9):
            head = target // K
            row = sigma(model, state, level, target, range(head * K, head * K + K))
            drive = (row * x[:, head]).sum(-1) / spread[:, head].sqrt()
            assert error(drive, trace[f"layers.{level}.y_pre"][:, head, -1, target % K]) <= EXACT


@pytest.mark.parametrize("variant", ["bdh", "hatching"])
def test_a_state_that_the_kernels_left_has_the_same_synapses(variant: str) -> None:
    from bdh.generate import prefill, step, step_weights

    model, idx = lively(dtype=torch.float32, variant=variant), ids(1, T)
    _, state = prefill(model, idx[:, :4])
    weights = step_weights(model, state)
    for t in range(4, T):
        _, state = step(model, idx[:, t : t + 1], state, weights)
    _, expected = model.advance(idx)
    i, j = range(K), [(7 * n + 3) % K for n in range(K)]
    for level in range(L):
        got, same = sigma(model, state, level, i, j), sigma(model, expected, level, i, j)
        assert error(got, same) <= 10 * SAME[torch.float32]


def test_strength_does_not_swing_while_nothing_is_written() -> None:
    model, idx = lively(), ids(1, T)
    with intervene(model, [EraseTokens(range(5, T))]):
        states: list[State] = [model.advance(idx[:, :5])[1]]
        for t in range(5, T):
            states.append(model.advance(idx[:, t : t + 1], states[-1])[1])
    i, j = range(K), range(K)
    for state in states[1:]:
        assert error(pair_strength(model, state, 1, i, j), pair_strength(model, states[0], 1, i, j)) <= EXACT
        assert error(sigma(model, state, 1, i, j), sigma(model, states[0], 1, i, j)) > CONTROL
    both = sigma(model, states[0], 1, [3, 3], [10, 11])
    assert error(pair_strength(model, states[0], 1, 3, 11)[:, 0], both.square().sum(-1).sqrt()) <= EXACT


@pytest.mark.parametrize("span", [(0, 4), (3, 7)])
@pytest.mark.parametrize("block", [256, 3])
def test_growth_is_searched_among_all_pairs(span: tuple[int, int], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdh.lens.synapses._BLOCK", block)
    model, idx = lively(), ids(1, T)
    found = strongest_growth(model, idx, span, level=1, top=40)
    strength = []
    for end in span:
        if end == 0:
            strength.append(torch.zeros(N, K // 2, dtype=torch.float64))
            continue
        # at any position the pairs are as strong
        whole = by_tokens(model, idx[:, :end], 1)[0].flatten(0, 1)  # (N, K)
        strength.append(whole.unflatten(-1, (-1, 2)).square().sum(-1).sqrt())
    growth = strength[1] - strength[0]
    expected = growth.flatten().topk(40).values
    assert error(torch.tensor([one.growth for one in found], dtype=torch.float64), expected) <= EXACT
    for one in found:
        head = one.target // K
        assert one.source // K == head
        assert one.source % 2 == 0
        at = one.target, one.source % K // 2
        assert one.before == pytest.approx(strength[0][at].item(), rel=1e-9, abs=1e-12)
        assert one.after == pytest.approx(strength[1][at].item(), rel=1e-9)
    _, state = model.advance(idx[:, : span[1]])
    again = pair_strength(model, state, 1, [one.target for one in found], [one.source for one in found])[0]
    assert error(again, torch.tensor([one.after for one in found], dtype=torch.float64)) <= EXACT
    # the span matters
    assert strongest_growth(model, idx, (7, 9), level=1, top=40) != found


def test_growth_takes_a_text_and_as_many_as_there_are() -> None:
    model = lively()
    found = strongest_growth(model, "one euro", (4, 8), level=0, top=10**6)
    assert len(found) == N * K // 2
    assert found == strongest_growth(model, model.as_ids("one euro"), (4, 8), level=0, top=10**6)


@pytest.mark.parametrize("kind", MODELS)
def test_a_ledger_adds_up_to_what_was_read(kind: str) -> None:
    model, idx = lively(**MODELS[kind]), ids(2, T)
    _, trace = record(model, idx, "*")
    for level in range(L):
        for position in (1, 6, T - 1):
            ledger = write_ledger(model, idx, level, position)
            read = trace[f"layers.{level}.attn_out"][:, :, position]
            assert error(ledger.read, read) <= EXACT
            assert ledger.contributions.shape == (2, 2, position, D)
            assert error(ledger.contributions.sum(2), read) <= EXACT
            assert error(ledger.through.sum(-1), ledger.scores) <= EXACT
            for neuron in (3, K + 8):
                drive = trace[f"layers.{level}.y_pre"][:, neuron // K, position, neuron % K]
                assert error(ledger.to_gate(neuron).sum(-1), drive) <= EXACT
            if position > 1:  # at token 1 spiking neurons are silent yet
                largest = int(ledger.contributions.abs().amax((0, 1, 3)).argmax())
                others = ledger.contributions[:, :, [t for t in range(position) if t != largest]]
                assert error(others.sum(2), read) > CONTROL


def test_the_scores_of_a_ledger_are_those_of_attention() -> None:
    model, idx = lively(), ids(2, T)
    _, trace = record(model, idx, "*")
    q = ops.rotate(trace["layers.1.x_sparse"], ops.rotation(K, 0, T, like=model.encoder))
    ledger = write_ledger(model, idx, 1, 6)
    assert error(ledger.scores, (q @ q.mT)[:, :, 6, :6]) <= EXACT
    assert torch.equal(ledger.values, trace["layers.1.value"][:, :6])
    assert write_ledger(model, idx, 1, 0).contributions.sum(2).abs().max() == 0
    # what came through a neuron is gone from the read when its row is cut
    k = int(ledger.through[:, 1].abs().amax((0, 1)).argmax())
    with intervene(model, [ScaleSynapse(None, K + k, 0.0, layers=[1])]):
        _, cut = record(model, idx, "layers.1.attn_out")
    through = ledger.through[:, 1, :, k, None] * ledger.values
    gone = trace["layers.1.attn_out"][:, 1, 6] - cut["layers.1.attn_out"][:, 1, 6]
    assert error(through.sum(1), gone) <= 10 * EXACT  # a difference of reads that are larger
    assert gone.abs().max() > CONTROL


@pytest.mark.parametrize("form", ["off", "kernel"])
@pytest.mark.parametrize("split", [0, 3])
def test_tokens_are_taken_out_of_a_state(form: str, split: int) -> None:
    model, idx, erased = lively(stdp=STDP(form=form)), ids(2, T), [4, 6]  # type: ignore[arg-type]
    before = model.advance(idx[:, :split])[1] if split else None
    kept = [rho.clone() for rho in before.rho] if before is not None else []
    _, full = model.advance(idx)
    less = erase_tokens(model, idx[:, split:], erased, before)
    with intervene(model, [EraseTokens(erased)]):
        _, never = model.advance(idx)
    _, trace = record(model, idx, "*")
    for level in range(L):
        q = ops.rotate(trace[f"layers.{level}.x_sparse"], ops.rotation(K, 0, T, like=model.encoder))
        v = trace[f"layers.{level}.value"]
        others = [t for t in range(T) if t not in erased]
        assert error(less.rho[level], q[:, :, others].mT @ v[:, None, others]) <= EXACT
        if form == "kernel":
            left = torch.exp(-model.parts.stdp.rate()[:, None] * (T - 1 - torch.tensor(others)))  # type: ignore[operator, union-attr]
            fading = (q[:, :, others] * left[..., None]).mT @ v[:, None, others]
            assert error(less.level(level)["fading"], fading) <= EXACT
        assert error(less.rho[level], full.rho[level]) > CONTROL
    # at level 0 nobody could have seen the tokens; at deeper levels others wrote differently because of them
    assert error(less.rho[0], never.rho[0]) <= EXACT
    assert error(less.rho[2], never.rho[2]) > CONTROL
    assert less.position == T
    if before is not None:
        assert all(map(torch.equal, before.rho, kept))
    only = erase_tokens(model, idx, erased, layers=[1])
    assert torch.equal(only.rho[0], full.rho[0])
    assert error(only.rho[1], full.rho[1]) > CONTROL


def test_what_there_is_not_is_refused() -> None:
    model, idx = lively(), ids(1, T)
    _, state = model.advance(idx)
    for bad, words in (
        (lambda: sigma(model, state, 3, 0, 0), r"level: expected 0\.\.2"),
        (lambda: sigma(model, state, 0, [N], 0), r"i: expected global neuron ids 0\.\.63"),
        (lambda: sigma(model, state, 0, 0, [-1]), r"j: expected"),
        (lambda: sigma(model, state, 0, 0, [0.5]), r"j: expected"),  # type: ignore[list-item]
        (lambda: sigma(model, state, 0, [1, 2], [1, 2, 3]), "expected as many ids"),
        (lambda: sigma(lively(variant="hatching"), state, 0, 0, 0), "state: expected"),
        (lambda: strongest_growth(model, idx, (4, 4), 0), "span"),
        (lambda: strongest_growth(model, idx, (0, T + 1), 0), "span"),
        (lambda: strongest_growth(model, ids(2, T), (0, 2), 0), "span"),
        (lambda: strongest_growth(model, idx, (0, 2), 0, top=0), "top"),
        (lambda: strongest_growth(model, idx, (0, 2), -1), "level"),
        (lambda: write_ledger(model, idx, 0, T), r"position=9: expected 0\.\.8"),
        (lambda: write_ledger(model, idx[0], 0, 0), "token ids"),
        (lambda: write_ledger(lively(stdp=STDP(form="trace")), idx, 0, 3), "writes pairs"),
        (lambda: erase_tokens(model, idx, [T]), r"positions: expected 0\.\.8"),
        (lambda: erase_tokens(model, idx, [2], state), r"positions: expected 9\.\.17"),
        (lambda: write_ledger(model, idx, 0, 3).to_gate(N), "neuron: expected"),
    ):
        with pytest.raises(ValueError, match=words):
            bad()
