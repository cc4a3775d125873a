"""Planting reaches the density it was asked for, counted another way."""

import torch

from bdh import BDH, BDHConfig, lens
from bdh.bench import plant

IDX = torch.randint(0, 256, (1, 128), generator=torch.Generator().manual_seed(3))
SHAPE = BDHConfig(n_layer=3, n_embd=64, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0)


def counted(model: BDH) -> dict[str, float]:
    with torch.no_grad():
        _, trace = lens.record(model.eval(), IDX, ("layers.*.x_sparse", "layers.*.xy_sparse"))
    shares = {name: (tensor > 0).float().mean().item() for name, tensor in trace.items()}
    return {
        signal: sum(share for name, share in shares.items() if name.endswith("." + signal)) / model.config.n_layer
        for signal in ("x_sparse", "xy_sparse")
    }


def test_the_target_is_reached() -> None:
    for x, xy in ((0.2, 0.05), (0.3, 0.1)):
        model = BDH.from_seed(SHAPE, 1)
        said = plant(model, IDX, x=x, xy=xy)
        found = counted(model)
        assert abs(found["x_sparse"] - x) < 0.01
        assert abs(found["xy_sparse"] - xy) < 0.01
        assert abs(said["x"] - found["x_sparse"]) < 1e-6
        assert abs(said["xy"] - found["xy_sparse"]) < 1e-6


def test_without_it_half_and_a_quarter_fire() -> None:
    found = counted(BDH.from_seed(SHAPE, 1))
    assert abs(found["x_sparse"] - 0.5) < 0.05
    assert abs(found["xy_sparse"] - 0.25) < 0.05
