"""Signs of neurons: what they cost, where they bind, and that training keeps them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bdh import BDH, BDHConfig
from bdh.mechanisms import (
    DaleLaw,
    DaleLawLinear,
    ScaleFree,
    ei_balance,
    graph_purity,
    neuron_signs,
    sign_purity,
    singular_value_entropy,
    to_dale,
)
from tolerances import CONTROL, SAME, error

IDX = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


@given(st.integers(1, 4), st.integers(2, 40), st.floats(0.05, 0.95), st.integers(0, 100))
def test_each_head_has_exactly_the_share(n_head: int, per_head: int, share: float, seed: int) -> None:
    count = round(share * per_head)
    if count in (0, per_head):
        with pytest.raises(ValueError, match="both kinds"):
            neuron_signs(n_head, per_head, share, seed)
        return
    signs = neuron_signs(n_head, per_head, share, seed)
    assert (signs.abs() == 1).all()
    assert ((signs.unflatten(0, (n_head, per_head)) > 0).sum(1) == count).all()
    assert torch.equal(signs, neuron_signs(n_head, per_head, share, seed))


def test_signs_are_scattered_over_the_frequencies_of_a_head() -> None:
    quarters = (neuron_signs(4, 4000) > 0).unflatten(0, (4, 4, 1000)).float().mean(2)
    assert ((quarters - 0.8).abs() < 0.05).all()
    assert not torch.equal(neuron_signs(1, 100, seed=0), neuron_signs(1, 100, seed=1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_converted_model_computes_the_same(tiny: BDH, dtype: torch.dtype) -> None:
    model = tiny.to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dale = to_dale(model)
    signs = neuron_signs(model.config.n_head, model.config.neurons_per_head)
    assert (dale.encoder >= 0).all()
    assert (dale.encoder_v >= 0).all()
    assert (dale.decoder * signs[:, None] >= 0).all()
    assert (sign_purity(dale.decoder) == 1).all()
    assert (sign_purity(model.decoder) < 1).all()
    assert error(dale(IDX)[0], model(IDX)[0]) <= SAME[dtype]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_computes_the_same_in_training_too(tiny: BDH) -> None:
    model = tiny.double().train()
    model.drop.p = 0.3
    dale = to_dale(model)
    losses, gradients = [], []
    for each in (model, dale):
        torch.manual_seed(0)
        loss = each(IDX[:, :-1], IDX[:, 1:])[1]
        loss.backward()
        losses.append(loss.detach())
        gradients.append(each.embed.weight.grad)
    assert error(losses[1], losses[0]) <= SAME[torch.float64]
    assert error(gradients[1], gradients[0]) <= SAME[torch.float64]


def test_without_centring_the_law_binds(tiny: BDH) -> None:
    dale = to_dale(tiny)
    for model in (tiny, dale):
        model._norm = nn.functional.rms_norm
    assert error(dale(IDX)[0], tiny(IDX)[0]) > CONTROL


def test_a_model_that_does_not_centre_is_not_converted() -> None:
    model = BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, norm="rms"))
    with pytest.raises(ValueError, match="norm='rms'"):
        to_dale(model)


def test_a_decoder_of_one_sign_by_clamping_is_another_model(tiny: BDH) -> None:
    clamped = to_dale(tiny)
    with torch.no_grad():
        clamped.decoder.copy_(tiny.decoder.clamp(min=0))
    assert error(clamped(IDX)[0], tiny(IDX)[0]) > CONTROL


def test_masked_models_are_not_shifted(tiny: BDH) -> None:
    tiny.scale_free = ScaleFree(2, 64, 16)
    with pytest.raises(ValueError, match="ScaleFree"):
        to_dale(tiny)


def test_the_graph_is_pure_and_what_the_norm_leaves_of_it_is_not() -> None:
    model = BDH.from_seed(BDHConfig(n_layer=1, n_embd=32, n_head=2, mlp_internal_dim_multiplier=32), 0)
    dale = to_dale(model)
    before, after = graph_purity(model.encoder, model.decoder), graph_purity(dale.encoder, dale.decoder)
    assert before.raw.max() < 0.5
    assert after.raw.min().item() == pytest.approx(1.0, abs=1e-6)
    assert after.effective.max() < 0.5
    # the shift is invisible to the effective graph
    assert error(after.effective, before.effective) <= 1e-4


def test_graph_purity_equals_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdh.mechanisms.dale._BLOCK", 7)
    g = torch.Generator().manual_seed(0)
    encoder = torch.rand(2, 8, 15, generator=g, dtype=torch.float64) - 0.3
    decoder = torch.randn(30, 8, generator=g, dtype=torch.float64)
    columns = torch.cat([encoder[0], encoder[1]], dim=1)
    centring = torch.eye(8, dtype=torch.float64) - 1 / 8
    for got, graph in zip(
        graph_purity(encoder, decoder), (decoder @ columns, decoder @ centring @ columns), strict=True
    ):
        assert error(got, graph.sum(1).abs() / graph.abs().sum(1)) <= SAME[torch.float64]


def test_measures_of_small_matrices() -> None:
    weight = torch.tensor([[1.0, 3.0], [-2.0, -1.0], [1.0, -1.0], [0.0, 0.0]])
    assert sign_purity(weight).tolist() == [1.0, 1.0, 0.0, 1.0]
    assert ei_balance(weight).tolist() == [1.0, pytest.approx(2 / 3)]
    assert singular_value_entropy(torch.eye(5)) == pytest.approx(1.0)
    assert singular_value_entropy(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)


def test_the_start_is_balanced_and_of_unit_variance() -> None:
    torch.manual_seed(0)
    layer = DaleLawLinear(4000, 300)
    x = torch.randn(500, 4000).relu()
    y = layer(x).detach()
    assert y.mean().abs() < 0.15
    assert y.var().item() == pytest.approx(1.0, abs=0.1)
    assert ei_balance(layer.weight().detach()).mean().item() == pytest.approx(1.0, abs=0.02)
    # without the ratio of the numbers in the inhibitory strength the mean would be far from zero
    unbalanced = (x @ (layer.weight().detach().sign() * layer.magnitude.detach()[layer.signs > 0].mean())).mean()
    assert unbalanced.abs() > 2


def test_the_start_uses_its_directions() -> None:
    torch.manual_seed(0)
    assert singular_value_entropy(DaleLawLinear(4096, 256).weight()) == pytest.approx(0.975, abs=0.005)
    # magnitudes from a softplus of small numbers are all alike
    alike = neuron_signs(1, 4096)[:, None] * nn.functional.softplus(0.02 * torch.randn(4096, 256))
    assert singular_value_entropy(alike) < 0.4


def adamw_steps(layer: DaleLawLinear, steps: int, *, project: bool) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.1)
    x = torch.randn(64, layer.magnitude.shape[0], generator=torch.Generator().manual_seed(0)).relu()
    target = torch.randn(64, layer.magnitude.shape[1], generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        ((layer(x) - target) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if project:
            layer.project()


def test_signs_hold_through_training() -> None:
    torch.manual_seed(0)
    layer = DaleLawLinear(50, 20)
    adamw_steps(layer, 50, project=True)
    assert (layer.weight() * layer.signs[:, None] >= 0).all()
    zero = layer.magnitude == 0
    assert 0 < zero.sum() < zero.numel()
    adamw_steps(layer, 50, project=True)
    # a synapse that was zero can come back, with the sign of its neuron
    assert (layer.magnitude[zero] > 0).any()
    adamw_steps(layer, 1, project=False)
    assert (layer.magnitude < 0).any()


def test_gradients_reach_synapses_of_zero() -> None:
    layer = DaleLawLinear(5, 3)
    nn.init.zeros_(layer.magnitude)
    layer(torch.ones(1, 5)).sum().backward()
    assert torch.equal(layer.magnitude.grad, layer.signs[:, None].expand(5, 3).float())
    assert layer.bias.grad.tolist() == [1.0, 1.0, 1.0]


def test_a_checkpoint_keeps_the_signs() -> None:
    layer, other = DaleLawLinear(50, 20, seed=1), DaleLawLinear(50, 20, seed=2, bias=True)
    assert not torch.equal(layer.signs, other.signs)
    other.load_state_dict(layer.state_dict())
    x = torch.rand(3, 50)
    assert torch.equal(other(x), layer(x))
    half = layer.to(torch.bfloat16)
    assert half.signs.dtype == torch.int8
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert DaleLawLinear(50, 20, bias=False).bias is None


def masked_weights(law: DaleLaw) -> tuple[ScaleFree, nn.Parameter, nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    part = ScaleFree(2, 400, 64)
    encoder = nn.Parameter(0.02 * torch.randn(2, 64, 400, generator=g))
    decoder = nn.Parameter(0.02 * torch.randn(800, 64, generator=g))
    part.attach(encoder)
    part.attach(decoder)
    return part, encoder, decoder


def test_folded_weights_obey_are_balanced_and_keep_their_zeros() -> None:
    law = DaleLaw(2, 400)
    part, encoder, decoder = masked_weights(law)
    law.fold([encoder], decoder)
    assert (encoder >= 0).all()
    assert (decoder * law.signs[:, None] >= 0).all()
    assert torch.equal(decoder != 0, part.mask)
    balance = ei_balance(decoder.detach())
    assert balance.mean().item() == pytest.approx(1.0, abs=0.1)


def test_the_law_and_the_mask_hold_together_through_training() -> None:
    law = DaleLaw(2, 400)
    part, encoder, decoder = masked_weights(law)
    law.fold([encoder], decoder)
    optimizer = torch.optim.AdamW([encoder, decoder], lr=0.01, weight_decay=0.1)
    x = torch.randn(4, 1, 5, 64, generator=torch.Generator().manual_seed(1))
    for _ in range(50):
        y = (x @ encoder).relu().transpose(1, 2).flatten(2) @ decoder
        ((y - 1) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        law.project([encoder], decoder)
    assert (encoder >= 0).all()
    assert (sign_purity(decoder.detach()) == 1).all()
    assert (decoder[~part.mask] == 0).all()
    # a constraint on the weights, but the centring between decoder and encoder still mixes the signs
    purity = graph_purity(encoder, decoder)
    assert purity.raw.min().item() == pytest.approx(1.0, abs=1e-6)
    assert purity.effective.mean() < 0.2
