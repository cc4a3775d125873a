"""Densities, surprisal and entropy are those of the pass; correlations are scipy's, and see what is planted."""

import numpy as np
import pytest
import torch
from scipy import stats

from bdh import BDH, BDHConfig
from bdh.lens import measure_repetition, measure_surprise, record, repeated_words
from bdh.lens.surprise import correlate

MODELS = {"bdh": {}, "hatching": {"variant": "hatching"}, "advanced": {"variant": "advanced"}}


def small(**more: object) -> BDH:
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 8}
    model = BDH.from_seed(BDHConfig(**shape, **more), 0).eval()  # type: ignore[arg-type]
    model.calibrate(repeated_words(2))
    with torch.no_grad():
        model.lm_head.mul_(20)
        model.embed.weight.mul_(20)
    return model


def test_the_task_repeats_a_random_word_after_a_fixed_warm_up() -> None:
    rows = repeated_words(40, seed=3)
    assert rows.shape == (40, 77)
    assert (rows[:, :13] == rows[0, :13]).all()
    words = rows[:, 13:21]
    assert torch.equal(rows[:, 13:], words.repeat(1, 8))
    assert len({tuple(word) for word in words.tolist()}) == 40
    assert rows.min() >= ord("a")
    assert rows.max() <= ord("z")
    other = repeated_words(40, seed=3, repeated=False)
    assert torch.equal(other[:, :21], rows[:, :21])
    assert (other[:, 21:] != rows[:, 21:]).float().mean() > 0.9  # one letter in 26 is the same by chance
    assert torch.equal(rows, repeated_words(40, seed=3))
    assert not torch.equal(rows, repeated_words(40, seed=4))
    assert torch.equal(repeated_words(40)[:7], repeated_words(7))  # more words, the same first ones
    with pytest.raises(ValueError, match="words=0"):
        repeated_words(0)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_measured_is_what_the_pass_has(kind: str) -> None:
    model, ids = small(**MODELS[kind]), repeated_words(3)
    found = measure_surprise(model, ids, resamples=200)
    logits, trace = record(model, ids, ("layers.*.x_sparse", "layers.*.xy_sparse"))
    log_p = logits.double().log_softmax(-1)
    expected = -log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    entropy = torch.distributions.Categorical(logits=logits.double()).entropy()
    assert found.places[0].surprisal is None
    assert [place.surprisal for place in found.places[1:]] == pytest.approx(expected.mean(0).tolist())
    assert [place.entropy for place in found.places] == pytest.approx(entropy.mean(0).tolist())
    K = model.config.neurons_per_head
    for one in found.correlations:
        name = {"x": "x_sparse", "xy": "xy_sparse"}[one.signal]
        active = (trace[f"layers.{one.level}.{name}"] > 0).double()  # (B, H, T, K)
        half = slice(0, K // 2) if one.neurons == "fast" else slice(K // 2, K)
        density = active[..., half].mean((1, 3))  # (B, T)
        which = ["fast", "slow"].index(one.neurons)
        shown = [place.density[one.signal][one.level][which] for place in found.places]
        assert shown == pytest.approx(density.mean(0).tolist())
        target = expected if one.against == "surprisal" else entropy[:, 1:]
        x, y = density[:, 1:].flatten().numpy(), target.flatten().numpy()
        if one.pearson is None:
            assert x.std() < 1e-12
            continue
        assert one.pearson == pytest.approx(stats.pearsonr(x, y).statistic)
        assert one.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
        assert one.pearson_ci is not None
        low, high = one.pearson_ci
        assert low <= high
        other = target.flip(1).flatten().numpy()  # another order, another correlation
        assert one.pearson != pytest.approx(stats.pearsonr(x, other).statistic, abs=1e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_effects_are_changes_less_those_of_the_control(kind: str) -> None:
    model = small(**MODELS[kind])
    found = measure_repetition(model, words=5, resamples=300)
    told, other = (repeated_words(5, repeated=repeated) for repeated in (True, False))
    K = model.config.neurons_per_head
    traces = [record(model, ids, ("logits", "layers.*.x_sparse", "layers.*.xy_sparse"))[1] for ids in (told, other)]
    for change in found.changes:
        name = f"layers.{change.level}.{change.signal}_sparse"
        half = slice(0, K // 2) if change.neurons == "fast" else slice(K // 2, K)
        same, control = ((trace[name][..., half] > 0).double().mean((1, 3)) for trace in traces)  # (B, T)
        assert change.memorising == pytest.approx(same[:, 13:21].mean().item())
        assert change.repeating == pytest.approx(same[:, 21:].mean().item())
        shift = control[:, 21:].mean(1) - control[:, 13:21].mean(1)
        effect = same[:, 21:].mean(1) - same[:, 13:21].mean(1) - shift
        assert change.control == pytest.approx(shift.mean().item())
        assert change.effect == pytest.approx(effect.mean().item())
        spread = effect.std(unbiased=False).item() / 5**0.5
        assert change.ci[1] - change.ci[0] == pytest.approx(4 * spread, rel=0.35, abs=1e-12)
        assert change.init[0] <= change.init[1]
    log_p = traces[0]["logits"].double().log_softmax(-1)
    third = -log_p[:, 28:36].gather(-1, told[:, 29:37, None])
    assert found.times[2].surprisal == pytest.approx(third.mean().item())
    assert found.times[0].surprisal == pytest.approx(found.times[0].control)  # the first word is the same
    assert found.times[2].surprisal != pytest.approx(found.times[2].control, rel=1e-3)


def test_means_over_places_are_means() -> None:
    found = measure_surprise(small(), repeated_words(4), resamples=10)
    first = found.mean(0, 13)
    assert first.surprisal == pytest.approx(np.mean([place.surprisal for place in found.places[1:13]]))
    assert first.density["xy"][1][0] == pytest.approx(np.mean([p.density["xy"][1][0] for p in found.places[:13]]))
    assert first.init["x"][0][1] == pytest.approx(np.mean([p.init["x"][0][1] for p in found.places[:13]]))
    assert found.mean(0, 1).surprisal is None


def test_the_bootstrap_takes_whole_rows_and_covers_what_it_should() -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(30, [1 / 30] * 30, 2000).astype(float)
    # within a row everything is the same: the interval must be that of 30 numbers, not of 3,000
    x, y = (np.repeat(rng.normal(size=(30, 1)), 100, 1) for _ in range(2))
    r, interval = correlate(x, y, draws)
    assert interval is not None
    assert r == pytest.approx(stats.pearsonr(x[:, 0], y[:, 0]).statistic)
    wide = interval[1] - interval[0]
    assert 0.4 < wide < 1.0  # of 30 independent pairs about 0.7
    shuffled, narrow = correlate(rng.permuted(x.ravel()).reshape(x.shape), y, draws)
    assert narrow is not None
    assert narrow[1] - narrow[0] < wide / 3
    assert abs(shuffled or 0) < 0.1


def test_what_does_not_vary_has_no_correlation() -> None:
    flat, other = np.full((3, 5), 0.1), np.random.default_rng(0).normal(size=(3, 5))
    assert correlate(flat, other, np.ones((2, 3))) == (None, None)
    alone = correlate(other[:1], 2 * other[:1], np.ones((2, 1)))
    assert alone == (pytest.approx(1), None)


def test_planted_neurons_that_fire_before_uncertain_predictions_are_found() -> None:
    """Letters n to z drive the fast neurons, and make the readout favour many tokens; a to m favour few."""
    model = small()
    early = torch.zeros(256, dtype=torch.bool)
    early[ord("a") : ord("n")] = True
    with torch.no_grad():
        D, K = model.config.n_embd, model.config.neurons_per_head
        first = torch.zeros(D).index_fill_(0, torch.tensor([0]), 1.0)
        model.embed.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        model.embed.weight[:, 0] = torch.where(early, -3.0, 3.0)
        model.encoder.zero_()
        model.encoder[:, :, : K // 2] = first[:, None]
        model.decoder.zero_()  # the stream stays the embedding
        model.lm_head.zero_()
        model.lm_head[0] = torch.where(early, -1.0, 1.0)
    ids = torch.randint(ord("a"), ord("z") + 1, (12, 40), generator=torch.Generator().manual_seed(1))
    found = measure_surprise(model, ids, resamples=200)
    at = {(c.level, c.signal, c.neurons, c.against): c for c in found.correlations}
    entropy = at[0, "x", "fast", "entropy"]
    assert entropy.pearson is not None
    assert entropy.pearson > 0.9
    assert entropy.init_pearson is not None
    assert max(map(abs, entropy.init_pearson)) < 0.6
    assert at[0, "x", "slow", "surprisal"].pearson is None


def test_texts_too_short_are_refused() -> None:
    for wrong in (torch.zeros(2, 1, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)):
        with pytest.raises(ValueError, match="two tokens or more"):
            measure_surprise(small(), wrong)
