"""Give a random model the activity of a trained one, so that speed can be measured at a known density."""

from __future__ import annotations

import torch
from torch import Tensor

from bdh import BDH, lens


def plant(model: BDH, idx: Tensor, *, x: float = 0.2, xy: float = 0.05) -> dict[str, float]:
    """Change the weights in place until the shares of active neurons, averaged over levels, are as asked.

    A direction u is added to every embedding and decoder row, so that the residual stream follows it at every level;
    the encoders lean against it by amounts found by bisection.

    Returns:
        The measured mean densities {"x", "y", "xy"}.
    """
    c = model.config
    u = torch.randn(c.n_embd, generator=torch.Generator().manual_seed(0))
    u = (u - u.mean()) / u.std()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        model.embed.weight.add_(0.04 * u)
        model.decoder.add_(0.01 * u)

    def measure(lean: float, lean_v: float) -> dict[str, float]:
        for name, amount in (("encoder", lean), ("encoder_v", lean_v)):
            shift = amount * 0.02 / c.n_embd**0.5 * u[None, :, None]
            model.get_parameter(name).data.copy_(start[name] - shift)
        return {key: sum(levels) / c.n_layer for key, levels in lens.density(model, idx).items()}

    def bisect(key: str, target: float, lean: float | None) -> float:
        low, high = 0.0, 4.0
        for _ in range(12):
            middle = (low + high) / 2
            found = measure(middle, 0.0) if lean is None else measure(lean, middle)
            low, high = (middle, high) if found[key] > target else (low, middle)
        return middle

    lean = bisect("x", x, None)
    return measure(lean, bisect("xy", xy, lean))
