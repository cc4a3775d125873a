"""What attention with STDP costs beside plain linear attention, by length: forward and backward, and one more token.

    python benchmarks/stdp.py

Every figure is the median CPU time of interleaved repetitions on one thread, as a multiple of the plain quadratic form
(of the plain step for one token), so it holds on a busy machine.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import process_time
from typing import Any

import torch
from torch import Tensor

from attention import medians
from bdh import ops
from bdh.mechanisms import KernelSTDP, TraceSTDP
from bdh.ops import parallel
from bdh.ops.memory import keep_freed_memory


def _both_ways(form: Callable[[Tensor, Tensor], Tensor], q: Tensor, v: Tensor) -> None:
    form(q, v).sum().backward()


def _with_state(form: Callable[..., Any], q: Tensor, v: Tensor) -> Tensor:
    a: Tensor = form(q, v)[0]
    return a


def _activity(B: int, H: int, T: int, K: int, D: int) -> tuple[Tensor, Tensor]:
    q = ops.rotate(torch.randn(B, H, T, K).relu(), ops.rotation(K, 0, T, like=torch.zeros(1)))
    return q.requires_grad_(), torch.randn(B, T, D, requires_grad=True)


def reads(B: int, H: int, T: int, K: int, D: int) -> dict[str, float]:
    """Forward and backward of a read without state, milliseconds."""
    q, v = _activity(B, H, T, K, D)
    kernel, trace = KernelSTDP(H), TraceSTDP(H)
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "plain": parallel.dense,
        "plain chunked": partial(_with_state, partial(parallel.chunked, rho=None)),
        "kernel": kernel._dense,
        "kernel chunked": partial(_with_state, kernel),
        "trace": trace._dense,
        "trace chunked": partial(_with_state, trace),
    }
    return medians({name: partial(_both_ways, form, q, v) for name, form in forms.items()}, process_time)


@torch.no_grad()
def steps(H: int, K: int, D: int) -> dict[str, float]:
    """One more token, in a state that is given away, milliseconds."""
    q, v = _activity(1, H, 2, K, D)
    rho = ops.linear_attention(q, v)[1]
    kernel, trace = KernelSTDP(H), TraceSTDP(H)
    one = q[:, :, :1], v[:, :1]
    return medians(
        {
            "plain": partial(ops.linear_attention, *one, rho, owns_rho=True),
            "kernel": partial(kernel, *one, kernel(q, v)[1], owns_state=True),
            "trace": partial(trace, *one, trace(q, v)[1], owns_state=True),
        },
        process_time,
    )


def report(name: str, row: dict[str, float]) -> None:
    """Print one line."""
    plain = row["plain"]
    print(f"  {name:34} plain {plain:8.2f} ms" + "".join(f"  {k} {x / plain:.2f}" for k, x in row.items()), flush=True)


def main() -> None:
    """Measure and print."""
    keep_freed_memory()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread; freed memory is kept; multiples of plain")
    for T in (128, 256):
        report(f"nano, B=8 H=2 K=512 D=128 T={T}", reads(8, 2, T, 512, 128))
    report("25m, B=1 H=4 K=8192 D=256 T=256", reads(1, 4, 256, 8192, 256))
    for T in (512, 640, 768, 1024):
        report(f"B=2 H=2 K=512 D=128 T={T}", reads(2, 2, T, 512, 128))
    for T in (1024, 1280, 1536):
        report(f"B=1 H=1 K=4096 D=256 T={T}", reads(1, 1, T, 4096, 256))
    report("one token, 25m", steps(4, 8192, 256))


if __name__ == "__main__":
    main()
