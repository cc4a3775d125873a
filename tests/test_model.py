"""The model against numbers made by running the released code."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bdh
from bdh import BDH, BDHConfig, ops
from bdh.data import ByteTokenizer
from bdh.ops import rotary
from tolerances import CONTROL, GOLDEN_ACTIVATION, GOLDEN_GRADIENT, GOLDEN_LOGITS, GOLDEN_LOSS, SAME, error

GOLDEN = Path(__file__).parent / "golden"
CASES = ("bdh_small", "bdh_one_head")


def golden(name: str, dtype: torch.dtype = torch.float64) -> tuple[BDH, dict[str, torch.Tensor]]:
    numbers = load_file(GOLDEN / f"{name}.safetensors")
    config = BDHConfig.from_dict(json.loads((GOLDEN / f"{name}.json").read_text()))
    model = BDH(config).to(dtype)
    weights = {k.removeprefix("weights."): v for k, v in numbers.items() if k.startswith("weights.")}
    del weights["attn.freqs"]
    model.load_state_dict(weights)
    return model, numbers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_released_model(name: str, dtype: torch.dtype) -> None:
    model, numbers = golden(name, dtype)
    seen: dict[str, torch.Tensor] = {}
    logits, loss = model(numbers["idx"], numbers["targets"], tap=lambda n, t: seen.setdefault(n, t))
    assert error(logits, numbers["logits"]) <= GOLDEN_LOGITS
    assert loss is not None
    assert error(loss, numbers["loss"]) <= GOLDEN_LOSS
    recorded = [key for key in numbers if key.startswith("layers.")]
    assert len(recorded) == 5 * model.config.n_layer
    for key in recorded:
        expected = numbers[key]
        ours = seen[key.removesuffix("out") + "v" if key.endswith(".out") else key]
        assert error(ours.reshape(expected.shape), expected) <= GOLDEN_ACTIVATION, key
    loss.backward()
    for key, parameter in model.named_parameters():
        expected = numbers[f"grads.{key}"]
        assert ((parameter.grad - expected).norm() / expected.norm()).item() <= GOLDEN_GRADIENT, key


NATIVE = pytest.mark.skipif(not ops.native.available(), reason=f"native back end {ops.native.why_not}")


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [pytest.param("native", torch.float32, marks=NATIVE), ("tiled", torch.float32), ("tiled", torch.float64)],
)
@pytest.mark.parametrize("name", CASES)
def test_the_fused_training_passes_equal_the_released_model(name: str, backend: str, dtype: torch.dtype) -> None:
    model, numbers = golden(name, dtype)
    with ops.using(backend):
        logits, loss = model.train()(numbers["idx"], numbers["targets"])
    assert error(logits, numbers["logits"]) <= GOLDEN_LOGITS
    assert loss is not None
    assert error(loss, numbers["loss"]) <= GOLDEN_LOSS
    loss.backward()
    for key, parameter in model.named_parameters():
        expected = numbers[f"grads.{key}"]
        assert ((parameter.grad - expected).norm() / expected.norm()).item() <= GOLDEN_GRADIENT, key


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_greedy_tokens_equal_the_released_ones(name: str, dtype: torch.dtype) -> None:
    model, numbers = golden(name, dtype)
    prompt, expected = numbers["idx"][:1], numbers["greedy"]
    got = model.generate(prompt, expected.shape[1] - prompt.shape[1], temperature=0)
    assert torch.equal(got, expected)


def test_greedy_tokens_are_the_argmax_of_the_whole_text() -> None:
    model, numbers = golden("bdh_small")
    tokens = model.generate(numbers["idx"], 12, temperature=0)
    start = numbers["idx"].shape[1]
    assert torch.equal(model(tokens)[0][:, start - 1 : -1].argmax(-1), tokens[:, start:])


class TestControls:
    """Each of these models is wrong in one way, and the comparison must say so."""

    def logits_error(self, model: BDH, numbers: dict[str, torch.Tensor]) -> float:
        with ops.using("composed"):
            return error(model(numbers["idx"])[0], numbers["logits"])

    def test_present_token_included(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, numbers = golden("bdh_small")
        monkeypatch.setattr(ops, "attention_read", lambda q, v: (q @ q.mT).tril(0) @ v[:, None])
        assert self.logits_error(model, numbers) > CONTROL

    @pytest.mark.parametrize("theta", [10_000.0, 2.0**15])
    def test_wrong_frequencies(self, theta: float, monkeypatch: pytest.MonkeyPatch) -> None:
        model, numbers = golden("bdh_small")
        monkeypatch.setattr(rotary, "THETA", theta)
        rotary._rotation.cache_clear()
        try:
            assert self.logits_error(model, numbers) > CONTROL
        finally:
            rotary._rotation.cache_clear()

    def test_heads_swapped(self) -> None:
        model, numbers = golden("bdh_small")
        with torch.no_grad():
            model.encoder.copy_(model.encoder[[1, 0, 2, 3]])
        assert self.logits_error(model, numbers) > CONTROL

    def test_nothing_wrong(self) -> None:
        assert self.logits_error(*golden("bdh_small")) <= GOLDEN_LOGITS


class TestHalfPrecision:
    """Over a long text: half precision rounds activations, never the frequencies, whose error grows with distance."""

    idx = torch.randint(0, 256, (1, 1024), generator=torch.Generator().manual_seed(0))

    @pytest.fixture
    def model(self, tiny: BDH) -> BDH:
        model = BDH(replace(tiny.config, n_layer=2)).eval()
        model.load_state_dict(tiny.state_dict())
        return model

    @pytest.fixture
    def round_frequencies(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[torch.dtype], None]]:
        exact = rotary.frequencies

        def switch(dtype: torch.dtype) -> None:
            rotary._rotation.cache_clear()
            monkeypatch.setattr(rotary, "frequencies", lambda K: exact(K).to(dtype).double())

        yield switch
        rotary._rotation.cache_clear()

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_casting_the_model_keeps_the_phases(self, model: BDH, dtype: torch.dtype, round_frequencies) -> None:
        """Weights rounded to half precision, but computed with exactly, bound what half precision may do."""
        model = model.to(dtype)
        exact = BDH(model.config).double().eval()
        exact.load_state_dict(model.state_dict())
        expected = exact(self.idx)[0]
        c = model.config
        empty = (torch.zeros(1, c.n_head, c.neurons_per_head, c.n_embd),) * c.n_layer
        assert model(self.idx)[0].dtype == dtype
        assert error(model(self.idx)[0], expected) <= SAME[dtype]
        assert error(model.advance(self.idx, bdh.State(empty, 10**6))[0], expected) <= SAME[dtype]
        round_frequencies(dtype)
        assert error(model(self.idx)[0], expected) > SAME[dtype]

    @torch.no_grad()
    def test_autocast_keeps_the_phases(self, model: BDH, round_frequencies) -> None:
        expected = BDH(model.config).double().eval()
        expected.load_state_dict(model.state_dict())
        logits = expected(self.idx)[0]

        def autocast_error() -> float:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return error(model(self.idx)[0], logits)

        assert autocast_error() <= SAME[torch.bfloat16]
        round_frequencies(torch.bfloat16)
        assert autocast_error() > SAME[torch.bfloat16]


@pytest.mark.parametrize("position", [1, 4096, 10**6 + 1, 10**8])
def test_position_does_not_cost_precision(position: int) -> None:
    """Positions are relative, so the same text read anywhere gives the same logits."""
    model, numbers = golden("bdh_small", torch.float32)
    expected = golden("bdh_small")[0](numbers["idx"])[0]
    c = model.config
    empty = torch.zeros(2, c.n_head, c.neurons_per_head, c.n_embd)
    logits, state = model.advance(numbers["idx"], bdh.State((empty,) * c.n_layer, position))
    assert error(logits, expected) <= GOLDEN_LOGITS
    assert state.position == position + numbers["idx"].shape[1]


def test_dropout_is_off_in_eval_and_on_in_training() -> None:
    model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.5), 0)
    idx = torch.arange(20)[None]
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


def test_ignored_targets_do_not_count(tiny: BDH) -> None:
    idx = torch.arange(8)[None]
    targets = torch.tensor([[1, -100, 3, -100, -100, 6, 7, 8]])
    logits, loss = tiny(idx, targets)
    kept = targets[0] != -100
    assert torch.allclose(loss, torch.nn.functional.cross_entropy(logits[0, kept], targets[0, kept]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_a_half_model_is_taken_in_float32(tiny: BDH, dtype: torch.dtype) -> None:
    idx = torch.arange(200)[None]
    logits, loss = tiny.to(dtype)(idx, idx.flip(1))
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    wide = torch.nn.functional.cross_entropy(logits[0].float(), idx[0].flip(0))
    half = torch.nn.functional.cross_entropy(logits[0], idx[0].flip(0))
    assert error(loss, wide) <= 1e-6
    assert error(half, wide) > 1e-5


def test_same_seed_same_weights() -> None:
    config = BDHConfig(n_layer=1, n_embd=8, n_head=1, mlp_internal_dim_multiplier=4)
    before = torch.random.get_rng_state()
    one, two, other = (BDH.from_seed(config, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.encoder, two.encoder)
    assert not torch.equal(one.encoder, other.encoder)
    assert abs(BDH.from_seed(bdh.preset("nano"), 0).encoder.std().item() - 0.02) < 2e-4


class TestResizeVocab:
    def test_growing_keeps_what_was_known(self, tiny: BDH) -> None:
        idx = torch.arange(30)[None]
        before = tiny(idx)[0]
        tiny.resize_vocab(300)
        after = tiny(torch.cat([idx, torch.tensor([[299]])], 1))[0]
        assert torch.equal(after[:, :30, :256], before)
        assert tiny.config.vocab_size == 300
        assert 0 < tiny.embed.weight[256:].std().item() < 0.03

    def test_shrinking_drops_the_rest(self, tiny: BDH) -> None:
        idx = torch.arange(30)[None]
        before = tiny(idx)[0]
        tiny.resize_vocab(40)
        assert torch.equal(tiny(idx)[0], before[..., :40])
        with pytest.raises(ValueError, match=r"expected 0\.\.39, got 40\.\.40"):
            tiny(torch.tensor([[40]]))

    @pytest.mark.parametrize("frozen", ["embed", "lm_head", "both", "none"])
    def test_what_was_frozen_stays_frozen(self, tiny: BDH, frozen: str) -> None:
        tiny.embed.weight.requires_grad_(frozen not in ("embed", "both"))
        tiny.lm_head.requires_grad_(frozen not in ("lm_head", "both"))
        tiny.resize_vocab(300)
        assert tiny.embed.weight.requires_grad == (frozen not in ("embed", "both"))
        assert tiny.lm_head.requires_grad == (frozen not in ("lm_head", "both"))

    def test_nonsense_is_refused_and_changes_nothing(self, tiny: BDH) -> None:
        with pytest.raises(ValueError, match="vocab_size=0"):
            tiny.resize_vocab(0)
        assert tiny.embed.weight.shape == (256, 16)


@pytest.mark.parametrize(
    ("idx", "says"),
    [
        (torch.tensor([1, 2]), r"expected a non-empty integer tensor \(B, T\)"),
        (torch.zeros(1, 0, dtype=torch.int64), "non-empty"),
        (torch.zeros(1, 3), "float32"),
        (torch.tensor([[-1]]), r"expected 0\.\.255, got -1\.\.-1"),
        (torch.tensor([[256]]), r"got 256\.\.256"),
    ],
)
def test_bad_token_ids_are_refused(tiny: BDH, idx: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny(idx)


def test_sparse_activations_are_the_recorded_ones(tiny: BDH) -> None:
    levels = tiny.get_sparse_activations("The dragon")
    seen: dict[str, torch.Tensor] = {}
    tiny(torch.tensor([list(b"The dragon")]), tap=lambda n, t: seen.setdefault(n, t))
    assert len(levels) == tiny.config.n_layer
    for level, sparse in enumerate(levels):
        dense = seen[f"layers.{level}.x_sparse"]
        assert sparse.is_sparse
        assert torch.equal(sparse.to_dense()[0, 3, 64 + 5], dense[0, 1, 3, 5])  # global id = head * K + k
        assert sparse.values().numel() == (dense > 0).sum()


def test_sparse_activations_are_without_dropout() -> None:
    model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.5), 0)
    one = model.train().get_sparse_activations("The dragon")[1].to_dense()
    assert model.training
    assert torch.equal(one, model.eval().get_sparse_activations("The dragon")[1].to_dense())
    assert not model.training


def test_stray_bytes_of_a_command_line_are_read_and_other_surrogates_refused(tiny: BDH) -> None:
    stray = b"a\xff\xc3\xa9".decode("utf-8", errors="surrogateescape")
    assert tiny.as_ids(stray).tolist() == [[97, 255, 195, 169]]
    assert torch.equal(tiny.as_ids(stray)[0], torch.tensor(ByteTokenizer().encode(stray), dtype=torch.int64))
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at character 1; remove it"):
        tiny.as_ids("a\ud800")


def test_text_needs_a_byte_vocabulary() -> None:
    model = BDH(BDHConfig(n_layer=1, n_embd=8, n_head=1, mlp_internal_dim_multiplier=4, vocab_size=64))
    with pytest.raises(ValueError, match="byte vocabulary"):
        model.get_sparse_activations("love")
