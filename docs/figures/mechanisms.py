"""Draw the figures of docs/mechanisms.md from the package's own functions: python docs/figures/mechanisms.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bdh.lens.svg import Picture, Plot, Scale, picture, text
from bdh.mechanisms import (
    BCMHomeostasis,
    Dendrites,
    HiPPO,
    KernelSTDP,
    LeakyIntegrateFire,
    Neuromodulation,
    TraceSTDP,
    bcm_step,
    branching_ratio,
    graph_purity,
    hippo_reconstruct,
    neuron_signs,
    scale_free_degrees,
    stdp_kernel,
    stdp_window,
)
from bdh.sections import Reset

HERE = Path(__file__).parent
WIDE, TALL = 240, 130


def frame(place: int, x: tuple[float, float], y: tuple[float, float], log: bool = False) -> Plot:
    """One of the plots that stand side by side."""
    left = 56 + place * (WIDE + 62)
    return Plot(Scale(*x, left, left + WIDE, log), Scale(*y, 36 + TALL, 36, log))


def side_by_side(label: str, plots: Sequence[Plot | str]) -> Picture:
    """All of them as one picture."""
    count = sum(isinstance(part, Plot) for part in plots)
    return picture(56 + count * (WIDE + 62) - 40, 36 + TALL + 44, label, plots)


def note(plot: Plot, x: float, y: float, words: str, css: str = "", anchor: str = "start") -> None:
    """Words at a place given in values."""
    plot.marks.append(text(plot.x(x), plot.y(y) - 5, words, css, anchor))


def lif() -> Picture:
    """Three resets under a constant current."""
    current, steps = 3.3, 40
    plots: list[Plot | str] = []
    resets: tuple[Reset, ...] = ("soft", "hard", "none")
    for place, reset in enumerate(resets):
        neurons = LeakyIntegrateFire(tau=10.0, reset=reset)
        neurons.control.threshold = torch.ones(1, 1)
        xs, ys, spikes, state, v = [0.0], [0.0], [], None, 0.0
        alpha = math.exp(-1 / 10)
        for t in range(1, steps + 1):
            fired, state = neurons.sequence(torch.full((1, 1, 1, 1), current), state)
            charge, v = alpha * v + (1 - alpha) * current, state.membrane.item()
            xs, ys = [*xs, t, t], [*ys, charge, v]
            if fired.spikes.item():
                spikes.append((t, charge))
        plot = frame(place, (0, steps), (0, 3.5)).axes(f"reset: {reset}", "tokens").level(1.0).line(xs, ys)
        plots.append(plot.points(*zip(*spikes, strict=True), "mark", 2.4))
    return side_by_side("membrane of a neuron under a constant current, with three kinds of reset", plots)


def stdp() -> Picture:
    """The pair rule of biology, and the windows in which both forms start."""
    dt = torch.linspace(-80, 80, 161)
    pair = frame(0, (-80, 80), (-0.012, 0.012)).axes("pair rule (Bi and Poo)", "post minus pre, ms")
    sides(pair, dt, stdp_kernel(dt), "one")
    plots: list[Plot | str] = [pair]
    forms = (("form trace, 4 heads", TraceSTDP(4), (-0.25, 0.25)), ("form kernel, 4 heads", KernelSTDP(4), (-0.3, 1.1)))
    for place, (name, part, span) in enumerate(forms, start=1):
        steps, heads = stdp_window(part, 80)
        plot = frame(place, (-80, 80), span).axes(name, "value minus key, tokens")
        for head in heads:
            sides(plot, steps, head, "one")
        plots.append(plot)
    return side_by_side("weight of a pair by its distance in time", plots)


def sides(plot: Plot, dt: Tensor, weight: Tensor, css: str) -> None:
    """Both sides of a window: at no distance it is no line."""
    for side in (dt < 0, dt > 0):
        plot.line(dt[side].tolist(), weight[side].tolist(), css)


def dale() -> Picture:
    """Signs that obey the law as written, and are mixed again where a LayerNorm stands between."""
    generator = torch.Generator().manual_seed(0)
    encoder = torch.rand(1, 64, 1024, generator=generator)
    signs = neuron_signs(1, 1024)
    purity = graph_purity(encoder, signs[:, None] * torch.rand(1024, 64, generator=generator))
    plots: list[Plot | str] = []
    for place, (name, values) in enumerate(
        (("graph as written, or norm=rms", purity.raw), ("graph in use, norm=layer", purity.effective))
    ):
        counts = torch.histc(values, 25, 0, 1) / len(values)
        plot = frame(place, (0, 1.001), (0, 1)).axes(name, "sign purity of a neuron's row")
        plots.append(plot.bars([n / 25 for n in range(26)], counts.tolist()))
    return side_by_side("sign purity of the neuron graph without and with the centring of a LayerNorm", plots)


def scale_free() -> Picture:
    """Degrees of 32,768 neurons, their law, and those of equally many connections placed at random."""
    width, gamma, k_min = 256, 2.5, 8
    degrees = scale_free_degrees(32_768, width, gamma, k_min)
    generator = torch.Generator().manual_seed(0)
    share = degrees.float().mean() / width
    uniform = (torch.rand(8192, width, generator=generator) < share).sum(1)
    plot = frame(0, (4, width), (1e-4, 1), log=True).axes("share of neurons with at least k", "connections k")
    ks = sorted({round(k_min * 1.09**n) for n in range(41)} & set(range(k_min, width + 1)))
    power = torch.arange(k_min, width + 1).double() ** -gamma
    plot.line(ks, [(power[k - k_min :].sum() / power.sum()).item() for k in ks], "two")
    plot.points(ks, [(degrees >= k).float().mean().item() for k in ks])
    occurring = [k for k in range(4, width) if (uniform >= k).any()]
    plot.line(occurring, [(uniform >= k).float().mean().item() for k in occurring], "three")
    note(plot, 60, 0.12, "scale-free", "one")
    note(plot, 34, 2e-4, "placed at random")
    return side_by_side("degrees of neurons against the power law from which they are drawn", [plot])


def hippo() -> Picture:
    """A signal of 512 tokens, remembered in 4 and in 16 numbers."""
    T = 512
    t = (torch.arange(T) + 0.5) / T
    signal = (2 * math.pi * 2.2 * t).sin() * (1 - 0.6 * t) + 0.5 * (t > 0.7)
    plots: list[Plot | str] = []
    for place, order in enumerate((4, 16)):
        memory = HiPPO(1, order=order, channels=1)
        coefficients, _ = memory.remember(signal.view(1, T, 1))
        again = hippo_reconstruct(coefficients[0, -1, 0], t)
        plot = frame(place, (0, T), (-1.2, 1.2)).axes(f"{order} coefficients, after all {T} tokens", "token")
        every = slice(0, T, 4)
        xs = torch.arange(T)[every].tolist()
        plots.append(plot.line(xs, signal[every].tolist(), "three").line(xs, again[every].detach().tolist()))
    return side_by_side("a signal, and what HiPPO remembers of it in few numbers", plots)


def bcm() -> Picture:
    """The learning rule at two thresholds, and what the sliding threshold does to a neuron."""
    rule = frame(0, (0, 2), (-0.6, 2.8)).axes("change of a synapse by activity", "activity y")
    ys = torch.linspace(0, 2, 41)
    for theta, css in ((0.7, "one"), (1.4, "two")):
        # one pattern of length one: a weight is the activity, so its change is that of the rule
        moved, _ = bcm_step(ys[None], torch.full((41,), theta), torch.ones(1, 1), eta=1e-3, tau=10.0)
        rule.line(ys.tolist(), ((moved - ys[None])[0] / 1e-3).tolist(), css)
        note(rule, *((1.0, 1.0) if css == "one" else (1.95, -0.55)), f"theta = {theta}", css, "end")
    sliding = frame(1, (0, 120), (0, 6.2)).axes("activity under a constant drive", "optimiser steps")
    for drive in (1.0, 3.0, 6.0):
        part, seen = BCMHomeostasis(1, 1, target=0.0, kappa=1.0, tau=10.0), []
        for _ in range(121):
            fired = part(torch.full((1, 1, 1, 1), drive)).relu()
            part.observe(fired)
            part.homeostasis_step()
            seen.append(fired.item())
        sliding.line(range(121), seen)
        note(sliding, 120, seen[-1], f"drive {drive:g}", anchor="end")
    return side_by_side("the BCM rule, and a sliding threshold", [rule, sliding])


def criticality() -> Picture:
    """A branching of known ratio, a twentieth of it seen: the first slope misleads, the fit over many does not."""
    generator = torch.Generator().manual_seed(0)
    m, trials, T, seen_share = 0.9, 60, 1000, 0.05
    active, rows = torch.full((trials,), 100.0), []
    for _ in range(T):
        active = torch.poisson(m * active + 10.0, generator=generator)
        rows.append(torch.binomial(active, torch.full_like(active, seen_share), generator=generator))
    found = branching_ratio(torch.stack(rows, 1).long(), steps=30)
    plot = frame(0, (0, 30), (-0.02, 0.4)).axes("slope, 5 % of the neurons seen", "distance k in tokens")
    ks = list(range(1, 31))
    plot.points(ks, found.slopes.tolist()).points(ks, found.shuffled.tolist(), "mark", 1.8)
    plot.line(ks, [found.b * found.m**k for k in ks])
    note(plot, 30, 0.3, f"fit m = {found.m:.3f} ({found.low:.3f} to {found.high:.3f})", "one", "end")
    note(plot, 30, 0.255, f"first slope {found.slopes[0]:.3f}, true m {m}", anchor="end")
    note(plot, 30, 0.02, "shuffled control", "two", "end")
    return side_by_side("branching ratio by regression over many distances", [plot])


def dendrites() -> Picture:
    """Two inputs on one branch, and on two."""
    part, weight = Dendrites(n_head=1, branches=2, strength=0.5), torch.ones(1, 4, 1)
    xs = torch.linspace(0, 2, 21)
    plot = frame(0, (0, 2), (0, 12)).axes("drive of a neuron", "strength of two inputs")
    for places, css, name in (((0, 1), "one", "on one branch"), ((0, 2), "two", "on two branches")):
        v = torch.zeros(1, 1, 21, 4)
        v[..., list(places)] = xs[:, None]
        drive = part(v, weight).detach().flatten().tolist()
        plot.line(xs.tolist(), drive, css)
        note(plot, 1.9, drive[-2] + 0.2 if css == "one" else drive[-2] - 4.4, name, css, "end")
    return side_by_side("inputs on one branch count for more than inputs spread out", [plot])


def neuromodulation() -> Picture:
    """What the gate lets through at three gains, and a gain that follows the text."""
    part = Neuromodulation(width=1, n_head=1, tau=20.0, threshold=0.5)
    gate = frame(0, (0, 2), (0, 2.6)).axes("gate by drive, threshold 0.5", "drive u")
    us = torch.linspace(0, 2, 41)
    for gain, css in ((0.5, "three"), (1.0, "two"), (1.5, "one")):
        opened = part.gate(us.view(1, 1, -1, 1), torch.tensor(gain)).relu().flatten()
        gate.line(us.tolist(), opened.tolist(), css)
        note(gate, 2, opened[-1].item(), f"gain {gain}", css, "end")
    with torch.no_grad():
        part.weight.fill_(2.0)
        v = torch.cat((-torch.ones(60), torch.ones(90), -torch.ones(50))).view(1, 200, 1)
        gains, _ = part(v)
    follow = frame(1, (0, 200), (0, 2)).axes("gain after a change of the text, tau 20", "token")
    plots: list[Plot | str] = [gate, follow.line(range(200), gains.flatten().tolist()).level(1.0)]
    return side_by_side("a gain per head against a threshold", plots)


FIGURES: dict[str, Callable[[], Picture]] = {
    "lif": lif,
    "stdp": stdp,
    "dale": dale,
    "scale_free": scale_free,
    "hippo": hippo,
    "bcm": bcm,
    "criticality": criticality,
    "dendrites": dendrites,
    "neuromodulation": neuromodulation,
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        print(draw().save(HERE / f"{name}.svg"))
