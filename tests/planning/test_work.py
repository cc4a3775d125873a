"""Operations per token: formulas against the products that are really asked for."""

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from bdh import BDH, BDHConfig, ops
from bdh.lens.density import density
from bdh.ops import native, native_attention
from bdh.planning import work
from bdh.planning.work import AT_RANDOM, TRAINED, Activity

SHAPE = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=16, vocab_size=61, dropout=0.0)


def a_pass(model: BDH, T: int, backend: ops.LevelsBackend) -> None:
    idx = torch.randint(0, 61, (1, T), generator=torch.Generator().manual_seed(0))
    with ops.using(backend):
        loss = model.train()(idx, idx)[1]
    assert loss is not None
    loss.backward()


# the last write of a chunked pass is computed and dropped; its backward pass never runs
@pytest.mark.parametrize(("backend", "T"), [("reference", 40), ("composed", 24)])
def test_products_of_composed_passes_are_counted_exactly(backend: ops.LevelsBackend, T: int) -> None:
    model = BDH.from_seed(SHAPE, 0)
    with FlopCounterMode(display=False) as counter:
        a_pass(model, T, backend)
    form = "reference" if backend == "reference" else None
    assert T * work.training(SHAPE, T, form=form) == counter.get_total_flops()


class Products(TorchDispatchMode):
    """Counts the dense products between matrices, also those in place."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:] if name in ("mm", "bmm") else args[1:3]
            self.flop += 2 * math.prod(a.shape) * b.shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not native.available(), reason=native.why_not)
@pytest.mark.parametrize("T", [40, 64, 100, 150])
@pytest.mark.parametrize("dense_above", [0.0, 1.0])
def test_products_of_native_passes_are_counted(T: int, dense_above: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dense ones exactly; what the kernels do, by the entries that fire."""
    for module in (work, native_attention):
        monkeypatch.setattr(module, "DENSE_ABOVE", dense_above)
    model = BDH.from_seed(SHAPE, 0)
    with Products() as products:
        a_pass(model, T, "native")
    # without activity nothing is left to the kernels, but then the dense form of the drive is not taken either
    silent = work.native_training(SHAPE, T, Activity(0.0, 0.0))
    map_ = 2 * SHAPE.n_neurons * SHAPE.n_embd * SHAPE.n_layer
    assert products.flop == pytest.approx(T * (silent + (2 * map_ if dense_above == 0.0 else 0)), rel=1e-12)
    found = density(model, torch.randint(0, 61, (1, T), generator=torch.Generator().manual_seed(0)))
    x, xy = (sum(found[key]) / 2 for key in ("x", "xy"))
    entries = x * map_ * (1 if dense_above == 0.0 else 3) + xy * 5 * map_
    assert work.native_training(SHAPE, T, Activity(x, xy)) * T == pytest.approx(products.flop + T * entries)


def test_less_activity_is_less_work() -> None:
    sizes = [work.native_training(SHAPE, 40, a) for a in (TRAINED, AT_RANDOM)]
    assert sizes[0] < sizes[1] < work.training(SHAPE, 40)


def test_winners_limit_the_activity() -> None:
    config = BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=10, sparsity=0.9)
    assert AT_RANDOM.of(config) == Activity(0.1, 0.05)
    assert Activity(0.04, 0.01).of(config) == Activity(0.04, 0.01)
