"""Interventions do what they say, through every entry point, and leave nothing behind."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from bdh import BDH, BDHConfig, ops
from bdh.lens import (
    Ablate,
    Clamp,
    EraseTokens,
    Intervention,
    Patch,
    Scale,
    ScaleSynapse,
    intervene,
    names_of,
    record,
)
from bdh.sections import STDP
from tolerances import CONTROL, SAME, error

N, K, D, L = 128, 64, 16, 3
EXACT = SAME[torch.float64]


def lively(variant: str = "bdh", dtype: torch.dtype = torch.float64, **more: object) -> BDH:
    """With weights so large that what the memory holds matters."""
    shape = {"n_layer": L, "n_embd": D, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.0}
    model = BDH.from_seed(BDHConfig(**shape, variant=variant, **more), 0).to(dtype).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (model.embed.weight, model.decoder, model.lm_head):
            parameter.mul_(10)
    return model


def stdp(form: str) -> BDH:
    return lively(stdp=STDP(form=form))  # type: ignore[arg-type]


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))


def firing(model: BDH, idx: torch.Tensor, level: int = 1) -> list[int]:
    """Neurons that fire most, so that changing them must show."""
    _, trace = record(model, idx, "layers.*.xy_sparse")
    return trace.neurons("xy_sparse", level).sum((0, 1)).topk(6).indices.tolist()  # type: ignore[no-any-return]


def everything(model: BDH, idx: torch.Tensor) -> list[torch.Tensor]:
    """What each entry point says."""
    _, state = model.advance(idx[:, :4])
    return [
        model(idx)[0],
        model.advance(idx)[0],
        model.advance(idx[:, 4:], state)[0],
        *state.rho,
        model.generate(idx, 6, temperature=0),
        torch.stack(list(model.stream(idx, 6, seed=2))),
    ]


SOME: dict[str, Callable[[list[int]], Intervention]] = {
    "ablate": lambda top: Ablate(top),
    "ablate a gate at one level": lambda top: Ablate(top, layers=[1], signal="y_sparse"),
    "scale": lambda top: Scale(top, 3.0),
    "scale the product": lambda top: Scale(top, -1.0, signal="xy_sparse"),
    "clamp": lambda top: Clamp(top, 2.0),
    "patch": lambda top: Patch("layers.0.v", torch.arange(D, dtype=torch.float64)[None], positions=[3]),
    "erase": lambda top: EraseTokens([1, 2]),
    "scale a row": lambda top: ScaleSynapse(None, top[0], 5.0),
    "scale a synapse": lambda top: ScaleSynapse(top[0], top[0], 1e3),
}


@pytest.mark.parametrize("variant", ["bdh", "hatching"])
@pytest.mark.parametrize("kind", SOME)
def test_each_kind_changes_the_logits_the_same_way_in_every_mode(kind: str, variant: str) -> None:
    model, idx = lively(variant), ids(2, 9)
    change = SOME[kind](firing(model, idx))
    plain = model(idx)[0]
    with intervene(model, [change]):
        whole, parallel = record(model, idx, "*")
        by_token, recurrent = record(model, idx, "*", mode="recurrent")
        _, state = model.advance(idx[:, :5])
        split, _ = model.advance(idx[:, 5:], state)
        text = model.generate(idx, 5, seed=3)
        read = model(text)[0]
        _, generated = record(model, idx, ["logits"], mode="generate", max_new_tokens=5, seed=3)
    assert error(whole, plain) > CONTROL
    assert error(by_token, whole) <= EXACT
    assert error(split, whole[:, 5:]) <= EXACT
    for name, tensor in parallel.items():
        assert error(recurrent[name], tensor) <= EXACT, name
    # generation went on with the changed model, prompt and new tokens
    assert error(generated["logits"], read[:, :-1]) <= EXACT
    assert torch.equal(model(idx)[0], plain)


@pytest.mark.parametrize("kind", SOME)
def test_nothing_stays_behind(kind: str) -> None:
    # in float32, where generation takes the native kernels: they must come back too
    model, idx = lively(dtype=torch.float32), ids(1, 9)
    before = everything(model, idx)
    change = SOME[kind](firing(model, idx))
    with intervene(model, [change]):
        inside = everything(model, idx)
    assert all(map(torch.equal, everything(model, idx), before))
    assert error(inside[0], before[0]) > CONTROL
    with pytest.raises(RuntimeError, match="mine"), intervene(model, [change]):
        model(idx)
        raise RuntimeError("mine")
    assert model.edits == ()
    assert all(map(torch.equal, everything(model, idx), before))


def test_a_copy_made_inside_is_a_model_of_its_own() -> None:
    model, idx = lively(), ids(1, 6)
    plain = model(idx)[0]
    with intervene(model, [Ablate(firing(model, idx))]):
        twin = copy.deepcopy(model)
        assert torch.equal(twin(idx)[0], plain)
        assert error(model(idx)[0], plain) > CONTROL


def test_an_empty_list_changes_nothing_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        model, idx = lively(dtype=dtype), ids(2, 9)
        before = everything(model, idx)
        with intervene(model, []):
            assert model.edits == ()
            assert all(map(torch.equal, everything(model, idx), before))


def test_neurons_are_global_ids() -> None:
    model, idx = lively(), ids(2, 5)
    for change, expected in ((Ablate([3, 70]), 0.0), (Clamp([3, 70], 1.5), 1.5)):
        with intervene(model, [change]):
            _, trace = record(model, idx, "layers.*.x_sparse")
        for level in range(L):
            x = trace.neurons("x_sparse", level)
            assert (x[..., [3, 70]] == expected).all()
            assert (x[..., 4] != x[..., 3]).any()
    _, plain = record(model, idx)
    with intervene(model, [Scale([70], 2.0, layers=[0])]):
        _, trace = record(model, idx)
    assert torch.equal(trace["layers.0.x_sparse"][:, 1, :, 6], 2 * plain["layers.0.x_sparse"][:, 1, :, 6])
    keep = [n for n in range(N) if n != 70]
    assert torch.equal(trace.neurons("x_sparse", 0)[..., keep], plain.neurons("x_sparse", 0)[..., keep])


def test_ablating_a_neuron_is_removing_its_weights() -> None:
    model, idx = lively(), ids(2, 9)
    top = firing(model, idx)
    without = copy.deepcopy(model)
    with torch.no_grad():
        for neuron in top:
            without.encoder[neuron // K, :, neuron % K] = 0
    with intervene(model, [Ablate(top)]):
        assert error(model(idx)[0], without(idx)[0]) <= EXACT


@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_a_patch_carries_one_run_into_another(mode: str) -> None:
    model, idx, other = lively(), ids(2, 7), ids(2, 7, seed=5)
    logits, trace = record(model, other, "*")
    # everything after the patched stream follows from it, so the whole of the other run comes back
    with intervene(model, [Patch("hook_embed", trace["embed"])]):
        patched, _ = record(model, idx, mode=mode)  # type: ignore[arg-type]
    assert error(patched, logits) <= EXACT
    # and at one token only from there on
    with intervene(model, [Patch("blocks.1.hook_resid_post", trace["layers.1.v"][:, 4:5], positions=[4])]):
        patched, seen = record(model, idx, "*", mode=mode)  # type: ignore[arg-type]
    plain, _ = record(model, idx)
    assert error(patched[:, :4], plain[:, :4]) <= EXACT
    assert torch.equal(seen["layers.1.v"][:, 4], trace["layers.1.v"][:, 4])
    assert error(patched[:, 4:], plain[:, 4:]) > CONTROL
    # of any shape that fits: one sequence for all, one value for all heads
    with intervene(model, [Patch("layers.0.x_sparse", torch.full((1, K), 0.25), positions=[2])]):
        _, seen = record(model, idx)
    assert (seen["layers.0.x_sparse"][:, :, 2] == 0.25).all()
    assert (seen["layers.0.x_sparse"][:, :, 3] != 0.25).any()


@pytest.mark.parametrize("form", ["off", "kernel"])
def test_erased_tokens_are_not_in_the_memory(form: str) -> None:
    model, idx, erased = stdp(form), ids(2, 9), [2, 5]
    others = [t for t in range(9) if t not in erased]
    with intervene(model, [EraseTokens(erased)]):
        _, trace = record(model, idx, "*")
        _, state = model.advance(idx)
    for level in range(L):
        q = ops.rotate(trace[f"layers.{level}.x_sparse"], ops.rotation(K, 0, 9, like=model.encoder))
        v = trace["embed" if level == 0 else f"layers.{level - 1}.v"]  # what went in, erased or not
        explicit = sum(q[:, :, t, :, None] * v[:, None, t, None, :] for t in others)
        assert error(state.rho[level], explicit) <= EXACT  # type: ignore[arg-type]
        everyone = sum(q[:, :, t, :, None] * v[:, None, t, None, :] for t in range(9))
        assert error(state.rho[level], everyone) > CONTROL  # type: ignore[arg-type]
        # read as the sum over the others, weighted by distance
        part = model.parts.stdp
        t, s = torch.arange(9)[:, None], torch.arange(9)
        weight = (t > s).double().expand(2, 9, 9).clone()
        weight[..., erased] = 0
        if part is not None:
            lam = torch.exp(-part.rate())[:, None, None]  # type: ignore[operator]
            weight = weight * (1 + part.strength[:, None, None] * lam ** (t - s).clamp_min(0))
        read = (q @ q.mT * weight) @ v[:, None]
        assert error(trace[f"layers.{level}.attn_out"], read) <= EXACT


def test_a_token_read_before_cannot_be_erased() -> None:
    model, idx = lively(), ids(1, 6)
    _, state = model.advance(idx[:, :4])
    with intervene(model, [EraseTokens([1, 4])]), pytest.raises(ValueError, match="token 1 was read before"):
        model.advance(idx[:, 4:], state)
    assert model.edits == ()
    with intervene(model, [EraseTokens([4])]):
        model.advance(idx[:, 4:], state)


@pytest.mark.parametrize("form", ["off", "kernel"])
@pytest.mark.parametrize("source", [10, 11, 75])
def test_a_scaled_row_is_the_row_as_it_is_read(source: int, form: str) -> None:
    """Against the released form of the read, in which only the query of one neuron is scaled."""
    model, idx, factor = stdp(form), ids(2, 9), -2.5
    with intervene(model, [ScaleSynapse(None, source, factor, layers=[1])]):
        _, trace = record(model, idx, "*")
    x, v = trace["layers.1.x_sparse"], trace["layers.0.v"]
    turn = ops.rotation(K, 0, 9, like=x)
    query = x.clone()
    query[:, source // K, :, source % K] *= factor
    t, s = torch.arange(9)[:, None], torch.arange(9)
    weight = (t > s).double().expand(2, 9, 9)
    part = model.parts.stdp
    if part is not None:
        lam = torch.exp(-part.rate())[:, None, None]  # type: ignore[operator]
        weight = weight * (1 + part.strength[:, None, None] * lam ** (t - s).clamp_min(0))
    expected = (ops.rotate(query, turn) @ ops.rotate(x, turn).mT * weight) @ v[:, None]
    assert error(trace["layers.1.attn_out"], expected) <= EXACT
    unscaled = (ops.rotate(x, turn) @ ops.rotate(x, turn).mT * weight) @ v[:, None]
    assert x[:, source // K, :, source % K].abs().max() > 0
    assert error(unscaled, expected) > CONTROL


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_cut_synapse_takes_its_term_from_one_gate(norm: str) -> None:
    model, idx = lively(norm=norm), ids(2, 9)
    source, target = 70, 100
    _, plain = record(model, idx, "*")
    with intervene(model, [ScaleSynapse(target, source, 0.0, layers=[0])]):
        _, trace = record(model, idx, "*")
    # sigma(i, j) as the sum over tokens
    x, v = plain["layers.0.x_sparse"], plain["embed"]
    turn = ops.rotation(K, 0, 9, like=x)
    column = model.encoder_v[target // K, :, target % K]
    if norm == "layer":
        column = column - column.mean()
    unit = torch.zeros(K, dtype=x.dtype)
    unit[source % K] = 1
    q = ops.rotate(x[:, 1], turn)
    axis = ops.rotate(unit.expand(9, K), turn)
    sigma = (axis @ q.mT).tril(-1) @ (v @ column)[..., None]  # (B, T, 1)
    a = plain["layers.0.attn_out"][:, 1]
    scale = (a.var(-1, unbiased=False) + 1e-5).sqrt()
    if norm == "rms":
        scale = (a.square().mean(-1) + torch.finfo(a.dtype).eps).sqrt()
    expected = plain["layers.0.y_pre"].clone()
    gone = sigma[..., 0] * x[:, 1, :, source % K] / scale
    assert gone.abs().max() > CONTROL
    expected[:, 1, :, target % K] -= gone
    assert error(trace["layers.0.y_pre"], expected) <= EXACT
    assert torch.equal(trace["layers.0.attn_out"], plain["layers.0.attn_out"])


def test_blocks_nest_and_may_end_in_any_order() -> None:
    model, idx = lively(), ids(1, 7)
    top = firing(model, idx)
    first, second = Ablate(top[:2]), Scale(top[2:], 4.0)
    plain = model(idx)[0]
    with intervene(model, [first, second]):
        both = model(idx)[0]
    with intervene(model, [first]):
        one = model(idx)[0]
        with intervene(model, [second]):
            assert torch.equal(model(idx)[0], both)
        assert torch.equal(model(idx)[0], one)
    # the inner one has the last word
    with intervene(model, [Clamp(top, 3.0)]), intervene(model, [Ablate(top)]):
        assert (record(model, idx)[1].neurons("x_sparse", 0)[..., top] == 0).all()
    outer, inner = intervene(model, [first]), intervene(model, [second])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    with intervene(model, [first]):
        assert error(model(idx)[0], both) <= EXACT  # they touch different neurons
    inner.__exit__(None, None, None)
    assert model.edits == ()
    assert torch.equal(model(idx)[0], plain)


def test_a_synapse_is_scaled_by_the_activity_that_an_inner_block_sets() -> None:
    model, idx = lively(), ids(1, 7)
    source = firing(model, idx)[0]
    row, double = ScaleSynapse(None, source, 0.0), Scale([source], 2.0)
    with intervene(model, [double, row]):
        expected = model(idx)[0]
    with intervene(model, [row]), intervene(model, [double]):
        assert torch.equal(model(idx)[0], expected)


def test_a_stream_takes_up_and_drops_an_intervention_between_tokens() -> None:
    model, idx = lively(dtype=torch.float32), ids(1, 5)
    ablation = Ablate(range(0, N, 2))
    called: list[str] = []
    stream = model.stream(idx, 4, seed=0)
    next(stream)
    with intervene(model, [ablation]):
        model.edits = (*model.edits, lambda idx, state: lambda name, seen: (called.append(name), seen)[1])
        next(stream)
        model.edits = model.edits[:-1]
    assert called == list(names_of(model))
    next(stream)
    assert called == list(names_of(model))


def test_kernels_that_cannot_be_changed_are_refused_where_asked_for() -> None:
    model, idx = lively(dtype=torch.float32), ids(1, 5)
    with intervene(model, [Ablate([1])]), pytest.raises(ValueError, match="no place for an intervention"):
        model.generate(idx, 2, precision="int8")


def test_training_feels_the_intervention() -> None:
    model, idx = lively(dtype=torch.float32).train(), ids(2, 8)
    top = firing(model, idx)
    _, plain = model(idx, idx)
    with intervene(model, [Scale(top, 4.0)]):
        _, loss = model(idx, idx)
    assert abs(loss - plain) > CONTROL
    loss.backward()
    assert model.encoder.grad is not None
    assert F.relu(model.encoder.grad.abs()).max() > 0


EVERY = [
    Ablate([1, 2], layers=[0]),
    Scale([5], 0.1, signal="y_sparse"),
    Clamp(torch.tensor([7]), -1.5),
    Patch("blocks.0.hook_resid_post", torch.tensor([[0.1, 1 / 3]]), positions=[4]),
    Patch("embed", torch.tensor([[0.1], [2.0]], dtype=torch.float64)),
    EraseTokens(range(3), layers=[1]),
    ScaleSynapse(None, 3, 2.0),
    ScaleSynapse(4, 3, 0.5, layers=[0, 1]),
]


@pytest.mark.parametrize("change", EVERY, ids=lambda change: type(change).__name__)
def test_written_as_json_and_read_again(change: Intervention) -> None:
    again = Intervention.from_dict(json.loads(json.dumps(change.to_dict())))
    assert again == change
    assert hash(again) == hash(change)
    assert again.to_dict() == change.to_dict()
    assert sum(again == other for other in EVERY) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ablate([]), "neurons: expected one or more integers"),
        (lambda: Ablate([-1]), "integers >= 0"),
        (lambda: Ablate([1.5]), "integers >= 0"),  # type: ignore[list-item]
        (lambda: Ablate("12"), "integers >= 0"),  # type: ignore[arg-type]
        (lambda: Ablate([1], signal="x"), "expected one of x_sparse"),
        (lambda: Scale([1], float("nan")), "factor: expected a finite number"),
        (lambda: Clamp([1], True), "value: expected a finite number"),
        (lambda: Patch("embed", torch.ones(3)), r"\(\.\.\., P, width\)"),
        (lambda: Patch("embed", torch.ones(2, 3), positions=[1]), "expected 2 different ones"),
        (lambda: Patch("embed", torch.ones(2, 3), positions=[1, 1]), "expected 2 different ones"),
        (lambda: ScaleSynapse(None, -3, 1.0), "source"),
        (lambda: EraseTokens([]), "positions"),
        (lambda: Intervention.from_dict({"kind": "Ablete"}), "did you mean 'Ablate'"),
        (lambda: Intervention.from_dict({"kind": "Ablate"}), "neurons"),
        (lambda: Intervention.from_dict({"kind": "Ablate", "neurons": [1], "neuron": 2}), "neuron"),
        (lambda: Intervention.from_dict({"kind": "Patch", "name": "embed", "values": {"dtype": "x"}}), "values"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Ablate([N]), r"global neuron ids 0\.\.127 \(head\*64 \+ k\), got 128"),
        (Ablate([0], layers=[3]), r"layers: expected 0\.\.2, got 3"),
        (EraseTokens([0], layers=[9]), r"expected 0\.\.2"),
        (ScaleSynapse(None, 500, 1.0), r"source.*0\.\.127"),
        (ScaleSynapse(500, 1, 1.0), r"target.*0\.\.127"),
        (ScaleSynapse(1, 70, 1.0), "heads 0 and 1"),
        (Patch("layers.0.vv", torch.ones(1, D)), r"did you mean 'layers\.0\.v'"),
        (Patch("layers.0.v", torch.ones(1, D + 1)), r"expected a shape like \(1, 1, 16\)"),
        (Patch("layers.0.x_sparse", torch.ones(3, 1, K)), r"expected a shape like \(1, 2, 1, 64\)"),
        ("Ablate", "expected Ablate, "),
    ],
)
def test_what_the_model_does_not_have_is_refused_at_once(change: Intervention, words: str) -> None:
    model = lively()
    with pytest.raises(ValueError, match=words), intervene(model, [change]):
        pytest.fail("the block was entered")
    assert model.edits == ()


def test_a_single_intervention_goes_into_a_list() -> None:
    with pytest.raises(ValueError, match="expected a list"), intervene(lively(), Ablate([1])):  # type: ignore[arg-type]
        pytest.fail("the block was entered")


def test_spikes_can_only_be_seen() -> None:
    model = lively("hatching")
    patch = Patch("layers.0.spikes", torch.ones(1, K))
    with pytest.raises(ValueError, match="patch x_sparse"), intervene(model, [patch]):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("change", [ScaleSynapse(None, 1, 0.0), EraseTokens([1])])
def test_a_memory_of_pairs_of_tokens_is_refused(change: Intervention) -> None:
    with pytest.raises(ValueError, match="writes pairs"), intervene(stdp("trace"), [change]):
        pytest.fail("the block was entered")


def test_values_for_another_number_of_sequences_are_refused() -> None:
    model = lively()
    with intervene(model, [Patch("embed", torch.ones(3, 1, D))]), pytest.raises(ValueError, match="3 sequences"):
        model(ids(2, 4))


def test_a_position_that_is_never_read_is_an_error_at_the_end() -> None:
    model = lively()
    with pytest.raises(ValueError, match="token 7 was to be changed"), intervene(model, [EraseTokens([2, 7])]):
        model(ids(1, 5))
    assert model.edits == ()
    # unless nothing was read at all, or another error is on its way
    with intervene(model, [EraseTokens([2, 7])]):
        pass
    with pytest.raises(KeyError), intervene(model, [EraseTokens([7])]):
        model(ids(1, 5))
        raise KeyError
