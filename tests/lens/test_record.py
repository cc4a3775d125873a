"""Recording shows what the model computed and changes nothing."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bdh import BDH, BDHConfig
from bdh.lens import SIGNALS, Trace, names_of, record
from tolerances import CONTROL, SAME, error


def tiny(dropout: float = 0.0, n_layer: int = 2, seed: int = 0) -> BDH:
    torch.manual_seed(seed)
    return BDH(BDHConfig(n_layer=n_layer, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, dropout=dropout))


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3))
def test_recording_changes_no_logit(batch: int, length: int, n_layer: int) -> None:
    model, idx = tiny(n_layer=n_layer).eval(), ids(batch, length)
    logits, trace = record(model, idx, "*")
    assert torch.equal(logits, model(idx)[0])
    assert torch.equal(trace["logits"], logits)
    # a training pass may take the fast kernels, which round differently
    torch.testing.assert_close(logits, model.train()(idx)[0], rtol=1e-5, atol=1e-6)


def test_known_names_are_the_names_the_model_calls() -> None:
    called = []
    model = tiny(n_layer=3)
    model(ids(1, 2), tap=lambda name, tensor: (called.append(name), tensor)[1])
    assert names_of(model) == tuple(called)


def test_tensors_are_those_of_the_equations() -> None:
    model, idx = tiny(), ids(2, 5)
    _, trace = record(model, idx, "*")
    v = trace["embed"]
    for level in range(2):
        x, y = trace[f"layers.{level}.x_sparse"], trace[f"layers.{level}.y_sparse"]
        torch.testing.assert_close(x, torch.relu(v[:, None] @ model.encoder))
        assert torch.equal(trace[f"layers.{level}.xy_sparse"], x * y)
        v = trace[f"layers.{level}.v"]
    # the other level's residual stream gives other neurons
    assert not torch.allclose(trace["layers.0.x_sparse"], torch.relu(v[:, None] @ model.encoder), atol=1e-3)


def test_neurons_are_numbered_head_times_k() -> None:
    model, idx = tiny(), ids(2, 5)
    _, trace = record(model, idx, ("layers.1.*_sparse",))
    K = model.config.neurons_per_head
    for signal in ("x_sparse", "y_sparse", "xy_sparse"):
        flat, tensor = trace.neurons(signal, 1), trace[f"layers.1.{signal}"]
        assert flat.shape == (2, 5, 64)
        for head in range(2):
            for k in range(K):
                assert torch.equal(flat[:, :, head * K + k], tensor[:, head, :, k])
    # the gated neurons in this order are what the decoder reads: row = global id
    write = trace.neurons("xy_sparse", 1) @ model.decoder
    assert write.shape == (2, 5, 16)


@pytest.mark.parametrize("training", [True, False])
def test_mode_gradients_and_weights_are_left_alone(training: bool) -> None:
    model = tiny(dropout=0.5).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, trace = record(model, ids(1, 4), "*")
    assert model.training is training
    assert all(not tensor.requires_grad for tensor in trace.values())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("names", "near"),
    [
        ("layers.*.x_spares", "layers.0.x_sparse"),
        (("layers.0.x_sparse", "layer.1.v"), "layers.1.v"),
        ("layers.7.x_sparse", "layers.0.x_sparse"),
        ("logit", "logits"),
    ],
)
def test_a_pattern_without_a_match_is_an_error_with_near_names(names: str | tuple[str, ...], near: str) -> None:
    with pytest.raises(ValueError, match=f"matches nothing.*{near}"):
        record(tiny(), ids(1, 2), names)


def test_no_pattern_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one name"):
        record(tiny(), ids(1, 2), ())


def test_only_what_was_asked_for_is_kept_in_the_order_of_the_model() -> None:
    _, trace = record(tiny(), ids(1, 3), ["logits", "layers.[01].v", "layers.0.v"])
    assert trace.names == ("layers.0.v", "layers.1.v", "logits")
    assert "layers.0.x_sparse" not in trace
    assert dict(trace.items()).keys() == set(trace.names)


def test_a_trace_explains_what_is_missing_and_cannot_be_changed() -> None:
    _, trace = record(tiny(), ids(1, 3))
    with pytest.raises(KeyError, match=r"not recorded.*layers\.0\.x_sparse"):
        trace["layers.0.x_spars"]
    with pytest.raises(ValueError, match="add it to names="):
        trace.neurons("y_sparse", 0)
    with pytest.raises(ValueError, match="x_sparse, y_sparse, xy_sparse"):
        trace.neurons("v", 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trace.tensors = {}  # type: ignore[misc]


def test_to_moves_every_tensor() -> None:
    moved = Trace({"a": torch.ones(2)}).to("meta")
    assert moved["a"].device.type == "meta"


def lively(variant: str, seed: int = 0) -> BDH:
    """In float64, with weights so large that what the memory holds matters."""
    shape = {"n_layer": 3, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.0}
    model = BDH.from_seed(BDHConfig(**shape, variant=variant), seed).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (model.embed.weight, model.decoder, model.lm_head):
            parameter.mul_(10)
    return model


@pytest.mark.parametrize("variant", ["bdh", "hatching"])
def test_every_mode_sees_the_same(variant: str) -> None:
    model = lively(variant)
    _, generated = record(model, ids(2, 7), "*", mode="generate", max_new_tokens=6, seed=3)
    text = generated.idx
    assert text is not None
    assert torch.equal(text, model.generate(ids(2, 7), 6, seed=3))
    logits, parallel = record(model, text[:, :-1], "*")
    logits_by_token, recurrent = record(model, text[:, :-1], "*", mode="recurrent")
    assert error(logits_by_token, logits) <= SAME[torch.float64]
    assert parallel.names == recurrent.names == generated.names == names_of(model)
    for name, tensor in parallel.items():
        for other in (recurrent[name], generated[name]):
            assert other.shape == tensor.shape
            assert error(other, tensor) <= SAME[torch.float64], name
    # the equality is not that of all tokens with each other, nor of nothing
    assert (parallel["logits"][:, 1:] - parallel["logits"][:, :-1]).abs().max() > CONTROL
    if variant == "hatching":
        assert 0 < parallel["layers.1.spikes"].mean() < 1


def test_a_long_prompt_is_recorded_over_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdh.generate.PREFILL_BLOCK", 3)
    model = lively("bdh")
    _, trace = record(model, ids(1, 8), "layers.*.attn_out", mode="generate", max_new_tokens=0)
    _, whole = record(model, ids(1, 8), "layers.*.attn_out")
    for name, tensor in whole.items():
        assert error(trace[name], tensor) <= SAME[torch.float64]


@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_sparse_recording_has_the_same_entries(mode: str) -> None:
    model = lively("hatching")
    _, dense = record(model, ids(2, 5), "*", mode=mode)  # type: ignore[arg-type]
    _, sparse = record(model, ids(2, 5), "*", mode=mode, sparse=True)  # type: ignore[arg-type]
    for name, tensor in sparse.items():
        assert tensor.is_sparse == name.endswith(("_sparse", "spikes")), name
        assert torch.equal(tensor.to_dense() if tensor.is_sparse else tensor, dense[name])
    for signal in SIGNALS:
        assert torch.equal(sparse.neurons(signal, 1).to_dense(), dense.neurons(signal, 1))
    assert sparse["layers.0.spikes"].values().numel() < dense["layers.0.spikes"].numel()


def test_spikes_are_a_name_only_where_neurons_spike() -> None:
    assert "layers.0.spikes" in names_of(lively("hatching"))
    assert not [name for name in names_of(lively("bdh")) if "spikes" in name]
    for pattern in ("layers.*.spikes", "blocks.0.hook_spikes"):
        with pytest.raises(ValueError, match="matches nothing"):
            record(lively("bdh"), ids(1, 2), pattern)
    called: list[str] = []
    model = lively("hatching")
    model(ids(1, 2), tap=lambda name, tensor: (called.append(name), tensor)[1])
    assert names_of(model) == tuple(called)


def test_a_name_that_the_model_does_not_make_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr("bdh.model.at_level", lambda tap, level, name, tensor: tensor)
    with pytest.raises(ValueError, match=r"did not make layers\.0\.v"):
        record(model, ids(1, 2), ("layers.0.v", "embed"))


def test_a_recording_too_large_is_refused_before_the_model_runs() -> None:
    model = tiny()
    _, trace = record(model, ids(2, 5), "layers.*")
    assert record(model, ids(2, 5), "layers.*", limit=trace.nbytes)[1].nbytes == trace.nbytes
    model.edits = (lambda idx, state: pytest.fail("the model ran"),)
    words = rf"at most limit={trace.nbytes - 1:,} bytes, got {trace.nbytes:,} bytes.*'layers\.\*\.x_pre'"
    with pytest.raises(ValueError, match=words):
        record(model, ids(2, 5), "layers.*", limit=trace.nbytes - 1)
    with pytest.raises(ValueError, match="got"):
        record(model, ids(2, 3), "layers.*", mode="generate", max_new_tokens=4, limit=trace.nbytes)
    # the default is two GiB
    with pytest.raises(ValueError, match="2,147,483,648"):
        record(model, torch.zeros(1, 2**22, dtype=torch.int64), "layers.*")


def test_a_sparse_recording_stops_at_the_limit() -> None:
    _, trace = record(tiny(), ids(2, 5), sparse=True)
    assert record(tiny(), ids(2, 5), sparse=True, limit=trace.nbytes)[1].nbytes == trace.nbytes
    with pytest.raises(ValueError, match="more than"):
        record(tiny(), ids(2, 5), sparse=True, limit=trace.nbytes - 1)


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "backwards"}, {"mode": "generate"}, {"max_new_tokens": 3}, {"mode": "recurrent", "seed": 1}],
)
def test_arguments_of_another_mode_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="mode="):
        record(tiny(), ids(1, 2), **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["parallel", "recurrent"])
def test_what_is_no_batch_of_texts_is_refused_in_every_mode(mode: str) -> None:
    for wrong in (ids(4), ids(1, 0)):
        with pytest.raises(ValueError, match="expected a non-empty integer tensor"):
            record(tiny(), wrong, mode=mode)  # type: ignore[arg-type]


def test_nothing_stays_behind_when_a_watched_generation_fails() -> None:
    model = tiny()
    with pytest.raises(ValueError, match="temperature"):
        record(model, ids(1, 2), mode="generate", max_new_tokens=2, temperature=-1.0)
    assert model.edits == ()


class Work(TorchDispatchMode):
    """Lists every tensor operation that is run."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.done.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", ["bdh", "hatching", "advanced"])
def test_recording_is_no_work_beyond_the_pass(variant: str) -> None:
    """What the pass made is kept as it is: no operation and no copy is added, so the cost does not grow with size."""
    config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, variant=variant)
    model, idx = BDH.from_seed(config, 0).eval(), ids(2, 5)
    model(idx)  # rotations are computed once
    with torch.no_grad(), Work() as plain:
        model(idx)
    with Work() as recorded:
        record(model, idx)
    with Work() as everything:
        record(model, idx, "*")
    with Work() as sparse:
        record(model, idx, sparse=True)
    assert recorded.done == everything.done == plain.done
    assert len(sparse.done) > len(plain.done)  # the count sees work where there is some
