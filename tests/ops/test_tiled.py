"""The tiled levels against the composed ones written with ops/reference.py: forward, gradients, what is kept."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from bdh import BDH, BDHConfig, ops
from bdh.mechanisms import k_winners
from bdh.ops import reference, tiled
from bdh.parts import Carried
from tolerances import CONTROL, SAME, error

EXACT = SAME[torch.float64]
NAMES = ("encoder", "encoder_v", "decoder")


def shape(D: int = 8, H: int = 2, multiplier: int = 8, L: int = 2, **fields) -> BDHConfig:
    return BDHConfig(
        n_layer=L, n_embd=D, n_head=H, mlp_internal_dim_multiplier=multiplier, **({"dropout": 0.0} | fields)
    )


def example(config: BDHConfig, B: int = 2, T: int = 13, lean: float = 0.0) -> list[torch.Tensor]:
    """Entry v and the three maps in float64; `lean` turns the encoder towards what all of v has in common."""
    generator = torch.Generator().manual_seed(B * 1000 + T)
    along = F.layer_norm(torch.randn(config.n_embd, generator=generator, dtype=torch.float64), (config.n_embd,))
    v = torch.randn(B, T, config.n_embd, generator=generator, dtype=torch.float64)
    v = F.layer_norm(v + 3 * along * (lean != 0), (config.n_embd,))
    model = BDH.from_seed(config, 0).double()
    maps = [10 * getattr(model, name).detach() for name in NAMES]
    return [v, maps[0] + lean * along[:, None], *maps[1:]]


class Composed(torch.nn.Module):
    """The levels of a model, operation by operation, as a function of (v, encoder, encoder_v, decoder)."""

    def __init__(self, config: BDHConfig, dtype: torch.dtype, drop: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.m = BDH(config).to(dtype)
        self.m.drop = drop or self.m.drop

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        turn = ops.rotation(self.m.config.neurons_per_head, 0, v.shape[1], like=v)
        with patch.object(ops, "attention_read", reference.quadratic_attention):
            for level in range(self.m.config.n_layer):
                v = self.m._layer(level, v, turn, Carried(), lambda _name, tensor: tensor)
        return v

    def __call__(self, v: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        if not maps:
            return super().__call__(v)
        return torch.func.functional_call(self, {f"m.{n}": m for n, m in zip(NAMES, maps, strict=True)}, v)


def tiled_levels(config: BDHConfig) -> Callable[..., torch.Tensor]:
    k = config.winners_per_head
    fire = None if k is None else partial(k_winners, k=k)
    return partial(tiled.levels, n_layer=config.n_layer, dropout=config.dropout, fire=fire)


def both_ways(levels: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and the gradients of all inputs."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = levels(*inputs)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return [out.detach(), *torch.autograd.grad(out, inputs, pull.to(out.dtype))]


def distance(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    return max(error(mine, theirs) for mine, theirs in zip(got, expected, strict=True))


def check(config: BDHConfig, inputs: list[torch.Tensor]) -> None:
    found = both_ways(tiled_levels(config), inputs)
    assert distance(found, both_ways(Composed(config, torch.float64), inputs)) <= EXACT


@contextmanager
def sizes(entries: int, tokens: int, neurons: int = 2) -> Iterator[None]:
    with patch.object(tiled, "CPU", tiled._Sizes(entries, tokens, neurons)):
        yield


@given(
    B=st.integers(1, 5),
    T=st.integers(1, 36),
    D=st.sampled_from([8, 10, 16]),
    H=st.sampled_from([1, 2, 4]),
    L=st.integers(1, 3),
    entries=st.sampled_from([1, 100, 2000, 2**19]),
    tokens=st.sampled_from([1, 30, 1024]),
)
def test_any_shape_and_any_tiles(B: int, T: int, D: int, H: int, L: int, entries: int, tokens: int) -> None:
    config = shape(D, H, 4, L)
    with sizes(entries, tokens):
        check(config, example(config, B, T))


@pytest.mark.parametrize(("lean", "low", "high"), [(-9, 0, 0), (-0.1, 0.01, 0.2), (0, 0.4, 0.6), (9, 1, 1)])
def test_any_density(lean: float, low: float, high: float) -> None:
    config = shape(D=16, L=1)
    inputs = example(config, T=21, lean=lean)
    assert low <= ((inputs[0][:, None] @ inputs[1]) > 0).double().mean().item() <= high
    check(config, inputs)


@pytest.mark.parametrize("T", [15, 16, 17, 24, 25, 63])
@pytest.mark.parametrize("block", [3, 8])
def test_chunk_boundaries(T: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "BLOCK", block)
    config = shape(D=8)  # one chunk up to 16 tokens
    check(config, example(config, 3, T))


def test_the_model_equals_the_released_way_in_training() -> None:
    model = BDH.from_seed(shape(D=16), 0).double().train()
    idx = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    found = {}
    for backend in ("tiled", "composed"):
        model.zero_grad()
        with ops.using(backend):
            logits, loss = model(idx, idx)
        loss.backward()
        found[backend] = [logits.detach(), loss.detach(), *(p.grad for p in model.parameters())]
    assert distance(found["tiled"], found["composed"]) <= EXACT


class TestControls:
    """Each is wrong in one way, and the comparison must say so."""

    config = shape(D=8)

    def distance(self, T: int = 30) -> list[float]:
        inputs = example(self.config, 2, T)
        found = both_ways(tiled_levels(self.config), inputs)
        expected = both_ways(Composed(self.config, torch.float64), inputs)
        return [error(mine, theirs) for mine, theirs in zip(found, expected, strict=True)]

    def test_nothing_wrong(self) -> None:
        assert max(self.distance()) <= EXACT

    def test_the_present_token_included(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "tril_", lambda t, _: t.copy_(t.tril(0)))
        assert self.distance(T=9)[0] > CONTROL

    def test_a_lost_state_between_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tiled, "_states_before", lambda q, v: torch.zeros_like(q[:, :-1].mT @ v[:, :-1]))
        assert self.distance()[0] > CONTROL

    def test_a_lost_gradient_of_the_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        after = tiled._state_gradients_after
        monkeypatch.setattr(tiled, "_state_gradients_after", lambda q, d_a: 0 * after(q, d_a))
        forward, *gradients = self.distance()
        assert forward <= EXACT
        assert min(gradients[:2]) > CONTROL  # of v and the encoder, which the state feeds


class TestWinners:
    @pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.97])
    @pytest.mark.parametrize("T", [13, 40])
    def test_equal_the_composed_ones(self, sparsity: float, T: int) -> None:
        config = shape(D=8, multiplier=16, sparsity=sparsity)
        with sizes(300, 20):
            check(config, example(config, 3, T))

    @pytest.mark.parametrize("lean", [-9, 9])
    def test_none_or_all_driven(self, lean: float) -> None:
        config = shape(D=8, sparsity=0.5)
        check(config, example(config, lean=lean))

    def test_ties_go_to_the_lower_index_in_the_gradient_too(self) -> None:
        config = shape(D=8, multiplier=16, L=1, sparsity=0.7)
        v, encoder, *maps = example(config, 2, 12)
        inputs = [v.mul(2).round(), encoder.sign(), *maps]
        drive = inputs[0][:, None] @ inputs[1]
        x = k_winners(drive, config.winners_per_head)
        least = x.masked_fill(x == 0, torch.inf).amin(-1, keepdim=True)
        assert ((drive == least) & (x == 0)).any(-1).double().mean() > 0.5  # most lines cut through equals
        check(config, inputs)

    def test_every_kind_of_winner_may_be_given(self) -> None:
        """The same winners by another function: nothing but the function decides who wins."""
        config = shape(D=8, sparsity=0.5)
        inputs = example(config)

        def by_sorting(drive: torch.Tensor) -> torch.Tensor:
            order = drive.sort(dim=-1, descending=True, stable=True).indices
            return torch.zeros_like(drive).scatter(-1, order[:, :16], drive.gather(-1, order[:, :16])).relu()

        found = both_ways(partial(tiled.levels, n_layer=2, fire=by_sorting), inputs)
        assert distance(found, both_ways(tiled_levels(config), inputs)) == 0


class TestDropout:
    config = shape(D=8, H=2, L=2, dropout=0.3)

    @staticmethod
    def seeded(levels: Callable[..., torch.Tensor], seed: int) -> Callable[..., torch.Tensor]:
        def run(*inputs: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(seed)
            return levels(*inputs)

        return run

    @pytest.fixture
    def masks(self, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], list[torch.Tensor]]:
        """Every mask that is drawn from now on, by (level, first row, head, first neuron)."""
        drawn: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        stays = tiled._Plan.stays

        def note(plan: tiled._Plan, tile: torch.Tensor, *place: int) -> torch.Tensor | None:
            mask = stays(plan, tile, *place)
            drawn[place].append(mask)
            return mask

        monkeypatch.setattr(tiled._Plan, "stays", note)
        return drawn

    @pytest.mark.parametrize("T", [12, 29])
    def test_equals_the_composed_levels_with_the_same_mask(self, masks, T: int) -> None:
        B, H, K, keep = 3, 2, self.config.neurons_per_head, 1 - self.config.dropout
        inputs = example(self.config, B, T)
        with sizes(200, 2 * T + 6):  # two rows share a tile, with what they are padded
            found = both_ways(tiled_levels(self.config), inputs)
        whole = torch.zeros(2, B, H, T, K, dtype=torch.float64)
        for (level, row, head, neuron), (forward, backward) in masks.items():
            assert torch.equal(forward, backward)
            rows = slice(row, min(B, row + 2))
            by_row = forward.double().view(rows.stop - row, -1, forward.shape[1])
            whole[level, rows, head, :, neuron : neuron + forward.shape[1]] = by_row[:, :T] / keep
        assert len(masks) > 2 * 2 * 2  # several tiles per level, group of rows and head

        class Given(torch.nn.Module):
            level = -1

            def forward(self, xy: torch.Tensor) -> torch.Tensor:
                self.level += 1
                return xy * whole[self.level]

        assert distance(found, both_ways(Composed(self.config, torch.float64, Given()), inputs)) <= EXACT
        plain = both_ways(tiled_levels(shape(D=8, H=2, L=2)), inputs)
        assert distance(plain, found) > CONTROL

    def test_the_share_is_the_rate_and_tiles_differ(self, masks) -> None:
        config = shape(D=16, H=2, multiplier=64, L=2, dropout=0.1)
        tiled_levels(config)(*example(config, 4, 30))
        drawn = [mask for (mask,) in masks.values()]
        kept = torch.cat([mask.flatten() for mask in drawn]).double().mean().item()
        count = sum(mask.numel() for mask in drawn)
        assert abs(kept - 0.9) < 5 * (0.09 / count) ** 0.5
        for mask in drawn[1:]:
            both = (mask & drawn[0]).double().mean().item()
            assert abs(both - 0.81) < 5 * (0.81 * 0.19 / mask.numel()) ** 0.5

    def test_the_seed_decides(self) -> None:
        inputs, levels = example(self.config), tiled_levels(self.config)
        one, same, other = (both_ways(self.seeded(levels, seed), inputs) for seed in (1, 1, 2))
        assert distance(one, same) == 0
        assert distance(one, other) > CONTROL

    def test_the_callers_random_state_moves_by_one_seed_whatever_the_shape(self) -> None:
        states = []
        for T in (3, 50):
            torch.manual_seed(0)
            tiled_levels(self.config)(*example(self.config, 1, T))
            states.append(torch.random.get_rng_state())
        assert torch.equal(*states)


@pytest.mark.parametrize(
    ("T", "fields"), [(5, {}), (7, {"sparsity": 0.5}), (7, {"dropout": 0.4})], ids=["plain", "winners", "dropout"]
)
def test_finite_differences_agree(T: int, fields: dict[str, float]) -> None:
    config = shape(D=3, H=1, multiplier=4, L=2, **fields)  # T = 7 is three chunks
    levels = TestDropout.seeded(tiled_levels(config), 3)
    inputs = [t.requires_grad_() for t in example(config, 2, T)]
    with sizes(1, 7):
        assert torch.autograd.gradcheck(levels, inputs, fast_mode=True)


class TestPrecision:
    @pytest.mark.parametrize("T", [30, 100])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_no_further_from_the_truth_than_composed(self, dtype: torch.dtype, T: int) -> None:
        config = shape(D=32, multiplier=16)
        rounded = [t.to(dtype) for t in example(config, 3, T)]
        truth = both_ways(Composed(config, torch.float64), [t.double() for t in rounded])
        plain = both_ways(Composed(config, dtype), rounded)
        with sizes(4000, 64):
            found = both_ways(tiled_levels(config), rounded)
        assert error(found[0], truth[0]) <= SAME[dtype]
        for mine, theirs, exact in zip(found, plain, truth, strict=True):
            assert mine.dtype == dtype
            assert (mine.double() - exact).norm() <= 1.5 * (theirs.double() - exact).norm()

    @pytest.mark.parametrize("fields", [{}, {"sparsity": 0.8}], ids=["plain", "winners"])
    def test_autocast(self, fields: dict[str, float]) -> None:
        config = shape(D=32, multiplier=16, **fields)
        inputs = [t.float() for t in example(config, 2, 30)]
        truth = both_ways(Composed(config, torch.float64), [t.double() for t in inputs])
        kept: list[torch.dtype] = []
        note = partial(map, lambda t: kept.append(t.dtype) or t)
        with (
            torch.autocast("cpu", dtype=torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(lambda t: next(note([t])), lambda t: t),
        ):
            found = both_ways(tiled_levels(config), inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = both_ways(Composed(config, torch.float32), inputs)
        assert kept.count(torch.bfloat16) == config.n_layer * 4  # a, scores, write, line; v in float32
        for mine, theirs, exact in zip(found, plain, truth, strict=True):
            assert mine.dtype == theirs.dtype == torch.float32
            assert (mine.double() - exact).norm() <= 1.5 * (theirs.double() - exact).norm()

    def test_half_precision_ties_do_not_move_the_gradient(self) -> None:
        config = shape(D=16, multiplier=32, L=1, sparsity=0.8)
        inputs = [t.bfloat16() for t in example(config, 2, 30)]
        found, plain = (both_ways(f, inputs) for f in (tiled_levels(config), Composed(config, torch.bfloat16)))
        assert ((found[2] != 0) == (plain[2] != 0)).double().mean() > 0.999


def saved_bytes(levels: Callable[..., torch.Tensor], inputs: list[torch.Tensor]) -> int:
    """Bytes that autograd keeps beside the inputs, each storage counted once."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    own = {t.untyped_storage().data_ptr() for t in inputs[1:]}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()  # held, so that no address comes twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = levels(*inputs)
    assert out.requires_grad
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)


class TestMemory:
    @pytest.mark.parametrize("T", [16, 40])
    def test_what_is_kept_has_no_neurons_in_it(self, T: int) -> None:
        B, D, H, L = 3, 16, 2, 4
        kept = [saved_bytes(tiled_levels(c), example(c, B, T)) for c in (shape(D, H, m, L) for m in (4, 64))]
        n, C = (1, T) if T <= 2 * D else (3, 14)
        assert kept == [L * B * n * C * (2 * D + H * D + H * C) * 8] * 2

    def test_winners_cost_two_numbers_per_token_and_head(self) -> None:
        plain, winners = shape(L=3), shape(L=3, sparsity=0.5)
        more = saved_bytes(tiled_levels(winners), example(winners)) - saved_bytes(tiled_levels(plain), example(plain))
        assert more == 3 * 2 * 13 * 2 * (8 + 4)

    def test_a_twentieth_of_what_composed_levels_keep(self) -> None:
        config = shape(D=16, H=2, multiplier=128, L=2)
        inputs = example(config, 2, 16)
        composed = saved_bytes(Composed(config, torch.float64), inputs)
        assert 20 * saved_bytes(tiled_levels(config), inputs) < composed

    def test_nothing_is_kept_without_gradients(self) -> None:
        config = shape()
        with torch.no_grad():
            out = tiled_levels(config)(*example(config))
        assert not out.requires_grad


def test_two_runs_agree_bit_for_bit() -> None:
    config = shape(D=16, sparsity=0.5)
    inputs = [t.float() for t in example(config, 3, 50)]
    one, two = (both_ways(tiled_levels(config), inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_strided_input_and_gradient() -> None:
    config = shape()
    v, *maps = example(config, 3, 20)
    expected = both_ways(tiled_levels(config), [v, *maps])
    strided = [v.transpose(0, 1).contiguous().transpose(0, 1), *(m.mT.contiguous().mT for m in maps)]
    assert not any(t.is_contiguous() for t in strided)
    assert distance(both_ways(tiled_levels(config), strided), expected) <= EXACT

    def crossed(levels: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        return levels(*inputs).transpose(0, 2)

    found = both_ways(partial(crossed, tiled_levels(config)), strided)
    assert distance(found, both_ways(partial(crossed, Composed(config, torch.float64)), strided)) <= EXACT


def test_a_graph_may_be_walked_twice_but_not_differentiated_twice() -> None:
    config = shape()
    inputs = [t.requires_grad_() for t in example(config)]
    loss = tiled_levels(config)(*inputs).square().sum()
    one, two = (torch.autograd.grad(loss, inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    (slope,) = torch.autograd.grad(loss, inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_weights_changed_in_between_are_noticed() -> None:
    config = shape()
    inputs = [t.requires_grad_() for t in example(config)]
    loss = tiled_levels(config)(*inputs).sum()
    with torch.no_grad():
        inputs[2].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_memory_is_read_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh tensors full of NaN must not show in the result."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like

    def poison(t: torch.Tensor) -> torch.Tensor:
        return t.fill_(float("nan")) if t.is_floating_point() else t.fill_(7)

    config = shape(sparsity=0.5)
    inputs = example(config, 2, 30)
    expected = both_ways(tiled_levels(config), inputs)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: poison(new_empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: poison(empty_like(*a, **k)))
    assert distance(both_ways(tiled_levels(config), inputs), expected) == 0


@pytest.mark.parametrize("spoiled", range(4))
def test_not_a_number_is_passed_on(spoiled: int) -> None:
    config = shape()
    inputs = example(config, 1, 9)
    inputs[spoiled].view(-1)[3] = float("nan")
    assert tiled_levels(config)(*inputs).isnan().any()


class TestChoice:
    def test_training_takes_it_where_the_kernels_cannot_go(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        levels = tiled.levels
        monkeypatch.setattr(tiled, "levels", lambda *a, **k: (calls.append(k["fire"]), levels(*a, **k))[1])
        idx = torch.arange(12)[None]
        model = BDH.from_seed(shape(), 0).double()
        model(idx)
        assert calls == [None]
        BDH.from_seed(shape(sparsity=0.5), 0).double()(idx)
        assert calls[1] is not None
        model(idx, tap=lambda name, tensor: tensor)
        model.advance(idx)
        model.eval()(idx)
        with ops.using("composed"):
            model.train()(idx)
        assert len(calls) == 2

    def test_an_accelerator_takes_it_when_memory_is_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config, like = shape(), torch.zeros((), device="meta")  # a device that is not a CPU
        held = tiled.COMPOSED * config.activities(100) * 4
        for budget, path in ((held, "composed"), (held - 1, "tiled")):
            monkeypatch.setattr(tiled, "budget", lambda device, budget=budget: budget)
            assert ops.levels_backend(like, activities=config.activities(100)) == path
        assert ops.levels_path(like, activities=config.activities(100)).startswith(
            "tiled PyTorch operations (no native"
        )

    def test_half_precision_on_a_cpu_takes_it_when_memory_is_short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config, like = shape(), torch.zeros((), dtype=torch.float16)
        held = tiled.COMPOSED * config.activities(100) * 2
        for budget, path in ((held, "composed"), (held - 1, "tiled")):
            monkeypatch.setattr(tiled, "memory_budget", lambda budget=budget: budget)
            assert ops.levels_backend(like, activities=config.activities(100)) == path
            assert ops.levels_backend(like.double(), activities=config.activities(100)) == "tiled"

    def test_the_line_says_which_and_why(self, monkeypatch: pytest.MonkeyPatch) -> None:
        like = torch.zeros((), dtype=torch.float64)
        with ops.using("tiled"):
            assert ops.levels_path(torch.zeros(())) == "tiled PyTorch operations (asked for)"
        with ops.using("composed"):
            assert ops.levels_path(like) == "PyTorch operations (asked for)"
        assert "the kernels take float32" in ops.levels_path(like)
        monkeypatch.setattr(tiled, "budget", lambda device: 2**40)
        meta = ops.levels_path(torch.zeros((), device="meta"), activities=2**27)
        assert meta.endswith("not tiled: activities of about 4 GiB fit)")

    def test_the_compiler_sees_one_composed_graph(self) -> None:
        model = BDH.from_seed(shape(), 0).double()
        graphs: list[str] = []

        def keep(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., object]:
            graphs.append(graph.code)
            return graph.forward

        compiled = torch.compile(model, backend=keep, fullgraph=True)
        for tokens in (12, 20):
            idx = torch.arange(tokens)[None]
            assert error(compiled(idx)[0], model(idx)[0]) <= EXACT
        assert graphs
        # for numbers that are complex no code would be generated
        assert not any(name in graph for name in ("_Levels", "polar", "complex") for graph in graphs)
