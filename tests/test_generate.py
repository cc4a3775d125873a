"""Generation: the same tokens as re-reading everything, at a cost that does not grow."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh import BDH, BDHConfig, generate
from bdh.data import TextDecoder
from bdh.generate import Sampling, stream_text
from bdh.model import evaluating

PROMPT = torch.tensor([list(b"To be or not")])


def test_greedy_is_the_argmax_of_the_full_forward(tiny: BDH) -> None:
    prompts = torch.cat([PROMPT, PROMPT.flip(1)])
    tokens = tiny.generate(prompts, 40, temperature=0)
    idx = prompts
    for _ in range(40):
        idx = torch.cat([idx, tiny(idx)[0][:, -1:].argmax(-1)], 1)
    assert torch.equal(tokens, idx)


def test_long_prompts_are_read_in_blocks(tiny: BDH, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tiny.generate(PROMPT, 8, temperature=0)
    monkeypatch.setattr(generate, "PREFILL_BLOCK", 5)
    assert torch.equal(tiny.generate(PROMPT, 8, temperature=0), expected)


def test_stream_and_generate_agree(tiny: BDH) -> None:
    streamed = torch.stack(list(tiny.stream(PROMPT, 10, seed=3)), 1)
    assert torch.equal(tiny.generate(PROMPT, 10, seed=3), torch.cat([PROMPT, streamed], 1))


def test_the_seed_decides(tiny: BDH) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (tiny.generate(PROMPT, 30, seed=seed, temperature=2.0) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(tiny.generate(PROMPT, 30, temperature=2.0), tiny.generate(PROMPT, 30, temperature=2.0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_state_stands_for_what_was_read(tiny: BDH) -> None:
    _, state = tiny.advance(PROMPT[:, :7])
    rest = torch.cat(list(tiny.stream(PROMPT[:, 7:], 10, temperature=0, state=state)))
    assert torch.equal(rest, tiny.generate(PROMPT, 10, temperature=0)[0, PROMPT.shape[1] :])


class TestTrainingMode:
    """Tokens are made without dropout; between them the model is in the caller's mode."""

    def dropping(self) -> BDH:
        config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.5)
        return BDH.from_seed(config, 0).train()

    def test_it_is_kept_between_tokens(self) -> None:
        model = self.dropping()
        expected = BDH.generate(model.eval(), PROMPT, 6, temperature=0)[0, -6:].tolist()
        said = []
        for token in model.train().stream(PROMPT, 6, temperature=0):
            said += token.tolist()
            assert model.training
            assert model.drop.training
        assert said == expected

    @pytest.mark.parametrize("training", [True, False])
    def test_streams_may_take_turns(self, training: bool) -> None:
        model = self.dropping()
        model.eval()
        alone = [model.generate(PROMPT, n, temperature=0)[0, PROMPT.shape[1] :].tolist() for n in (3, 8)]
        model.train(training)
        streams = [model.stream(PROMPT, n, temperature=0) for n in (3, 8)]
        together: list[list[int]] = [[], []]
        for _ in range(9):
            for said, tokens in zip(together, streams, strict=True):
                said += [token.item() for token in [next(tokens, None)] if token is not None]
        assert together == alone
        assert model.training == training

    def test_a_mixed_mode_comes_back_as_it_was(self) -> None:
        model = self.dropping()
        model.drop.eval()
        with evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
        assert (model.training, model.drop.training, torch.is_grad_enabled()) == (True, False, True)
        with pytest.raises(ValueError, match="token ids"), evaluating(model):
            model(torch.tensor([[999]]))
        assert (model.training, model.drop.training, torch.is_grad_enabled()) == (True, False, True)

    def test_remembering_is_without_dropout(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(generate, "PREFILL_BLOCK", 5)
        model = self.dropping()
        rho = generate.remember(model, "To be or not").rho[1]
        assert torch.equal(rho, generate.remember(model.eval(), "To be or not").rho[1])
        assert not rho.requires_grad


def test_no_new_tokens_is_fine(tiny: BDH) -> None:
    assert torch.equal(tiny.generate(PROMPT, 0), PROMPT)


class TestChoice:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]])

    def frequencies(self, **options) -> torch.Tensor:
        sampling = Sampling(seed=0, **options)
        drawn = sampling.choose(self.logits.expand(20_000, 4), sampling.generator(torch.device("cpu")))
        return drawn.bincount(minlength=4) / 20_000

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_temperature_scales_the_logits(self, temperature: float) -> None:
        expected = (self.logits[0] / temperature).softmax(0)
        assert torch.allclose(self.frequencies(temperature=temperature), expected, atol=0.015)

    def test_top_k_keeps_the_k_best(self) -> None:
        expected = torch.tensor([0.0, 3.0, 2.0, 0.0]).masked_fill(torch.tensor([1, 0, 0, 1]).bool(), -1e9).softmax(0)
        assert torch.allclose(self.frequencies(top_k=2), expected, atol=0.015)

    def test_top_p_keeps_the_fewest_that_reach_p(self) -> None:
        # probabilities 0.087 0.644 0.237 0.032: 0.644 alone is short of 0.7, with 0.237 it is reached
        seen = self.frequencies(top_p=0.7)
        assert seen[[0, 3]].sum() == 0
        assert abs(seen[1].item() - 0.644 / 0.881) < 0.015
        assert self.frequencies(top_p=1e-9)[1] == 1

    @pytest.mark.parametrize(
        ("vocabulary", "options"),
        [
            (4, {"top_k": 3}),
            (4, {"top_p": 0.7}),
            (1000, {"top_k": 3}),
            (1000, {"top_p": 2.5 / 999}),
            (1000, {"top_k": 3, "top_p": 0.99}),
        ],
    )
    def test_of_equal_tokens_the_lower_ids_stay(self, vocabulary: int, options: dict) -> None:
        logits = torch.zeros(2000, vocabulary)
        logits[:, 1] = -50.0
        sampling = Sampling(seed=0, **options)
        drawn = sampling.choose(logits, sampling.generator(torch.device("cpu")))
        assert drawn.unique().tolist() == [0, 2, 3]

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_broken_logits_are_named(self, tiny: BDH, temperature: float, bad: float) -> None:
        sampling = Sampling(seed=0, temperature=temperature)
        with pytest.raises(ValueError, match="logits are not finite: the model's weights or input are broken"):
            sampling.choose(torch.tensor([[0.0, 1.0], [bad, 0.0]]), sampling.generator(torch.device("cpu")))
        with torch.no_grad():
            tiny.lm_head[0, 0] = bad
        with pytest.raises(ValueError, match="logits are not finite"):
            tiny.generate(PROMPT, 3, temperature=temperature)

    @pytest.mark.parametrize("temperature", [0.0, 1e-30])
    def test_cold_is_greedy(self, temperature: float) -> None:
        assert self.frequencies(temperature=temperature)[1] == 1

    @pytest.mark.parametrize(
        "bad",
        [
            {"temperature": -1},
            {"temperature": float("nan")},
            {"temperature": float("inf")},
            {"top_k": 0},
            {"top_k": 1.5},
            {"top_p": 0},
            {"top_p": 1.1},
            {"top_p": float("nan")},
            {"max_new_tokens": -1},
        ],
    )
    def test_nonsense_is_refused_at_the_call(self, tiny: BDH, bad: dict) -> None:
        with pytest.raises(ValueError, match=next(iter(bad))):
            tiny.stream(PROMPT, **({"max_new_tokens": 3} | bad))


class Scripted:
    """Stands for a model that says given bytes, whatever it reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: bytes | list[int]) -> None:
        monkeypatch.setattr(
            generate, "stream", lambda *_args, **_options: iter([torch.tensor([byte]) for byte in script])
        )

    def as_ids(self, text):
        return text


@pytest.mark.parametrize(
    ("script", "pieces"),
    [
        ("café".encode(), ["c", "a", "f", "é"]),
        ("🐉!".encode(), ["🐉", "!"]),
        (b"a\xffb", ["a", "\\xff", "b"]),
        (b"a\xe2\x82", ["a", "\\xe2\\x82"]),
        ([97, 0xE2, 0x82, 300, 98], ["a", "\\xe2\\x82<300>", "b"]),  # no byte: shown by its number
    ],
)
def test_characters_come_whole(monkeypatch: pytest.MonkeyPatch, script: bytes, pieces: list[str]) -> None:
    assert list(stream_text(Scripted(monkeypatch, script), "x", 9)) == pieces


@given(st.text(alphabet="ab\n", max_size=12), st.lists(st.text(alphabet="ab\n", min_size=1, max_size=3), max_size=3))
def test_text_ends_before_the_first_stop_string(said: str, stop: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        got = "".join(stream_text(Scripted(patch, said.encode()), "x", 99, stop=stop))
    # the earliest completed stop string ends the text
    ends = [(said.find(s) + len(s), said.find(s)) for s in stop if s in said]
    if not ends:
        assert got == said
    else:
        completed = min(end for end, _ in ends)
        assert got == said[: min(start for end, start in ends if end == completed)]


def test_empty_prompts_and_stops_are_refused(tiny: BDH) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        list(stream_text(tiny, "", 3))
    for stop in ([""], "end"):
        with pytest.raises(ValueError, match="non-empty strings"):
            list(stream_text(tiny, "x", 3, stop=stop))


def test_tokens_beyond_the_bytes_do_not_stop_the_text() -> None:
    config = BDHConfig(n_layer=1, n_embd=8, n_head=1, mlp_internal_dim_multiplier=4, vocab_size=512)
    text = "".join(stream_text(BDH.from_seed(config, 0), "x", 60, seed=0))
    numbers = [int(number) for number in re.findall(r"<(\d{3})>", text)]
    assert numbers
    assert all(256 <= number < 512 for number in numbers)


def test_a_decoder_shows_what_is_no_byte_by_its_number() -> None:
    decoder = TextDecoder()
    assert decoder.push(torch.tensor([0xC3, 511, 0xC3])) == "\\xc3<511>"
    assert decoder.push(0xA9) == "é"
    with pytest.raises(ValueError, match=r"got -1\.\.-1"):
        decoder.push([300, -1])


def test_remembering_a_text_is_reading_it(tiny: BDH) -> None:
    state = generate.remember(tiny, "To be or not")
    assert state.position == 12
    assert torch.equal(state.rho[1], tiny.advance(PROMPT)[1].rho[1])
