"""Degrees follow the power law exactly, and training keeps missing connections missing."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import power_law
from bdh.mechanisms import ScaleFree, pack_mask, scale_free_degrees, scale_free_mask, unpack_mask

N, D, GAMMA, K_MIN = 32768, 256, 2.5, 8


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    return scale_free_mask(N, D)


def test_degrees_follow_the_power_law(mask: torch.Tensor) -> None:
    degrees = mask.sum(1)
    assert torch.equal(degrees, scale_free_degrees(N, D))
    gamma, sigma = power_law.fit(degrees, K_MIN, D)
    assert abs(gamma - GAMMA) < 3 * sigma
    assert sigma < 0.01
    assert power_law.kolmogorov_smirnov(degrees, K_MIN, D, gamma) < 1.63 / N**0.5
    # a hub that reaches everything, and a mean far above the median
    assert (degrees.min().item(), degrees.max().item()) == (K_MIN, D)
    assert mask.float().mean().item() == pytest.approx(0.073, abs=0.002)


def test_a_fit_that_does_not_know_the_width_is_wrong(mask: torch.Tensor) -> None:
    known, sigma = power_law.fit(mask.sum(1), K_MIN, D)
    unknown, _ = power_law.fit(mask.sum(1), K_MIN, 100_000)
    assert unknown - known > 4 * sigma


def test_a_uniform_mask_is_not_scale_free() -> None:
    degrees = (torch.rand(N, D, generator=torch.Generator().manual_seed(0)) < 0.1).sum(1)
    gamma, sigma = power_law.fit(degrees, K_MIN, D)
    assert abs(gamma - GAMMA) > 30 * sigma
    assert power_law.kolmogorov_smirnov(degrees, K_MIN, D, gamma) > 0.3


def test_every_place_of_the_stream_is_connected_about_equally(mask: torch.Tensor) -> None:
    columns = mask.sum(0).double()
    expected = mask.sum() / D
    # a sum of independent choices: its variance is at most its mean
    assert ((columns - expected).abs() < 6 * expected.sqrt()).all()


@given(st.integers(1, 40), st.integers(1, 33), st.floats(0.5, 4.0), st.integers(0, 1000), st.data())
def test_rows_have_exactly_their_degree(n: int, width: int, gamma: float, seed: int, data: st.DataObject) -> None:
    k_min = data.draw(st.integers(1, width))
    mask = scale_free_mask(n, width, gamma, k_min, seed)
    degrees = mask.sum(1)
    assert torch.equal(degrees, scale_free_degrees(n, width, gamma, k_min, seed))
    assert degrees.min() >= k_min
    assert torch.equal(mask, scale_free_mask(n, width, gamma, k_min, seed))
    assert torch.equal(unpack_mask(pack_mask(mask), width), mask)


def test_the_mask_fits_a_byte_per_eight(mask: torch.Tensor) -> None:
    assert pack_mask(mask).nbytes == N * D // 8
    assert not torch.equal(mask, scale_free_mask(N, D, seed=1))


@pytest.mark.parametrize(("k_min", "gamma"), [(0, 2.5), (17, 2.5), (8, 0.0), (8, float("nan"))])
def test_impossible_laws_are_refused(k_min: int, gamma: float) -> None:
    with pytest.raises(ValueError, match=r"expected .*;"):
        scale_free_degrees(10, 16, gamma, k_min)


H, K, WIDTH = 2, 100, 32


def weights(seed: int = 0) -> tuple[nn.Parameter, nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(H, WIDTH, K, generator=g)), nn.Parameter(torch.randn(H * K, WIDTH, generator=g))


def train(encoder: nn.Parameter, decoder: nn.Parameter, steps: int) -> None:
    optimizer = torch.optim.AdamW([encoder, decoder], lr=1e-2, weight_decay=0.1)
    x = torch.randn(4, 1, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        for half in x.chunk(2):  # gradients of two micro-batches add up
            y = (half @ encoder).relu().transpose(1, 2).flatten(2) @ decoder
            ((y - 1) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_missing_connections_stay_missing_through_training() -> None:
    part = ScaleFree(H, K, WIDTH)
    encoder, decoder = weights()
    part.attach(encoder)
    part.attach(decoder)
    before = decoder.detach().clone()
    assert torch.equal(before, weights()[1].detach() * part.mask)
    train(encoder, decoder, 50)
    # one mask per neuron: row i of the decoder is column i of the encoder
    assert (decoder[~part.mask] == 0).all()
    assert (encoder.transpose(1, 2).flatten(0, 1)[~part.mask] == 0).all()
    assert (decoder[part.mask] != before[part.mask]).all()
    assert (encoder.transpose(1, 2).flatten(0, 1)[part.mask] != 0).all()


def test_without_the_hook_they_grow_back() -> None:
    part = ScaleFree(H, K, WIDTH)
    encoder, decoder = weights()
    part.attach(encoder)
    part.attach(decoder)
    # what copy.deepcopy gives has the weights and not the hooks, as the documentation of attach says
    encoder, decoder = copy.deepcopy((encoder, decoder))
    train(encoder, decoder, 1)
    assert (decoder[~part.mask] != 0).any()


def test_the_gradient_norm_counts_existing_connections_only() -> None:
    part = ScaleFree(H, K, WIDTH)
    encoder, _ = weights()
    part.attach(encoder)
    (encoder.sum() * 3).backward()
    assert encoder.grad.norm().item() == pytest.approx(3 * part.degrees().sum().item() ** 0.5)


def test_hubs_fire_no_more_than_others() -> None:
    part = ScaleFree(1, 2000, 256)
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    for equalized in (True, False):
        encoder = nn.Parameter(0.02 * torch.randn(1, 256, 2000, generator=torch.Generator().manual_seed(1)))
        if equalized:
            part.equalize(encoder)
        part.attach(encoder)
        variance = (x @ encoder[0]).var(0).detach()
        hubs = part.degrees() > 64
        ratio = (variance[hubs].mean() / variance[~hubs].mean()).item()
        if equalized:
            assert ratio == pytest.approx(1.0, abs=0.05)
            assert variance.mean().item() == pytest.approx(256 * 0.02**2, rel=0.05)
        else:
            assert ratio > 3


def test_the_checkpoint_holds_the_mask_and_not_the_seed() -> None:
    part, other = ScaleFree(H, K, WIDTH, seed=0), ScaleFree(H, K, WIDTH, seed=1)
    assert list(part.state_dict()) == ["packed"]
    _, decoder = weights()
    other.attach(decoder)
    other.load_state_dict(part.state_dict())
    assert torch.equal(other.mask, part.mask)
    # the hook follows the loaded mask
    decoder.sum().backward()
    assert torch.equal(decoder.grad != 0, part.mask)


def test_casts_leave_the_mask_alone() -> None:
    part = ScaleFree(H, K, WIDTH)
    mask = part.mask
    encoder = nn.Parameter(weights()[0].detach().bfloat16())
    part.to(torch.bfloat16)
    part.attach(encoder)
    part.equalize(encoder)
    assert encoder.dtype == torch.bfloat16
    assert torch.equal(part.mask, mask)


def test_a_weight_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a decoder \(200, 32\) or an encoder \(2, 32, 100\)"):
        ScaleFree(H, K, WIDTH).attach(nn.Parameter(torch.zeros(32, 200)))
