"""The parts in one network: every parameter learns, the future stays out, and the constraints hold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bdh import BDHConfig, ops
from bdh.mechanisms import (
    BCMHomeostasis,
    CriticalityRegulator,
    DaleLaw,
    Dendrites,
    Homeostatic,
    Neuromodulation,
    ScaleFree,
    sign_purity,
)
from tolerances import CONTROL, error

CONFIG = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=8, vocab_size=16)


class Network(nn.Module):
    """Two levels of the model, with every part of this room that is not exclusive of another."""

    def __init__(self) -> None:
        super().__init__()
        H, D, K, L = CONFIG.n_head, CONFIG.n_embd, CONFIG.neurons_per_head, CONFIG.n_layer
        self.embed = nn.Embedding(CONFIG.vocab_size, D)
        self.encoder, self.encoder_v = (nn.Parameter(0.02 * torch.randn(H, D, K)) for _ in range(2))
        self.decoder = nn.Parameter(0.02 * torch.randn(H * K, D))
        self.lm_head = nn.Parameter(0.02 * torch.randn(D, CONFIG.vocab_size))
        self.connections, self.law = ScaleFree(H, K, D), DaleLaw(H, K)
        self.dendrites, self.modulation = Dendrites(H), Neuromodulation(D, H)
        self.bcm = nn.ModuleList(BCMHomeostasis(H, K, target=0.05) for _ in range(L))
        self.criticality = nn.ModuleList(CriticalityRegulator(steps=10) for _ in range(L))
        for encoder in (self.encoder, self.encoder_v):
            self.connections.equalize(encoder)
        for weight in (self.encoder, self.encoder_v, self.decoder):
            self.connections.attach(weight)
        self.law.fold([self.encoder, self.encoder_v], self.decoder)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        norm = (CONFIG.n_embd,)
        v = F.layer_norm(self.embed(idx), norm)
        turn = ops.rotation(CONFIG.neurons_per_head, 0, idx.shape[1], like=v)
        for bcm, criticality in zip(self.bcm, self.criticality, strict=True):
            x = bcm(self.dendrites(v[:, None], self.encoder)).relu()
            bcm.observe(x)
            a = ops.attention_read(ops.rotate(x, turn), v)
            gain, _ = self.modulation(v)
            y = criticality(gain * (F.layer_norm(a, norm) @ self.encoder_v)).relu()
            criticality.observe(y)
            v = F.layer_norm(v + F.layer_norm((x * y).transpose(1, 2).flatten(2) @ self.decoder, norm), norm)
        return v @ self.lm_head

    def after_step(self) -> None:
        self.law.project([self.encoder, self.encoder_v], self.decoder)
        for part in self.modules():
            if isinstance(part, Homeostatic):
                part.homeostasis_step()


def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network()


def copy_loss(model: Network, seed: int, lag: int = 2) -> torch.Tensor:
    idx = torch.randint(0, CONFIG.vocab_size, (8, 40), generator=torch.Generator().manual_seed(seed))
    return F.cross_entropy(model(idx)[:, lag:].flatten(0, 1), idx[:, :-lag].flatten())


def test_every_parameter_has_a_gradient_at_the_start() -> None:
    model = network()
    copy_loss(model, 0).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.norm() > 1e-4, name


@pytest.mark.parametrize("training", [True, False])
def test_later_tokens_change_nothing_before_them(training: bool) -> None:
    model = network().train(training)
    for seed in range(3):
        copy_loss(model, seed)
        model.after_step()
    idx = torch.randint(0, CONFIG.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
    other = idx.clone()
    other[:, 30:] = 7
    one, two = model(idx), model(other)
    assert torch.equal(one[:, :30], two[:, :30])
    assert error(two[:, 30:], one[:, 30:]) > CONTROL


def test_it_learns_what_needs_memory_under_all_constraints() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    for step in range(90):
        copy_loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
    # the token of two steps ago, drawn from 16: without memory ln 16 = 2.77 is the floor
    assert copy_loss(model.eval(), 1000).item() < 2.0
    assert (model.decoder[~model.connections.mask] == 0).all()
    assert (sign_purity(model.decoder.detach()) == 1).all()
    assert (model.encoder >= 0).all()
    assert (model.encoder_v >= 0).all()
