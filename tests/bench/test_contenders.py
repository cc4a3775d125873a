"""All contenders compute the same model, so that their times can be compared; the peer is as large as it says."""

import sys

import pytest
import torch

from bdh import BDH, BDHConfig, ops, preset
from bdh.bench import CONTENDERS, gpt2
from bdh.bench.contenders import Hatchling, Maker, read_until
from bdh.bench.protocol import Contestant, Declined
from bdh.ops import reference
from tolerances import CONTROL, SAME, error

VARIANTS = ["hatching", "advanced"]
OURS = [name for name in CONTENDERS if name not in ("gpt2", *VARIANTS)]
WINDOWS = torch.arange(2 * 25).view(2, 25).mul(37) % 256
IDX, TARGETS = WINDOWS[:, :-1], WINDOWS[:, 1:]


def make(name: str, model: BDH) -> Contestant:
    if name.startswith("native") and not ops.native.available():
        pytest.skip(ops.native.why_not)
    return CONTENDERS[name].make(Maker(model, most_tokens=24, seed=0))


def loss_and_gradients(contestant: Contestant) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    contestant.module.zero_grad()
    loss = contestant.loss(IDX, TARGETS)
    loss.backward()
    return loss.detach(), {k: p.grad.clone() for k, p in contestant.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", [name for name in OURS if "train" in CONTENDERS[name].cases] + ["native-lean"])
def test_training_passes_agree(name: str, tiny: BDH) -> None:
    expected, gradients = loss_and_gradients(Hatchling(tiny, "composed"))
    loss, found = loss_and_gradients(make(name, tiny))
    assert error(loss, expected) < SAME[torch.float32]
    assert found.keys() == gradients.keys()
    assert max(error(found[key], gradients[key]) for key in gradients) < SAME[torch.float32]
    with torch.no_grad():
        tiny.decoder.copy_(tiny.decoder.flip(0))
    assert error(make(name, tiny).loss(IDX, TARGETS), expected) > CONTROL


@pytest.mark.parametrize("name", [name for name in OURS if "decode" in CONTENDERS[name].cases])
def test_the_next_token_agrees(name: str, tiny: BDH) -> None:
    token = TARGETS[:, -1:]
    expected = tiny(torch.cat([IDX, token], 1))[0][:, -1:]
    contender = make(name, tiny)
    rounded = contender.precision != "float32"
    logits = contender.reader(IDX, None)(token)
    assert error(logits, expected) < SAME[torch.bfloat16 if rounded else torch.float32]
    assert error(make(name, tiny).reader(IDX[:, 1:], None)(token), expected) > CONTROL


@pytest.mark.parametrize("name", ["composed", "native", "recurrent"])
def test_far_along_the_same_tokens_give_the_same_answer(name: str, tiny: BDH) -> None:
    """Rotary positions are relative: what the state holds must stand right before the position."""
    token = TARGETS[:, -1:]
    near = make(name, tiny).reader(IDX, None)(token)
    far = make(name, tiny).reader(IDX, 100_000)(token)
    assert read_until(tiny, IDX, 100_000).position == 100_000
    assert error(far, near) < SAME[torch.float32]
    state = read_until(tiny, IDX, None)
    misplaced = tiny.advance(token, type(state)(state.rho, 100_000))[0]
    assert error(misplaced, near) > CONTROL


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_shape_of_the_model_and_reads_on(name: str, tiny: BDH) -> None:
    contender, token = make(name, tiny), TARGETS[:, -1:]
    model = contender.module
    assert (model.config.variant, model.encoder.shape) == (name, tiny.encoder.shape)
    expected = model.eval()(torch.cat([IDX, token], 1))[0][:, -1:]
    assert error(contender.reader(IDX, None)(token), expected) < 1e-4
    assert contender.reader(IDX, 100_000)(token).isfinite().all()
    spikes = model.get_spikes(torch.randint(0, 256, (4, 100), generator=torch.Generator().manual_seed(7)))
    assert all(0.05 < level.to_dense().mean() < 0.2 for level in spikes)


def test_the_reference_is_the_quadratic_one(tiny: BDH, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    quadratic = reference.quadratic_attention
    monkeypatch.setattr(reference, "quadratic_attention", lambda q, v: (calls.append(q.shape), quadratic(q, v))[1])
    make("composed", tiny).loss(IDX, TARGETS)
    assert calls == []
    make("reference", tiny).loss(IDX, TARGETS)
    assert len(calls) == tiny.config.n_layer
    make("reference", tiny).reader(IDX, None)(TARGETS[:, -1:])
    assert calls[-1][2] == IDX.shape[1] + 1


def test_reading_again_has_no_position(tiny: BDH) -> None:
    with pytest.raises(Declined, match="read the whole text again"):
        make("reference", tiny).reader(IDX, 1000)


def test_kernels_decline_what_they_cannot_do(tiny: BDH, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops.native, "kernels", None)
    monkeypatch.setattr(ops.native, "why_not", "not built")
    with pytest.raises(Declined, match="not here: not built"):
        CONTENDERS["native"].make(Maker(tiny, 24, 0))


@pytest.mark.skipif(not ops.native.available(), reason=ops.native.why_not)
def test_what_the_kernels_do_not_decode_is_not_composed_in_silence() -> None:
    model = BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, sparsity=0.5)).eval()
    with pytest.raises(Declined, match="know no sparsity"):
        make("native", model).reader(IDX, None)
    assert make("composed", model).reader(IDX, None)(TARGETS[:, -1:]).shape == (2, 1, 256)


class TestGPT2:
    @pytest.mark.parametrize("size", ["nano", "25m", "100m"])
    def test_it_is_as_large_as_the_model(self, size: str) -> None:
        config = preset(size)
        layers, width = gpt2.shape_of(config.n_parameters, config.vocab_size)
        found = gpt2.n_parameters(layers, width, config.vocab_size, gpt2.WINDOW)
        assert abs(found / config.n_parameters - 1) <= 0.05
        assert 16 <= width / layers <= 128

    def test_the_count_is_that_of_the_module(self) -> None:
        peer = gpt2.GPT2(preset("nano"), most_tokens=2048, seed=0)
        layers, width = gpt2.shape_of(preset("nano").n_parameters, 256, 2048)
        counted = sum(p.numel() for p in peer.module.parameters())
        assert counted == gpt2.n_parameters(layers, width, 256, 2048)
        assert counted / preset("nano").n_parameters == pytest.approx(1, abs=0.05)
        assert f"{layers} layers x {width} wide" in peer.about

    def test_the_cache_gives_what_reading_again_gives(self) -> None:
        peer = gpt2.GPT2(preset("nano"), 24, seed=0)
        token = TARGETS[:, -1:]
        read_one = peer.reader(IDX, None)
        with torch.no_grad():
            expected = peer.module(torch.cat([IDX, token], 1)).logits[:, -1:]
        for _ in range(2):  # the same context each time: the token before is forgotten
            assert error(read_one(token), expected) < SAME[torch.float32]
        assert error(read_one(token + 1), expected) > CONTROL

    def test_the_loss_is_that_of_its_logits(self) -> None:
        peer = gpt2.GPT2(preset("nano"), 24, seed=0)
        log_p = peer.module(IDX).logits.double().log_softmax(-1)
        expected = -log_p.gather(-1, TARGETS[..., None]).mean()
        assert error(peer.loss(IDX, TARGETS).detach(), expected.detach()) < SAME[torch.float32]

    def test_it_declines_beyond_its_window(self) -> None:
        peer = gpt2.GPT2(preset("nano"), 24, seed=0)
        long = torch.zeros(1, 1025, dtype=torch.long)
        for ask in (lambda: peer.loss(long, long), lambda: peer.read(long), lambda: peer.reader(IDX, 1024)):
            with pytest.raises(Declined, match="its window ends at 1,024 tokens"):
                ask()

    def test_a_model_too_small_for_its_positions_has_no_peer(self) -> None:
        with pytest.raises(Declined, match="no GPT-2 with 100,000 positions"):
            gpt2.GPT2(preset("nano"), most_tokens=100_000, seed=0)

    def test_without_transformers_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(Declined, match=r'pip install "bdh\[bench\]"'):
            gpt2.GPT2(preset("nano"), 24, seed=0)
