"""One token through all levels by the native kernels, at every precision, against the composed step."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch

from bdh import BDH, BDHConfig, State, generate, ops
from bdh.ops import native
from bdh.sections import LIF, STDP
from tolerances import CONTROL, SAME, error

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native back end {native.why_not}")

FORWARD = SAME[torch.float32]
PRECISIONS = ("float32", "bfloat16", "int8")
STORED = (torch.float32, torch.bfloat16)
INSTRUCTION_SETS = ("avx512", "avx2", "portable")


def leaning(D: int = 32, H: int = 2, multiplier: int = 8, L: int = 2) -> BDH:
    """A model whose activations are far from zero."""
    config = BDHConfig(n_layer=L, n_embd=D, n_head=H, mlp_internal_dim_multiplier=multiplier, dropout=0.0)
    model = BDH.from_seed(config, 0).eval()
    with torch.no_grad():
        for parameter in (model.encoder, model.encoder_v, model.decoder):
            parameter.mul_(5)
    return model


def stored_values(weights: ops.StepWeights) -> list[torch.Tensor]:
    """What the rows stand for, (H, K, D) float32."""
    maps = [rows.float() for rows in (weights.encoder, weights.encoder_v, weights.decoder)]
    if weights.encoder.dtype != torch.int8:
        return maps
    return [rows * scale[..., None] for rows, scale in zip(maps, weights.scales, strict=True)]


def with_values(model: BDH, weights: ops.StepWeights) -> BDH:
    """The model with the weights that the copies stand for."""
    rounded = deepcopy(model)
    encoder, encoder_v, decoder = stored_values(weights)
    with torch.no_grad():
        rounded.encoder.copy_(encoder.mT)
        rounded.encoder_v.copy_(encoder_v.mT)
        rounded.decoder.copy_(decoder.flatten(0, 1))
    return rounded


def copied(state: State) -> State:
    levels = [{name: part.clone() for name, part in state.level(n).items()} for n in range(len(state.rho))]
    return State.of_levels(levels, state.position)


def levels(rho: tuple[torch.Tensor, ...]) -> list[dict[str, torch.Tensor]]:
    return [{"rho": level} for level in rho]


def read(model: BDH, B: int, stored: torch.dtype, T: int = 9) -> State:
    idx = torch.randint(0, 256, (B, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.advance(idx)[1].to(dtype=stored)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def instructions(name: str) -> Iterator[None]:
    before = native.instruction_set()
    if not native.kernels.choose(name):
        pytest.skip(f"this processor has no {name}")
    try:
        yield
    finally:
        native.kernels.choose(before)


def check(model: BDH, B: int, precision: str, stored: torch.dtype) -> None:
    """Native steps equal composed ones of a model with the same rounded weights and a state stored alike."""
    weights = ops.step_weights(model.encoder, model.encoder_v, model.decoder, precision)
    reference, state = with_values(model, weights), read(model, B, stored)
    for token in (3, 4, 5):
        now, own = torch.full((B, 1), token), copied(state)
        with torch.no_grad():
            expected, after = reference.advance(now, state)
        got, own = generate.step(model, now, own, weights)
        assert error(got, expected) <= FORWARD
        assert own.position == after.position
        for mine, theirs in zip(own.rho, after.rho, strict=True):
            assert mine.dtype == theirs.dtype == stored
            if stored == torch.float32:
                assert error(mine, theirs) <= FORWARD
            else:
                # sums that differ by a float32 rounding may lie on two sides of a tie: one step of bfloat16 apart
                size = theirs.float().abs()
                apart = (mine.float() - theirs.float()).abs()
                assert (apart <= size * 2**-7 + size.max() * FORWARD).all()
                assert (apart > 0).float().mean() < 0.01
        state = after


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("D", [6, 16, 30, 64, 86, 256])
@pytest.mark.parametrize("B", [1, 3])
def test_equals_the_composed_step(D: int, B: int, precision: str, stored: torch.dtype) -> None:
    check(leaning(D, multiplier=4), B, precision, stored)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("H", "multiplier"), [(1, 1), (3, 3), (2, 70)])
def test_any_number_of_neurons(H: int, multiplier: int, precision: str) -> None:
    check(leaning(6, H, multiplier), 2, precision, torch.bfloat16)  # 6, 6 and 210 per head


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("D", [64, 86])
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_every_instruction_set(name: str, D: int, precision: str) -> None:
    with instructions(name):
        check(leaning(D), 2, precision, torch.bfloat16)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [1, 3, 5])
def test_threads_and_runs_agree(count: int, precision: str) -> None:
    model = leaning()
    weights, state = (
        ops.step_weights(model.encoder, model.encoder_v, model.decoder, precision),
        read(model, 3, STORED[1]),
    )
    with threads(count):
        check(model, 3, precision, torch.bfloat16)
        (one, after), (again, after_again) = (
            generate.step(model, torch.tensor([[7], [8], [9]]), copied(state), weights) for _ in range(2)
        )
    assert torch.equal(one, again)
    assert all(torch.equal(a, b) for a, b in zip(after.rho, after_again.rho, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_is_its_sequences_to_the_bit(count: int, precision: str) -> None:
    model = leaning(40, 3, 3)
    weights, state = (
        ops.step_weights(model.encoder, model.encoder_v, model.decoder, precision),
        read(model, 3, STORED[1]),
    )
    turn = ops.rotation(model.config.neurons_per_head, 9, 1, like=model.encoder)
    v = torch.randn(3, 1, 40, generator=torch.Generator().manual_seed(3))
    with threads(count):
        together = copied(state)
        out = ops.step_levels(v, weights, levels(together.rho), turn)
        for b in range(3):
            alone = copied(state.rows([b]))
            assert torch.equal(ops.step_levels(v[b : b + 1], weights, levels(alone.rho), turn)[0], out[b])
            assert all(torch.equal(a[0], t[b]) for a, t in zip(alone.rho, together.rho, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spoiled", ["encoder", "encoder_v", "decoder"])
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_not_a_number_is_passed_on(name: str, spoiled: str, precision: str) -> None:
    model = leaning()
    with torch.no_grad():
        model.get_parameter(spoiled)[..., 3] = float("nan")  # neuron 3 of each head, or entry 3 of each row
        if spoiled != "decoder":
            model.get_parameter(spoiled)[..., 3:20, :] = float("nan")
    state = read(leaning(), 1, torch.bfloat16)
    with instructions(name):
        logits, _ = generate.step(model, torch.tensor([[7]]), state, generate.step_weights(model, state, precision))
    assert logits.isnan().any()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, -1])
def test_a_state_keeps_what_is_not_a_number(bits: int) -> None:
    """Rounding adds to the bits, and NaN with all of them set must not become zero."""
    model = leaning(86)
    state = read(model, 1, torch.bfloat16)
    weights = ops.step_weights(model.encoder, model.encoder_v, model.decoder, "float32")
    v = torch.randn(1, 1, 86, generator=torch.Generator().manual_seed(3))
    v.view(torch.int32)[0, 0, 5] = bits
    ops.step_levels(v, weights, levels(state.rho), ops.rotation(model.config.neurons_per_head, 9, 1, like=v))
    assert state.rho[0].isnan().all()  # every drive is NaN


class TestRounding:
    """What is stored is the nearest, of two the even one."""

    @pytest.mark.parametrize("name", INSTRUCTION_SETS)
    def test_of_the_state(self, name: str) -> None:
        """One neuron fires with v_0, at position 0: rho becomes rho + v_0 v. All sums are exact in float32."""
        D = 86
        generator = torch.Generator().manual_seed(0)
        v = torch.randint(-(2**9), 2**9, (1, 1, D), generator=generator) / 2**6
        v[..., 0] = 1.5
        before = (torch.randint(-(2**7), 2**7, (D,), generator=generator) / 2**5).bfloat16()
        v[..., 1], before[1] = 3e38, 3e38  # beyond the largest number
        v[..., 2], before[2] = 0.5, 191.5 - 0.75  # bfloat16 of 191.5 is halfway between 191 and 192
        rho = torch.zeros(1, 1, 2, D, dtype=torch.bfloat16)
        rho[0, 0, 0] = before
        encoder = torch.zeros(1, D, 2)
        encoder[0, 0, 0] = 1.0
        weights = ops.step_weights(encoder, encoder, torch.zeros(2, D), "float32")
        with instructions(name):
            ops.step_levels(v, weights, levels((rho,)), ops.rotation(2, 0, 1, like=v))
        exact = before.double() + 1.5 * v[0, 0].double()
        assert torch.equal(exact.float().double()[2:], exact[2:])
        assert torch.equal(rho[0, 0, 0], exact.bfloat16())
        halfway = exact.float().view(torch.int32) & 0xFFFF == 0x8000
        assert halfway.sum() > 5
        assert rho[0, 0, 0, 1].isinf()
        assert not rho[0, 0, 1].any()

    def test_of_bfloat16_weights(self) -> None:
        model = leaning()
        weights = ops.step_weights(model.encoder, model.encoder_v, model.decoder, "bfloat16")
        assert torch.equal(weights.encoder, model.encoder.mT.bfloat16())
        assert torch.equal(weights.encoder_v, model.encoder_v.mT.bfloat16())
        assert torch.equal(weights.decoder.flatten(0, 1), model.decoder.bfloat16())

    def test_of_int8_weights(self) -> None:
        """Each row uses the whole range, and no entry is off by more than half a step."""
        model = leaning()
        weights = ops.step_weights(model.encoder, model.encoder_v, model.decoder, "int8")
        exact = model.encoder.mT, model.encoder_v.mT, model.decoder.view_as(weights.decoder)
        for rows, scale, values, true in zip(
            (weights.encoder, weights.encoder_v, weights.decoder),
            weights.scales,
            stored_values(weights),
            exact,
            strict=True,
        ):
            assert (rows.int().abs().amax(-1) == 127).all()
            assert ((values - true).abs() <= scale[..., None] * 0.5001).all()
            assert (values - true).abs().max() > 0

    def test_of_rows_without_a_scale(self) -> None:
        """Zeros, the smallest numbers, and what is not finite."""
        rows = torch.tensor([[0.0, 0.0], [1e-45, -1e-45], [2e-43, -1e-43], [float("inf"), 1.0], [float("nan"), 1.0]])
        encoder = torch.zeros(1, 2, 6)
        encoder[0, :, :5] = rows.T
        weights = ops.step_weights(encoder, encoder, torch.zeros(6, 2), "int8")
        values = stored_values(weights)[0][0]
        assert not values[0].any()
        assert (values[1:3].abs() < 1e-42).all()
        assert (values[2, 0] > 0) & (values[2, 1] < 0)
        assert values[3:5].isnan().any(-1).all() or values[3:5].logical_not().any()


def test_precisions_differ() -> None:
    """The control of this file: what rounding changes is far beyond the tolerance of its comparisons."""
    model = leaning(16, multiplier=4, L=4)
    state, token = read(model, 1, torch.float32, T=100), torch.tensor([[7]])
    exact, coarse, rough = (
        generate.step(model, token, copied(state), generate.step_weights(model, state, precision))[0]
        for precision in PRECISIONS
    )
    half = copied(state).to(dtype=torch.bfloat16)
    rounded, _ = generate.step(model, token, half, generate.step_weights(model, half))
    for other in (coarse, rough, rounded):
        assert error(other, exact) > CONTROL


class TestGeneration:
    prompt = torch.tensor([list(b"To be")])

    @pytest.mark.parametrize("name", INSTRUCTION_SETS)
    def test_every_instruction_set_says_the_same(self, name: str) -> None:
        model = leaning(40)
        with ops.using("composed"):
            expected = model.generate(self.prompt, 30, temperature=0)
        with instructions(name):
            assert torch.equal(model.generate(self.prompt, 30, temperature=0), expected)

    @pytest.mark.parametrize(
        ("precision", "weights", "stored"),
        [
            ("float32", torch.float32, torch.float32),
            ("bfloat16", torch.bfloat16, torch.bfloat16),
            ("int8", torch.int8, torch.bfloat16),
        ],
    )
    def test_it_takes_the_step(
        self, precision: str, weights: torch.dtype, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []
        step = ops.step_levels

        def spy(v: torch.Tensor, w: ops.StepWeights, levels: list, *rest: object) -> torch.Tensor:
            calls.append((w.encoder.dtype, w.decoder.dtype, levels[0]["rho"].dtype))
            return step(v, w, levels, *rest)

        monkeypatch.setattr(ops, "step_levels", spy)
        model = leaning()
        model.generate(self.prompt, 6, precision=precision)
        assert calls == [(weights, weights, stored)] * 5  # the first token comes from the prompt
        model.double().generate(self.prompt, 6)
        assert len(calls) == 5

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_it_says_what_steps_say(self, precision: str) -> None:
        model = leaning()
        logits, state = generate.prefill(model, self.prompt)
        state = state if precision == "float32" else state.to(dtype=torch.bfloat16)
        weights, said = generate.step_weights(model, state, precision), []
        for _ in range(12):
            said.append(logits.argmax(-1))
            logits, state = generate.step(model, said[-1][:, None], state, weights)
            logits = logits[:, -1]
        tokens = list(model.stream(self.prompt, 12, temperature=0, precision=precision))
        assert torch.equal(torch.stack(tokens), torch.stack(said))

    def test_changed_weights_are_used_by_the_next_generation(self) -> None:
        model = leaning()
        model.generate(self.prompt, 6, temperature=0)
        model.encoder.data.neg_()
        with ops.using("composed"):
            expected = model.generate(self.prompt, 6, temperature=0)
        assert torch.equal(model.generate(self.prompt, 6, temperature=0), expected)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_a_given_state_is_not_changed(self, precision: str) -> None:
        model = leaning()
        for stored in STORED:
            state = read(model, 1, stored)
            before = copied(state)
            model.generate(self.prompt, 6, state=state, precision=precision)
            assert all(torch.equal(a, b) for a, b in zip(state.rho, before.rho, strict=True))


class TestRefusals:
    def test_an_unknown_precision(self) -> None:
        with pytest.raises(ValueError, match=r"precision='int4': expected one of float32, bfloat16, int8"):
            leaning().stream(torch.tensor([[1]]), 3, precision="int4")

    def test_no_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(native, "kernels", None)
        monkeypatch.setattr(native, "why_not", "not built (test)")
        model = leaning()
        with pytest.raises(ValueError, match=r"'int8' needs the native kernels: not built \(test\)"):
            model.stream(torch.tensor([[1]]), 3, precision="int8")
        assert model.generate(torch.tensor([[1]]), 3, precision="float32").shape == (1, 4)

    def test_another_type_or_sparsity(self) -> None:
        with pytest.raises(ValueError, match="'bfloat16' needs the native kernels: the kernels take float32"):
            leaning().double().stream(torch.tensor([[1]]), 3, precision="bfloat16")
        config = BDHConfig(n_layer=1, n_embd=16, n_head=1, mlp_internal_dim_multiplier=4, sparsity=0.5)
        with pytest.raises(
            ValueError, match="'int8' needs the native kernels: in decoding the kernels know no sparsity"
        ):
            BDH(config).stream(torch.tensor([[1]]), 3, precision="int8")
        with ops.using("composed"), pytest.raises(ValueError, match="backend 'composed' is in use"):
            leaning().stream(torch.tensor([[1]]), 3, precision="int8")

    def test_shapes_and_types_that_do_not_fit(self) -> None:
        model = leaning()
        weights, state = (
            ops.step_weights(model.encoder, model.encoder_v, model.decoder, "int8"),
            read(model, 1, STORED[1]),
        )
        turn, v = ops.rotation(model.config.neurons_per_head, 9, 1, like=model.encoder), torch.zeros(1, 1, 32)
        for change in (
            {"scales": weights.scales[:, :, :-1].contiguous()},
            {"decoder": weights.decoder[:, :-1].contiguous()},
            {"decoder": weights.decoder.float()},
            {"encoder": weights.encoder.short()},
        ):
            with pytest.raises(ValueError, match="expected"):
                ops.step_levels(v, ops.StepWeights(**(vars(weights) | change)), levels(state.rho), turn)
        for rho in (
            tuple(r.half() for r in state.rho),
            (state.rho[0], state.rho[1].float()),
            tuple(r.expand(2, -1, -1, -1).contiguous() for r in state.rho),
        ):
            with pytest.raises(ValueError, match="expected"):
                ops.step_levels(v, weights, levels(rho), turn)


HATCHING = {
    "lif": {"lif": LIF(tau=10.0)},
    "hard": {"lif": LIF(tau=3.0, rate=0.2, reset="hard", refractory=2)},
    "no reset, binary": {"lif": LIF(tau=3.0, reset="none", output="binary")},
    "stdp": {"stdp": STDP(form="kernel")},
    "fast stdp": {"stdp": STDP(form="kernel", tau=0.3, strength=-2.0)},
    "hatching": {"variant": "hatching"},
}


class TestMechanisms:
    """Spiking neurons and the fading memory, which is brought up to date where neurons fire."""

    def make(self, name: str, D: int = 32) -> tuple[BDH, torch.Tensor]:
        shape = {"n_layer": 2, "n_embd": D, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.0}
        model = BDH.from_seed(BDHConfig(**(shape | HATCHING[name])), 0).eval()
        idx = torch.randint(0, 256, (3, 70), generator=torch.Generator().manual_seed(1))
        # on other tokens: the threshold lies between two charges that it was set from, where rounding decides
        model.calibrate(torch.randint(0, 256, (3, 70), generator=torch.Generator().manual_seed(2)))
        return model, idx

    def settled(self, model: BDH, state: State) -> State:
        """The same state with every row of the fading memory up to date."""
        found = []
        for level in map(state.level, range(len(state.rho))):
            if "fading" in level:
                late = state.position - level["fading_at"]
                now = {"fading": model.parts.stdp.faded(level["fading"], late), "fading_at": level["fading_at"] + late}
                level |= now
            found.append(level)
        return State.of_levels(found, state.position)

    @torch.no_grad()
    def both(self, name: str, count: int = 1, D: int = 32) -> Iterator[tuple[BDH, torch.Tensor, State, State]]:
        """After each token: the model, the difference of the logits, and the states of both ways."""
        model, idx = self.make(name, D)
        _, start = generate.prefill(model, idx[:, :20])
        weights = generate.step_weights(model, start)
        assert weights is not None
        fast, slow = copied(start), copied(start)
        with threads(count):
            for t in range(20, 70):
                one, fast = generate.step(model, idx[:, t : t + 1], fast, weights)
                two, slow = generate.step(model, idx[:, t : t + 1], slow)
                yield model, error(one, two), fast, slow

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("D", [32, 38])
    @pytest.mark.parametrize("name", HATCHING)
    def test_every_token_is_the_composed_one(self, name: str, D: int, count: int) -> None:
        for model, difference, fast, slow in self.both(name, count, D):
            assert difference <= 1e-4
            fast = self.settled(model, fast)
            for level in range(2):
                for key, value in slow.level(level).items():
                    assert error(fast.level(level)[key], value) <= 1e-4, key

    def test_rows_wait_until_their_neuron_fires(self) -> None:
        *_, (model, _, fast, _) = self.both("hatching")
        late = fast.position - fast.level(0)["fading_at"]
        assert late.max() > 10
        assert late.min() == 0
        # the control: taken as it stands, the memory is another
        stands = fast.level(0)["fading"]
        assert error(stands, self.settled(model, fast).level(0)["fading"]) > CONTROL

    def test_a_state_of_the_kernels_goes_on_in_any_other_way(self) -> None:
        *_, (model, _, fast, slow) = self.both("hatching")
        idx = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(5))
        one, two = model.advance(idx, fast)[0], model.advance(idx, slow)[0]
        assert error(one, two) <= 1e-4

    @pytest.mark.parametrize("precision", ["bfloat16", "int8"])
    def test_low_precision_rounds_memories_and_spares_membranes(self, precision: str) -> None:
        model, idx = self.make("hatching")
        _, state = generate.prefill(model, idx[:, :20])
        whole = model(idx)[0][:, 20:]
        state = generate._rounded(state)
        assert state.level(0)["membrane"].dtype == torch.float32
        assert state.level(0)["fading"].dtype == torch.bfloat16
        weights = generate.step_weights(model, state, precision)
        for t in range(20, 70):
            logits, state = generate.step(model, idx[:, t : t + 1], state, weights)
            assert logits.isfinite().all()
        # a rounded drive moves spikes, so only the likeness is tested
        close = torch.cosine_similarity(logits[:, 0].flatten(), whole[:, -1].flatten(), dim=0)
        other = torch.cosine_similarity(logits[:, 0].flatten(), whole[:, 0].flatten(), dim=0)
        assert close > 0.9 > other

    def test_what_the_kernels_do_not_know_is_composed(self) -> None:
        shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 4}
        for more in ({"variant": "advanced"}, {"stdp": STDP(form="trace")}, {"norm": "rms"}, {"sparsity": 0.5}):
            model = BDH(BDHConfig(**shape, **more))
            assert generate.step_weights(model, model.advance(torch.tensor([[1]]))[1]) is None
            with pytest.raises(ValueError, match="in decoding the kernels know no"):
                model.stream(torch.tensor([[1]]), 2, precision="int8")
