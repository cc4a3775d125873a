"""Recording shows what the model computed and changes nothing."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdh import BDH, BDHConfig
from bdh.lens import Trace, names_of, record


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
