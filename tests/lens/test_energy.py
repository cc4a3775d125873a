"""Energies and differences are those of the states themselves; spans are the sums over all pairs of tokens."""

import pytest
import torch

from bdh import BDH, BDHConfig, State
from bdh.lens import diff_states, memory_energy, memory_span, snapshots, write_ledger
from bdh.lens.timescales import bands, by_half, periods
from bdh.sections import STDP
from tolerances import CONTROL, SAME, error

T = 9
EXACT = SAME[torch.float64]
MODELS = {"bdh": {}, "hatching": {"variant": "hatching"}, "advanced": {"variant": "advanced"}}
LEDGERS = {"bdh": {}, "kernel": {"stdp": STDP(form="kernel")}, "rms": {"norm": "rms"}}


def lively(dtype: torch.dtype = torch.float64, **more: object) -> BDH:
    shape = {"n_layer": 3, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.1}
    model = BDH.from_seed(BDHConfig(**shape, **more), 0).to(dtype).eval()  # type: ignore[arg-type]
    model.calibrate(ids())
    with torch.no_grad():
        for parameter in (model.embed.weight, model.decoder, model.lm_head):
            parameter.mul_(10)
    return model


def wide(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, shape or (1, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MODELS)
def test_energy_is_that_of_the_state_after_each_token(kind: str) -> None:
    model, idx = lively(**MODELS[kind]), ids()
    found = memory_energy(model, idx, top=5)
    states = snapshots(model, idx, range(1, T + 1))
    for level, energy in enumerate(found.levels):
        rho = torch.stack([state.rho[level][0] for state in states])  # (T, H, K, D)
        pairs = rho.square().sum(-1).unflatten(-1, (-1, 2)).sum(-1)  # (T, H, P)
        assert error(wide(energy.total), pairs.sum((1, 2))) <= EXACT
        for name, of in bands(model).items():
            assert error(wide(energy.bands[name]), pairs[..., of].sum((1, 2))) <= EXACT
        followed = pairs.flatten(1)[:, torch.tensor(energy.pairs) // 2].T
        assert error(wide(energy.of_pairs), followed) <= EXACT
        assert energy.pairs[0] == 2 * int(pairs[-1].flatten().argmax())
        # without the overlaps it would be another number
        assert error(wide(energy.apart), wide(energy.total)) > CONTROL
        written = rho[0].square().sum().item()
        assert energy.apart[0] == pytest.approx(written)


def test_what_repeats_adds_more_energy_than_writes_apart() -> None:
    model = lively()
    once, again = (memory_energy(model, idx).levels[0] for idx in (ids(), torch.full((1, T), 7)))
    # one token over and over: what is written at level 0 is always the same, and turns only
    assert again.total[-1] / again.apart[-1] > 1.5 * once.total[-1] / once.apart[-1]


def test_snapshots_are_the_states_of_the_prefixes() -> None:
    model, idx = lively(), ids(2, T)
    for state, end in zip(snapshots(model, idx, [2, 3, T]), (2, 3, T), strict=True):
        _, expected = model.advance(idx[:, :end])
        assert state.position == end
        assert max(map(error, state.rho, expected.rho)) <= EXACT
    for wrong in ([], [0, 2], [3, 2], [2, 2], [T + 1]):
        with pytest.raises(ValueError, match=r"expected ascending numbers of tokens in 1\.\.9"):
            snapshots(model, idx, wrong)


@pytest.mark.parametrize("kind", MODELS)
def test_a_difference_is_that_of_the_rows(kind: str) -> None:
    model, idx = lively(**MODELS[kind]), ids()
    early, late = snapshots(model, idx, [4, T])
    found = diff_states(model, early, late, top=3)
    assert found.positions == (4, T)
    for level, change in enumerate(found.levels):
        a, b = early.rho[level].flatten(), late.rho[level].flatten()
        assert change.cosine == pytest.approx(torch.cosine_similarity(a, b, 0).item())
        assert change.distance == pytest.approx((b - a).square().sum().item())
        assert sum(change.bands.values()) == pytest.approx(1)
        rows = (late.rho[level] - early.rho[level]).square().sum(-1).flatten()  # (N,)
        pairs = rows[::2] + rows[1::2]
        assert [one.pair for one in change.pairs] == (2 * pairs.topk(3).indices).tolist()
        assert change.pairs[0].distance == pytest.approx(pairs.max().item())
        assert change.pairs[0].period == periods(model)[change.pairs[0].pair].item()
    assert "most in neurons" in found.words
    same = diff_states(model, late, late)
    assert all(level.distance == 0 and level.bands == {} for level in same.levels)
    assert same.levels[0].cosine == pytest.approx(1)
    empty = State(tuple(torch.zeros_like(rho) for rho in late.rho), 0, late.mechanisms)
    assert diff_states(model, empty, late).levels[0].cosine is None


def test_only_one_changed_row_is_named() -> None:
    model = lively()
    _, state = model.advance(ids())
    changed = state.rho[1].clone()
    changed[0, 1, 7] += 1
    other = State((state.rho[0], changed, state.rho[2]), state.position)
    found = diff_states(model, state, other, top=4)
    assert found.levels[0].distance == found.levels[2].distance == 0
    assert found.levels[1].pairs[0].pair == 64 + 6
    assert found.levels[1].pairs[0].distance == pytest.approx(16)
    assert found.levels[1].pairs[1].distance == 0


@pytest.mark.parametrize("kind", LEDGERS)
def test_a_span_is_the_mean_age_weighted_by_the_scores_of_the_ledger(kind: str) -> None:
    model, idx = lively(**LEDGERS[kind]), ids()
    found = memory_span(model, idx)
    period = periods(model)[: model.config.neurons_per_head]
    assert found.even == pytest.approx(sum((t - s) for t in range(T) for s in range(t)) / (T * (T - 1) / 2))
    for level, of_bands in enumerate(found.levels):
        sums = {band.band: [0.0, 0.0, 0.0] for band in of_bands}
        whole = [0.0, 0.0]
        for t in range(1, T):
            ledger = write_ledger(model, idx, level, t)
            ages = t - torch.arange(t)
            whole[0] += (ledger.scores.abs() * ages).sum().item()
            whole[1] += ledger.scores.abs().sum().item()
            for name, of in bands(model).items():
                scores = ledger.through[..., of.repeat_interleave(2)].sum(-1)
                sums[name][0] += (scores.abs() * ages).sum().item()
                sums[name][1] += scores.abs().sum().item()
                sums[name][2] -= scores.clamp(max=0).sum().item()
        assert found.whole[level] == pytest.approx(whole[0] / whole[1])
        assert found.whole[level] != pytest.approx(found.even, rel=CONTROL)
        everything = sum(weight for _, weight, _ in sums.values())
        for band in of_bands:
            aged, weight, negative = sums[band.band]
            assert band.span == pytest.approx(aged / weight)
            assert band.share == pytest.approx(weight / everything)
            assert band.negative == pytest.approx(negative / weight)
    assert sum(band.neurons for band in found.levels[0]) == len(period) * 2


def test_what_cannot_be_measured_is_refused_in_one_line() -> None:
    model = lively()
    with pytest.raises(ValueError, match="stdp"):
        memory_span(lively(stdp=STDP(form="trace")), ids())
    with pytest.raises(ValueError, match="two tokens"):
        memory_span(model, "a")
    for measure in (memory_energy, memory_span):
        with pytest.raises(ValueError, match=r"expected one text of shape \(1, T\)"):
            measure(model, ids(2, 3))
    with pytest.raises(ValueError, match="top=0"):
        memory_energy(model, "ab", top=0)
    _, state = model.advance(ids(2, 3))
    with pytest.raises(ValueError, match="state: expected"):
        diff_states(model, state, state)


def test_bands_and_halves_split_the_neurons_of_a_head() -> None:
    model = lively()
    assert torch.stack(list(bands(model).values())).sum(0).tolist() == [1] * 32
    assert periods(model).shape == (128,)
    values = torch.rand(2, 2, 3, 64)
    split = by_half(values)
    assert torch.allclose(split[..., 0], values[..., :32].mean((1, 3)))
    assert torch.allclose(split.mean(-1), values.mean((1, 3)))
