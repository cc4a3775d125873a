"""The logit lens reads the stream out; attributions sum to the logit, with nothing left over."""

import pytest
import torch

from bdh import BDH, BDHConfig
from bdh.lens import attribute_logit, logit_lens, record, split_stream
from tolerances import CONTROL, SAME, error

T = 9
EXACT = SAME[torch.float64]
MODELS = {
    "bdh": {},
    "rms": {"norm": "rms"},
    "hatching": {"variant": "hatching"},
    "advanced": {"variant": "advanced"},
}


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
def test_the_lens_reads_every_level_out(kind: str) -> None:
    model, idx = lively(**MODELS[kind]), ids()
    found = logit_lens(model, idx, top=2)
    logits, trace = record(model, idx, ("embed", "layers.*.v"))
    final = logits[0].log_softmax(-1)
    for depth, name in enumerate(["embed", "layers.0.v", "layers.1.v", "layers.2.v"]):
        log_p = (trace[name][0] @ model.lm_head).log_softmax(-1).detach()
        for t, guess in enumerate(found.depths[depth]):
            assert guess.top[0] == (int(log_p[t].argmax()), pytest.approx(log_p[t].max().exp().item()))
            kl = torch.nn.functional.kl_div(log_p[t], final[t], reduction="sum", log_target=True)
            assert guess.kl == pytest.approx(max(0, kl.item()), abs=1e-12)
            if t < T - 1:
                order = log_p[t].argsort(descending=True).tolist()
                assert guess.rank == order.index(int(idx[0, t + 1])) + 1
        assert found.depths[depth][-1].rank is None
    assert found.mean_kl(3) == 0 < found.mean_kl(0)
    uniform = torch.full((256,), 1 / 256, dtype=torch.float64).log()
    kl = torch.nn.functional.kl_div(uniform.expand(T, -1), final, reduction="batchmean", log_target=True)
    assert found.uniform_kl == pytest.approx(kl.item())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("position", [0, 5, T - 1])
def test_the_parts_sum_to_the_logit_and_to_nothing_less(kind: str, position: int) -> None:
    model, idx = lively(**MODELS[kind]), ids()
    logits = model(idx)[0][0, position]
    for token, against in ((7, 8), (7, None), (None, None)):
        found = attribute_logit(model, idx, position, token, against, top=6)
        expected = logits[found.token] - (logits.mean() if against is None else logits[against])
        parts = [found.embedding, *found.levels, *found.recalled]
        assert error(wide(sum(parts)), expected) <= EXACT
        assert found.logit == pytest.approx(expected.item(), rel=1e-12)
        # without one part of some size it is another number
        assert error(wide(sum(parts) - max(parts, key=abs)), expected) > CONTROL
        # the first token finds an empty memory, so no gate opens; HiPPO has read the token itself
        alone = position == 0 and kind != "advanced"
        assert (error(wide(found.embedding), expected) <= EXACT) == alone
    assert any(found.recalled) == (kind == "advanced")


def test_the_named_neurons_are_the_largest_parts_and_omitting_one_is_seen() -> None:
    model, idx = lively(), ids()
    direction = model.lm_head[:, 7] - model.lm_head[:, 8]
    parts = split_stream(model, idx, direction)
    found = attribute_logit(model, idx, T - 1, 7, 8, top=5)
    best = parts.neurons.abs().flatten().topk(5).indices
    assert [(one.level, one.neuron) for one in found.neurons] == [divmod(int(at), 128) for at in best]
    assert [one.part for one in found.neurons] == pytest.approx(parts.neurons.flatten()[best].tolist())
    assert found.firing == int((parts.neurons != 0).sum())
    assert found.share == pytest.approx((parts.neurons.flatten()[best].abs().sum() / parts.neurons.abs().sum()).item())
    whole = parts.embedding + parts.neurons.sum()
    assert error(whole, wide(found.logit)) <= EXACT
    assert error(whole - parts.neurons.flatten()[best[0]], wide(found.logit)) > CONTROL


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"position": T}, r"position=9: expected 0\.\.8"),
        ({"position": 0, "token": 256}, r"token=256: expected 0\.\.255"),
        ({"position": 0, "against": -1}, r"against=-1"),
        ({"position": 0, "top": 0}, r"top=0"),
    ],
)
def test_what_there_is_not_is_refused(wrong: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        attribute_logit(lively(), ids(), **wrong)
    with pytest.raises(ValueError, match=r"expected one text of shape \(1, T\)"):
        logit_lens(lively(), ids(2, 3))
    with pytest.raises(ValueError, match=r"top=257"):
        logit_lens(lively(), ids(), top=257)
