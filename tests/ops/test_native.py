"""The native back end against the composed levels in float64: forward, gradients, every instruction set."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bdh import BDH, BDHConfig, ops
from bdh.mechanisms import k_winners
from bdh.ops import native, native_attention, native_levels, native_plan
from bdh.parts import Carried
from tolerances import CONTROL, SAME, error

pytestmark = pytest.mark.skipif(not native.available(), reason=f"native back end {native.why_not}")

FORWARD = SAME[torch.float32]


def shape(D: int = 32, H: int = 2, multiplier: int = 8, L: int = 2) -> BDHConfig:
    return BDHConfig(n_layer=L, n_embd=D, n_head=H, mlp_internal_dim_multiplier=multiplier, dropout=0.0)


def weights(config: BDHConfig, lean: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    """Random maps; `lean` shifts all encoders along one direction, which `entry` follows: it sets the density."""
    model = BDH.from_seed(config, seed)
    along = direction(config)
    return [
        (5 * model.encoder + lean * along[:, None]).detach(),
        (5 * model.encoder_v).detach(),
        (5 * model.decoder).detach(),
    ]


def direction(config: BDHConfig) -> torch.Tensor:
    along = torch.randn(config.n_embd, generator=torch.Generator().manual_seed(1))
    return F.layer_norm(along, along.shape)


def entry(config: BDHConfig, B: int, T: int, follow: float = 0.0) -> torch.Tensor:
    noise = torch.randn(B, T, config.n_embd, generator=torch.Generator().manual_seed(B * 1000 + T))
    return F.layer_norm(noise + follow * direction(config), (config.n_embd,))


Results = dict[str, list[torch.Tensor]]


def results(v: torch.Tensor, maps: list[torch.Tensor], config: BDHConfig) -> Results:
    """Output and gradients of (v, maps): native, composed in float32, and composed in float64, the truth."""
    found: Results = {}
    for name, dtype in (("native", torch.float32), ("composed", torch.float32), ("truth", torch.float64)):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (v, *maps)]
        if name == "native":
            out = native_levels.levels(*inputs, n_layer=config.n_layer)
        else:
            # the functions of the model on tensors of ours, so that gradients flow to them
            ours = dict(zip(("m.encoder", "m.encoder_v", "m.decoder"), inputs[1:], strict=True))
            out = torch.func.functional_call(_Levels(BDH(config).to(dtype)), ours, inputs[0])
        pull = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        found[name] = [out, *torch.autograd.grad(out, inputs, pull)]
    return found


class _Levels(torch.nn.Module):
    """The composed levels of a model as a module of their own."""

    def __init__(self, model: BDH) -> None:
        super().__init__()
        self.m = model

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        config = self.m.config
        turn = ops.rotation(config.neurons_per_head, 0, v.shape[1], like=v)
        for level in range(config.n_layer):
            v = self.m._layer(level, v, turn, Carried(), lambda _name, tensor: tensor)
        return v


def check(found: Results) -> None:
    """The native results are as near to the truth as those of plain float32, up to a factor."""
    for mine, plain, truth in zip(found["native"], found["composed"], found["truth"], strict=True):
        size = truth.norm().clamp_min(1e-12)
        rounding = ((plain.double() - truth).norm() / size).item()
        assert ((mine.double() - truth).norm() / size).item() <= max(SAME[torch.float32], 5 * rounding)


@given(
    B=st.integers(1, 5),
    T=st.integers(1, 70),
    D=st.sampled_from([6, 16, 30, 64, 72]),
    H=st.sampled_from([1, 2, 3]),
    L=st.integers(1, 3),
)
def test_any_shape(B: int, T: int, D: int, H: int, L: int) -> None:
    config = shape(D, H, 2 * H, L)
    check(results(entry(config, B, T), weights(config), config))


@pytest.mark.parametrize(
    ("lean", "low", "high"), [(-9, 0, 0), (-0.013, 0.02, 0.4), (0, 0.4, 0.6), (0.013, 0.6, 0.98), (9, 1, 1)]
)
def test_any_density(lean: float, low: float, high: float) -> None:
    config = shape(L=1)
    v, maps = entry(config, 2, 33, follow=3.0), weights(config, lean)
    density = ((v[:, None] @ maps[0]) > 0).float().mean().item()
    assert low <= density <= high
    check(results(v, maps, config))


@pytest.mark.parametrize("T", [65, 100, 131, 200])
def test_long_texts_are_read_in_chunks(T: int) -> None:
    config = shape(D=16, multiplier=16)  # chunks of 32 tokens beyond 64
    check(results(entry(config, 2, T), weights(config), config))


@pytest.mark.parametrize("above", [0.0, 1.0])
@pytest.mark.parametrize("T", [21, 131])
def test_dense_and_sparse_gradients_of_the_drive_agree(above: float, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_attention, "DENSE_ABOVE", above)
    config = shape(D=16, multiplier=16)
    check(results(entry(config, 2, T), weights(config), config))


def test_large_batches_of_short_rows_are_cut_into_groups() -> None:
    config = shape(D=16, multiplier=2, L=1)
    plan = native_plan.Plan(600, 7, config.n_head, config.neurons_per_head, config.n_embd)
    assert len(plan.rows) == 5
    check(results(entry(config, 600, 7), weights(config), config))


@pytest.mark.parametrize("T", [20, 131])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_what_does_not_fit_is_computed_again_to_the_same_bits(
    T: int, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = shape(D=16, multiplier=16, L=3)
    forwards = []
    forward = native_levels._forward_level
    monkeypatch.setattr(native_levels, "_forward_level", lambda *a, **k: (forwards.append(1), forward(*a, **k))[1])

    def run(budget: float) -> list[torch.Tensor]:
        monkeypatch.setattr(native_levels, "memory_budget", lambda: budget)
        inputs = [t.requires_grad_() for t in (entry(config, 2, T), *weights(config))]
        torch.manual_seed(0)
        out = native_levels.levels(*inputs, n_layer=3, dropout=dropout)
        return [out, *torch.autograd.grad(out.square().sum() + out.sum(), inputs)]

    roomy, tight = run(1e12), run(0)
    assert len(forwards) == 3 + 6
    assert all(torch.equal(a, b) for a, b in zip(roomy, tight, strict=True))


def test_a_lost_state_between_chunks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape(D=16, multiplier=16)
    monkeypatch.setattr(native_plan.Plan, "turned", lambda self, rho, chunks: rho)
    found = results(entry(config, 2, 131), weights(config), config)
    assert error(found["native"][0], found["truth"][0]) > CONTROL


@pytest.mark.parametrize("tile", [64, 1000])
def test_neurons_are_cut_into_tiles(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_plan, "TILE", tile)
    config = shape()
    check(results(entry(config, 2, 21), weights(config), config))


@pytest.mark.parametrize("name", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("D", [64, 40])
def test_every_instruction_set(name: str, D: int) -> None:
    before = native.instruction_set()
    if not native.kernels.choose(name):
        pytest.skip(f"this processor has no {name}")
    try:
        config = shape(D)
        check(results(entry(config, 2, 33), weights(config), config))
    finally:
        native.kernels.choose(before)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_and_runs_agree(threads: int) -> None:
    config = shape()
    v, maps = entry(config, 3, 40), weights(config)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, again = results(v, maps, config), results(v, maps, config)
    finally:
        torch.set_num_threads(before)
    check(found)
    assert all(torch.equal(a, b) for a, b in zip(found["native"], again["native"], strict=True))


def test_no_memory_is_read_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh tensors full of NaN must not show in the result."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(t: torch.Tensor) -> torch.Tensor:
        return t.fill_(float("nan")) if t.is_floating_point() else t.fill_(7)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: poison(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    config = shape(D=16, multiplier=16)
    for T in (20, 131):
        inputs = [t.requires_grad_() for t in (entry(config, 2, T), *weights(config))]
        out = native_levels.levels(*inputs, n_layer=2)
        out.square().sum().backward()
        assert all(t.grad.isfinite().all() for t in inputs)


def test_not_a_number_is_passed_on() -> None:
    config = shape()
    for spoiled in range(4):
        inputs = [entry(config, 1, 9), *weights(config)]
        inputs[spoiled].view(-1)[3] = float("nan")
        assert native_levels.levels(*inputs, n_layer=2).isnan().any()


def test_strided_input() -> None:
    config = shape()
    v, maps = entry(config, 3, 12), weights(config)
    strided = v.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(native_levels.levels(strided, *maps, n_layer=2), native_levels.levels(v, *maps, n_layer=2))


class TestDropout:
    config = shape(L=1)

    def run(self, seed: int, rate: float, *inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(seed)
        return native_levels.levels(*inputs, n_layer=1, dropout=rate)

    def test_the_seed_decides(self) -> None:
        inputs = (entry(self.config, 2, 20), *weights(self.config))
        one, same, other = (self.run(seed, 0.3, *inputs) for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert torch.equal(self.run(1, 0.0, *inputs), native_levels.levels(*inputs, n_layer=1))

    def test_share_and_scale(self) -> None:
        """With one output per entry: a decoder that adds up all activity shows how much was kept, on average."""
        config = shape(D=64, H=1, multiplier=32, L=1)
        torch.manual_seed(0)
        entries = native_plan.Dropout(3, 0.25)
        assert entries.of((0, 0, 0), 0)[1] == 0.25
        v, maps = entry(config, 8, 30), weights(config)
        dropped = torch.stack([self.run(seed, 0.25, v, *maps) for seed in range(40)]).mean(0)
        kept = native_levels.levels(v, *maps, n_layer=1)
        assert (dropped - kept).norm() / kept.norm() < 0.2  # unbiased up to the norms
        assert (self.run(0, 0.25, v, *maps) - kept).norm() / kept.norm() > 0.2

    def test_backward_drops_what_forward_dropped(self) -> None:
        """The gradient is that of the very function that was computed: finite differences with the same seed."""
        inputs = [t.requires_grad_() for t in (entry(self.config, 1, 12), *weights(self.config))]
        pull = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(5))
        (self.run(4, 0.4, *inputs) * pull).sum().backward()
        for which in range(4):
            step = torch.randn(inputs[which].shape, generator=torch.Generator().manual_seed(which)) * 1e-4
            up, down = [t.detach() for t in inputs], [t.detach() for t in inputs]
            up[which], down[which] = up[which] + step, down[which] - step
            rise = [float((self.run(4, 0.4, *moved).double() * pull).sum()) for moved in (up, down)]
            slope = float((inputs[which].grad * step).sum())
            assert (rise[0] - rise[1]) / 2 == pytest.approx(slope, rel=0.03, abs=1e-5)


def test_the_model_uses_it_where_it_can() -> None:
    model = BDH.from_seed(shape(), 0)
    idx = torch.arange(40)[None]
    assert ops.levels_backend(model.encoder) == "native"
    with ops.using("composed"):
        assert ops.levels_backend(model.encoder) == "composed"
        expected = model(idx)[0]
    assert error(model(idx)[0], expected) <= FORWARD
    assert ops.levels_backend(model.encoder.double()) == "tiled"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.levels_backend(model.encoder) == "native"
    with torch.autocast("cpu", dtype=torch.float16):
        assert ops.levels_backend(model.encoder) == "composed"
    with pytest.raises(ValueError, match="expected one of auto, native, tiled, composed"), ops.using("magic"):
        pass


@pytest.mark.parametrize("name", ["avx512", "avx2", "portable"])
@pytest.mark.parametrize("shape", [(4, 256, 72), (3, 37, 50), (2, 16, 5), (1, 1, 1)])
def test_transposition(name: str, shape: tuple[int, int, int]) -> None:
    before = native.instruction_set()
    if not native.kernels.choose(name):
        pytest.skip(f"this processor has no {name}")
    try:
        given, out = torch.randn(shape), torch.full((shape[0], shape[2], shape[1]), torch.nan)
        native.kernels.transpose(given, out, 2)
        assert torch.equal(out, given.mT)
    finally:
        native.kernels.choose(before)


class TestWinners:
    """k winners take all, in the kernels."""

    @given(
        K=st.integers(1, 40), M=st.integers(1, 37), k=st.integers(1, 40), levels=st.sampled_from([2, 5, 1000]),
        name=st.sampled_from(["avx512", "avx2", "portable"]), threads=st.integers(1, 3),
    )  # fmt: skip
    def test_equals_the_mechanism(self, K: int, M: int, k: int, levels: int, name: str, threads: int) -> None:
        # few distinct values make many ties
        drive = torch.randint(-levels, levels + 1, (K, M), generator=torch.Generator().manual_seed(M)) / levels
        expected = k_winners(drive.T, min(k, K)).T
        before = native.instruction_set()
        native.kernels.choose(name)
        try:
            native.kernels.keep_winners(drive, k, threads)
        finally:
            native.kernels.choose(before)
        assert torch.equal(drive.relu(), expected)

    def test_not_a_number_stays(self) -> None:
        drive = torch.randn(20, 3)
        drive[7, 1], drive[9, 1] = torch.nan, -torch.tensor(torch.nan)
        native.kernels.keep_winners(drive, 1, 1)
        assert drive.isnan().nonzero().tolist() == [[7, 1], [9, 1]]

    def test_a_model_trains_with_them(self) -> None:
        config = replace(shape(), sparsity=0.9)
        found = {}
        for backend in ("native", "composed"):
            model, idx = BDH.from_seed(config, 0), torch.arange(60).view(2, 30)
            with ops.using(backend):
                logits, loss = model(idx, idx)
            loss.backward()
            found[backend] = [logits, *(p.grad for p in model.parameters())]
        assert all(error(*pair) <= FORWARD for pair in zip(*found.values(), strict=True))
        natural = BDH.from_seed(shape(), 0)(idx)[0]
        assert error(natural, found["composed"][0]) > CONTROL


def test_autocast_rounds_the_factors_of_dense_products() -> None:
    config, found = shape(D=64, multiplier=16), {}
    v, maps = entry(config, 2, 64), weights(config)
    settings = torch.backends.mkldnn.matmul
    before = settings.fp32_precision
    for rounded in (False, True):
        inputs = [t.clone().requires_grad_() for t in (v, *maps)]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=rounded):
            out = native_levels.levels(*inputs, n_layer=config.n_layer)
        assert out.dtype == torch.float32
        pull = torch.linspace(-1, 1, out.numel()).view_as(out)
        found[rounded] = [out, *torch.autograd.grad(out, inputs, pull)]
        assert settings.fp32_precision == before
    for exact, near in zip(found[False], found[True], strict=True):
        assert (near - exact).norm() <= SAME[torch.bfloat16] * exact.norm()
        assert (near - exact).norm() > 0 or not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_asking_for_what_is_not_there_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "kernels", None)
    monkeypatch.setattr(native, "why_not", "not built (test)")
    model = BDH.from_seed(shape(), 0)
    assert ops.levels_backend(model.encoder) == "tiled"
    with ops.using("native"), pytest.raises(ValueError, match=r"not built \(test\)"):
        model(torch.arange(4)[None])


def read_on(
    config: BDHConfig,
    B: int,
    T: int,
    before: int,
    dtype: torch.dtype,
    backend: str,
    beginnings: float = 0.0,
    through_time: bool = True,
) -> list[torch.Tensor]:
    """Read `before` tokens, then T more from there: logits, states, and gradients of what was read last.

    A share of the tokens begins a text.
    """
    model = BDH.from_seed(config, 0).to(dtype).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    chosen = torch.Generator().manual_seed(T)
    text = torch.randint(256, (B, before + T), generator=chosen)
    fresh = torch.rand(B, T, generator=chosen) < beginnings if beginnings else None
    cut = nullcontext() if through_time else ops.without_gradient_through_time()
    with ops.using(backend), cut:
        state = model.advance(text[:, :before], constant=True)[1] if before else None
        logits, after = model.advance(text[:, before:], state, constant=True, fresh=fresh)
    pull = torch.linspace(-1, 1, logits.numel(), dtype=dtype).view_as(logits)
    assert not any(rho.requires_grad for rho in after.rho)
    return [logits, *after.rho, *torch.autograd.grad(logits, list(model.parameters()), pull)]


def check_reading_on(*args: Any) -> None:
    """The kernels go on from a state as composed operations do; these token by token in float64 are the truth."""
    config, B, T, before, beginnings = args
    ways = {
        "native": ("native", torch.float32),
        "composed": ("composed", torch.float32),
        "truth": ("reference", torch.float64),
    }
    check({name: read_on(config, B, T, before, dtype, way, beginnings) for name, (way, dtype) in ways.items()})


@given(
    B=st.integers(1, 4),
    T=st.integers(1, 70),
    before=st.integers(0, 150),
    D=st.sampled_from([6, 16, 30]),
    H=st.sampled_from([1, 2, 3]),
    beginnings=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_a_pass_goes_on_from_a_state(B: int, T: int, before: int, D: int, H: int, beginnings: float) -> None:
    check_reading_on(shape(D, H, 2 * H), B, T, before, beginnings)


@pytest.mark.parametrize("beginnings", [0.0, 0.02, 0.2])
@pytest.mark.parametrize(("B", "T", "before"), [(2, 131, 0), (2, 131, 40), (1, 200, 131)])
def test_long_texts_go_on_from_a_state_in_chunks(B: int, T: int, before: int, beginnings: float) -> None:
    check_reading_on(shape(D=16, multiplier=16), B, T, before, beginnings)  # chunks of 32 tokens beyond 64


@pytest.mark.parametrize("beginnings", [0.0, 0.05])
@pytest.mark.parametrize("T", [20, 131])
def test_without_gradient_through_time_kernels_do_as_composed_levels(T: int, beginnings: float) -> None:
    args = shape(D=16, multiplier=16), 2, T, 40
    ways = {"native": torch.float32, "composed": torch.float32, "truth": torch.float64}
    found = {
        name: read_on(*args, dtype, "composed" if name == "truth" else name, beginnings, False)
        for name, dtype in ways.items()
    }
    check(found)
    through = read_on(*args, torch.float64, "composed", beginnings, True)
    assert torch.equal(through[0], found["truth"][0])
    assert error(through[-1], found["truth"][-1]) > CONTROL  # of the embedding


@pytest.mark.parametrize("T", [20, 131])
def test_a_text_that_is_not_forgotten_is_caught(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape(D=16, multiplier=16)
    truth = read_on(config, 2, T, 40, torch.float64, "reference", 0.1)
    monkeypatch.setattr(native_attention, "separate", lambda scores, rows: scores)
    assert error(read_on(config, 2, T, 40, torch.float32, "native", 0.1)[0], truth[0]) > CONTROL


@pytest.mark.parametrize("T", [20, 131])
def test_a_state_in_another_frame_is_caught(T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape(D=16, multiplier=16)
    truth = read_on(config, 2, T, 40, torch.float64, "composed")
    plan_of = native_levels._Settings.plan_of
    unread = lambda self, *args: plan_of(replace(self, memory=self.memory._replace(position=0)), *args)  # noqa: E731
    monkeypatch.setattr(native_levels._Settings, "plan_of", unread)
    assert error(read_on(config, 2, T, 40, torch.float32, "native")[0], truth[0]) > CONTROL


def test_a_pass_from_a_state_is_computed_again_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = shape(D=16, multiplier=16)
    found = []
    for budget in (1e12, 0.0):
        monkeypatch.setattr(native_levels, "memory_budget", lambda budget=budget: budget)
        found.append(read_on(config, 2, 131, 40, torch.float32, "native"))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_state_that_learns_is_not_read_by_kernels() -> None:
    config = shape()
    model = BDH.from_seed(config, 0).train()
    text = torch.arange(24).view(2, 12)
    with ops.using("native"):
        state = model.advance(text[:, :6])[1]
        loss = model.advance(text[:, 6:], state)[0].square().sum()
    through = torch.autograd.grad(loss, state.rho)
    assert all(part.abs().sum() > 0 for part in through)


def test_a_second_way_back_is_refused() -> None:
    config = shape()
    inputs = [t.requires_grad_() for t in (entry(config, 1, 9), *weights(config))]
    out = native_levels.levels(*inputs, n_layer=2).sum()
    torch.autograd.grad(out, inputs, retain_graph=True)
    with pytest.raises(RuntimeError, match="expected one way back, this is a second"):
        torch.autograd.grad(out, inputs)
