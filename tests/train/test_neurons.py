"""Neurons shared out over processes are the whole model: logits, gradients, memory; and what they tell each other."""

import pytest
import torch

from bdh import BDH, BDHConfig
from bdh.train import NeuronShard, World, joined
from bdh.train.neurons import Share
from ranks import on_ranks
from tolerances import CONTROL, SAME, error

CONFIG = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0)
B, T = 3, 11


def whole(config: BDHConfig) -> BDH:
    """A model whose activations are far from zero, so that errors show."""
    model = BDH.from_seed(config, 0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


def texts() -> torch.Tensor:
    return torch.randint(256, (B, T + 1), generator=torch.Generator().manual_seed(0))


def compared(config: BDHConfig, pool_reads: bool = True) -> dict[str, object]:
    """Compare this rank's shard with the whole model."""
    model, text = whole(config), texts()
    idx, targets = text[:, :-1], text[:, 1:]
    expected, expected_loss = model(idx, targets)
    expected_loss.backward()
    _, before = model.advance(idx[:, :5])
    later, after = model.advance(idx[:, 5:], before)
    with joined(30.0) as world:
        shard = NeuronShard.of(model, world)
        if not pool_reads:
            shard.edits = ()
        logits, loss = shard(idx, targets)
        loss.backward()
        shard.share_gradients()
        told = dict(shard.told)
        parts = shard.share.cut({name: p.grad for name, p in model.named_parameters()})
        with torch.no_grad():
            _, own = shard.advance(idx[:, :5])
            own_later, own_after = shard.advance(idx[:, 5:], own)
            text = shard.generate(idx[:1, :4], 6, temperature=0.0)
        return {
            "logits": error(logits.detach(), expected.detach()),
            "gradients": max(error(p.grad, parts[name]) for name, p in shard.named_parameters()),
            "advance": error(own_later, later.detach()),
            "state": max(map(error, own_after.rho, shard.share.cut_state(after.detach()).rho)),
            "state share": own_after.nbytes / after.nbytes,
            "text": torch.equal(text, model.eval().generate(idx[:1, :4], 6, temperature=0.0)),
            "told": told,
        }


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_shards_are_the_whole_model(heads: int, size: int) -> None:
    config = BDHConfig.from_dict({**CONFIG.to_dict(), "n_head": heads})
    width = B * T * config.n_embd * 4  # bytes of an array (B, T, D)
    per_pass = config.n_layer * width
    expected = {"write": per_pass, "write gradient": per_pass}
    if size > heads:
        expected |= {"read": per_pass, "read gradient": per_pass}
    for found in on_ranks(size, compared, config):
        assert isinstance(found, dict), found
        for name in ("logits", "gradients", "advance", "state"):
            assert found[name] < SAME[torch.float32], name
        assert found["state share"] == 1 / size
        assert found["text"]
        assert found["told"] == expected


def test_without_the_sum_of_reads_it_is_another_model() -> None:
    config = BDHConfig.from_dict({**CONFIG.to_dict(), "n_head": 1})
    assert min(found["logits"] for found in on_ranks(2, compared, config, False)) > CONTROL


def test_what_cannot_be_shared_out() -> None:
    with pytest.raises(ValueError, match="3 processes: expected a divisor or a multiple of n_head=2"):
        Share(CONFIG, World(0, 3))
    with pytest.raises(ValueError, match="16 processes: expected a divisor of mlp_internal_dim_multiplier=8"):
        Share(CONFIG, World(0, 16))
    with pytest.raises(ValueError, match="expected at most n_head=2 processes"):
        Share(BDHConfig.from_dict({**CONFIG.to_dict(), "sparsity": 0.5}), World(0, 4))
    with pytest.raises(ValueError, match="expected variant bdh"):
        Share(BDHConfig(variant="hatching"), World(0, 2))
