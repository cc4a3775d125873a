"""Bytes that are kept between the passes: formulas against autograd and against the kernels."""

import weakref
from dataclasses import replace

import pytest
import torch

from bdh import BDH, BDHConfig, ops
from bdh.config import preset
from bdh.lens.density import density
from bdh.model import cross_entropy
from bdh.ops import native, native_levels, parallel
from bdh.planning import activations

SMALL = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=10, vocab_size=61, dropout=0.0)


class Box:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_bytes(
    config: BDHConfig, B: int, T: int, backend: ops.LevelsBackend, dtype: torch.dtype, *, carried: bool = False
) -> int:
    """Bytes that autograd keeps for a pass, each storage once, parameters left out; of one that goes on, if wanted."""
    model = BDH.from_seed(config, 0).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    boxes: list[weakref.ref[Box]] = []

    def pack(tensor: torch.Tensor) -> Box:
        box = Box(tensor)
        boxes.append(weakref.ref(box))  # a part of the graph that is dropped again takes its box along
        return box

    idx = torch.zeros(B, T, dtype=torch.long)
    before = model.advance(idx)[1].detach() if carried else None
    rounded = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor), ops.using(backend), rounded:
        # as in training on streams: the state after it is kept without its graph
        loss = cross_entropy(model.advance(idx, before)[0], idx.clone()) if carried else model(idx, idx.clone())[1]
    assert loss is not None
    storages = [box.tensor.untyped_storage() for ref in boxes if (box := ref()) is not None]
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values())


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of attention so short that texts of a test have several."""
    monkeypatch.setattr(parallel, "BLOCK", 12)
    monkeypatch.setattr(activations, "BLOCK", 12)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["composed", "reference", "tiled"])
@pytest.mark.parametrize("T", [1, 8, 24, 30, 50])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("change", [{}, {"n_head": 1}, {"dropout": 0.1}, {"sparsity": 0.5}, {"sparsity": 0.0}])
def test_what_autograd_keeps_is_counted_exactly(
    change: dict, B: int, T: int, backend: ops.LevelsBackend, dtype: torch.dtype
) -> None:
    config, e = replace(SMALL, **change), dtype.itemsize
    if backend == "tiled":
        counted = activations.tiled(config, B, T, bytes_per_number=e)
    else:
        form = "reference" if backend == "reference" else None
        counted = activations.composed(config, B, T, form=form, bytes_per_number=e)
    assert counted == saved_bytes(config, B, T, backend, dtype)


@pytest.mark.usefixtures("short_blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["composed", "reference"])
@pytest.mark.parametrize("T", [8, 30])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("change", [{}, {"n_head": 1}, {"dropout": 0.1}, {"sparsity": 0.5}])
def test_a_pass_that_goes_on_keeps_the_memory_that_it_reads(
    change: dict, B: int, T: int, backend: ops.LevelsBackend, dtype: torch.dtype
) -> None:
    config, e = replace(SMALL, **change), dtype.itemsize
    form = "reference" if backend == "reference" else None
    counted = activations.composed(config, B, T, form=form, carried=True, bytes_per_number=e)
    assert counted == saved_bytes(config, B, T, backend, dtype, carried=True)


def kept_by_the_kernels(config: BDHConfig, B: int, T: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[float]]:
    """Bytes of all records of the levels when the backward pass begins, and the density of x per level."""
    model, idx = BDH.from_seed(config, 0), torch.randint(0, 256, (B, T), generator=torch.Generator().manual_seed(0))
    kept = []
    backward = native_levels._Levels.backward

    def count(ctx: object, *grads: torch.Tensor) -> object:
        kept.append(sum(level.nbytes for level in ctx.kept))
        return backward(ctx, *grads)

    monkeypatch.setattr(native_levels._Levels, "backward", staticmethod(count))
    with ops.using("native"):
        model.train()(idx, idx)[1].backward()
    (found,) = kept
    return found, density(model, idx)["x"]


@pytest.mark.skipif(not native.available(), reason=native.why_not)
@pytest.mark.parametrize(("B", "T"), [(1, 64), (3, 33), (1, 150), (9, 16)])
def test_what_the_kernels_keep_follows_from_the_density(B: int, T: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=64, dropout=0.0)
    found, x = kept_by_the_kernels(config, B, T, monkeypatch)
    outside = activations.outside(config, B, T)
    assert activations.native(config, B, T, density=sum(x) / 2) - outside == pytest.approx(found, rel=0.002)
    assert activations.native(config, B, T, density=sum(x) / 2 - 0.1) - outside < 0.95 * found  # the density counts


@pytest.mark.skipif(not native.available(), reason=native.why_not)
def test_levels_that_are_computed_again_keep_v_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config, (B, T) = BDHConfig(n_layer=3, n_embd=16, n_head=2, mlp_internal_dim_multiplier=64, dropout=0.0), (2, 40)
    whole, x = kept_by_the_kernels(config, B, T, monkeypatch)
    assert not activations.computed_again(config, B, T, density=sum(x) / 3)
    monkeypatch.setattr(native_levels, "memory_budget", lambda: whole / 2)
    assert activations.computed_again(config, B, T, density=sum(x) / 3)
    found, _ = kept_by_the_kernels(config, B, T, monkeypatch)
    one_level = activations.tiles(config, B, T).level_nbytes(sum(x) / 3)
    again = activations.native(config, B, T, density=sum(x) / 3, again=True)
    assert again - one_level - activations.outside(config, B, T) == found == 3 * 4 * B * T * 16


def test_the_kernels_keep_a_tenth_of_what_autograd_keeps() -> None:
    per_token = {
        "reference": activations.composed(preset("25m"), 1, 256, form="reference") / 256,
        "tiled": activations.tiled(preset("25m"), 1, 256) / 256,
        "again": activations.native(preset("25m"), 1, 256, density=0.2, again=True) / 256,
    }
    assert per_token["reference"] > 3e6
    assert per_token["tiled"] < per_token["reference"] / 20
    assert per_token["again"] < per_token["reference"] / 10
