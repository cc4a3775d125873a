"""HiPPO in blocks of tables beside a convolution by Fourier transform: forward and backward on one thread, "legt".

python benchmarks/hippo.py
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import process_time

import torch
from torch import Tensor

from attention import medians
from bdh.mechanisms import HiPPO
from bdh.ops.memory import keep_freed_memory

CHANNELS, ORDER = 16, 32


def convolve(kernel: Tensor, u: Tensor) -> Tensor:
    """Coefficients (B, T, C, N) of signals (B, T, C) by a causal convolution with the impulse response (N, T)."""
    T = u.shape[1]
    spectrum = torch.fft.rfft(u.mT[:, :, None], n=2 * T) * torch.fft.rfft(kernel, n=2 * T)
    c: Tensor = torch.fft.irfft(spectrum, n=2 * T)[..., :T].permute(0, 3, 1, 2)
    return c


def _both_ways(form: Callable[[Tensor], Tensor], u: Tensor) -> None:
    form(u).sum().backward()


def main() -> None:
    """Measure and print."""
    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {CHANNELS} channels of order {ORDER}; milliseconds of CPU time")
    part = HiPPO(4, measure="legt", order=ORDER, channels=CHANNELS)
    for B, T in ((8, 128), (8, 256), (8, 512), (1, 1024), (1, 4096)):
        u = torch.randn(B, T, CHANNELS, requires_grad=True)
        impulse = torch.zeros(1, T, CHANNELS)
        impulse[:, 0] = 1
        with torch.no_grad():
            kernel = part.remember(impulse)[0][0, :, 0].mT.contiguous()
            gap = (convolve(kernel, u) - part.remember(u)[0]).abs().max().item()
        forms: dict[str, Callable[[Tensor], Tensor]] = {
            "blocks": lambda u: part.remember(u)[0],
            "transform": partial(convolve, kernel),
        }
        row = medians({name: partial(_both_ways, form, u) for name, form in forms.items()}, process_time)
        print(f"  B={B} T={T:5}" + "".join(f"  {k} {x:7.2f}" for k, x in row.items()) + f"  differ by {gap:.0e}")


if __name__ == "__main__":
    main()
