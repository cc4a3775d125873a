"""Signed scores are what the memory is read with; synapses followed over a text are those of its states."""

from dataclasses import replace

import pytest
import torch

from bdh import BDH, BDHConfig
from bdh.lens import (
    attention_scores,
    pair_strength,
    record,
    scale_pair,
    sigma,
    signed_attention,
    snapshots,
    synapse_course,
    typical_growth,
    write_ledger,
)
from bdh.lens.attention import negative_share
from bdh.sections import STDP
from tolerances import CONTROL, SAME, error

T, K = 9, 64
EXACT = SAME[torch.float64]
MODELS = {"bdh": {}, "rms": {"norm": "rms"}, "kernel": {"stdp": STDP(form="kernel")}}


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
def test_scores_read_the_memory(kind: str) -> None:
    model, idx = lively(**MODELS[kind]), ids(2, T)
    _, trace = record(model, idx, ("layers.*.value", "layers.*.attn_out"))
    for level in range(3):
        scores = attention_scores(model, idx, level)
        assert (scores.triu() == 0).all()
        value, read = trace[f"layers.{level}.value"], trace[f"layers.{level}.attn_out"]
        assert error(scores @ value[:, None], read) <= EXACT
        assert error(scores.abs().softmax(-1) @ value[:, None], read) > CONTROL
        ledger = write_ledger(model, idx, level, T - 1)
        assert error(scores[:, :, -1, :-1], ledger.scores) <= EXACT


def test_negative_scores_are_counted_below_the_diagonal() -> None:
    model, idx = lively(), ids(1, 30)
    found = signed_attention(model, idx, 1)
    scores = attention_scores(model, idx, 1)[0]
    for head, one in enumerate(found.heads):
        rows = [scores[head, t, s].item() for t in range(30) for s in range(t)]
        assert [score for row in one.scores for score in row] == pytest.approx(rows)
        assert one.negative == pytest.approx(sum(score < 0 for score in rows) / len(rows))
        assert one.weight == pytest.approx(-sum(min(score, 0) for score in rows) / sum(map(abs, rows)))
    assert negative_share(torch.zeros(1, 1)) == (None, None)


def test_only_fast_neurons_read_with_both_signs() -> None:
    """A pair that turns once in 2 pi tokens counts against what is three tokens old."""
    model = lively()
    with torch.no_grad():
        model.encoder[:, :, 2:] = 0
    model.encoder.data[:, :, :2] = model.encoder[:, :, :2].abs()
    model.embed.weight.data.abs_()
    model._norm = lambda v, shape: v  # type: ignore[assignment]
    scores = attention_scores(model, ids(), 0)[0, 0]
    assert scores[4, 1] < 0 < scores[4, 3]


@pytest.mark.parametrize("kind", MODELS)
def test_a_synapse_over_a_text_is_that_of_its_states(kind: str) -> None:
    model, idx = lively(**MODELS[kind]), ids()
    i, j = K + 5, K + 9
    for level in range(3):
        found = synapse_course(model, idx, level, i, j)
        assert found.sigma[0] == found.strength[0] == 0
        for t, state in enumerate(snapshots(model, idx, range(1, T)), 1):
            assert found.sigma[t] == pytest.approx(sigma(model, state, level, i, j).item(), rel=1e-9)
            assert found.strength[t] == pytest.approx(pair_strength(model, state, level, i, j).item(), rel=1e-9)
        other = synapse_course(model, idx, level, i, j - 1)
        assert other.strength == pytest.approx(found.strength)
        assert error(wide(other.sigma), wide(found.sigma)) > CONTROL
    assert found.period == pytest.approx(2 * torch.pi * 2 ** (16 * 8 / 64))


def test_typical_growth_is_that_of_the_drawn_synapses() -> None:
    model, idx = lively(), ids()
    median, most = typical_growth(model, idx, (3, 6), 1, draws=4000)
    before, after = snapshots(model, idx, [3, 6])
    grown = []
    for head in range(2):
        i, j = torch.meshgrid(torch.arange(K), torch.arange(K), indexing="ij")
        i, j = i.flatten() + head * K, j.flatten() + head * K
        grown.append(pair_strength(model, after, 1, i, j) - pair_strength(model, before, 1, i, j))
    everything = torch.cat(grown)
    spread = (everything.quantile(0.6) - everything.quantile(0.4)).item()
    assert abs(median - everything.median().item()) < spread / 2
    assert most <= everything.max().item()
    assert typical_growth(model, idx, (0, 6), 1)[1] > 0


@pytest.mark.parametrize("kind", [*MODELS, "trace"])
@pytest.mark.parametrize("target", [None, K + 3])
def test_a_scaled_pair_stays_scaled_while_nothing_is_written(kind: str, target: int | None) -> None:
    model = lively(**MODELS.get(kind, {"stdp": STDP(form="trace")}))
    _, state = model.advance(ids(2, T))
    changed = scale_pair(model, state, K + 9, 0.25, target, layers=[1])
    assert all(torch.equal(changed.rho[level], state.rho[level]) for level in (0, 2))
    pair = [K + 8, K + 9]
    for late in (0, 7):  # sigma swings with the position; scaled it swings alike
        then, now = (replace(one, position=one.position + late) for one in (state, changed))
        assert error(sigma(model, now, 1, K + 3, pair), 0.25 * sigma(model, then, 1, K + 3, pair)) <= EXACT
        assert error(sigma(model, now, 1, K + 3, pair), sigma(model, then, 1, K + 3, pair)) > CONTROL
    others = range(K, 2 * K)
    got, was = sigma(model, changed, 1, others, K + 9), sigma(model, state, 1, others, K + 9)
    if target is None:
        assert error(got, 0.25 * was) <= EXACT
    else:
        r = model.encoder_v[1] - (model.encoder_v[1].mean(0) if model.config.norm == "layer" else 0)
        along = (r.T @ r[:, 3] / r[:, 3].square().sum()).detach()
        assert error(got, was - 0.75 * was[:, 3:4] * along) <= EXACT
    assert torch.equal(sigma(model, changed, 1, others, K + 10), sigma(model, state, 1, others, K + 10))


def test_a_scaled_state_is_gone_on_from() -> None:
    model = lively()
    _, state = model.advance(ids())
    nxt = torch.tensor([[65]])
    plain = model.advance(nxt, state)[0]
    assert torch.equal(model.advance(nxt, scale_pair(model, state, 3, 1.0))[0], plain)
    assert error(model.advance(nxt, scale_pair(model, state, 3, 50.0))[0], plain) > CONTROL


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: attention_scores(m, ids(), 3), r"level: expected 0\.\.2"),
        (lambda m: signed_attention(m, ids(2, 3), 0), r"one text"),
        (lambda m: synapse_course(m, ids(), 0, 3, K + 3), "one head"),
        (lambda m: synapse_course(m, ids(), 0, 3, 999), "j: expected global neuron ids"),
        (lambda m: attention_scores(lively(stdp=STDP(form="trace")), ids(), 0), "stdp"),
        (lambda m: synapse_course(lively(stdp=STDP(form="trace")), ids(), 0, 3, 4), "stdp"),
        (lambda m: scale_pair(m, m.advance(ids())[1], 3, 0.5, K + 1), "neurons of one head"),
        (lambda m: scale_pair(m, m.advance(ids())[1], 2 * K, 0.5), "source: expected global neuron ids"),
        (lambda m: scale_pair(m, m.advance(ids())[1], 3, float("nan")), "factor"),
        (lambda m: typical_growth(m, ids(), (5, 3), 0), "ascending"),
    ],
)
def test_what_there_is_not_is_refused(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(lively())
