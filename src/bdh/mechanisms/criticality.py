"""Criticality: how far one firing neuron makes others fire, measured in three ways, and a gain that holds it.

None of these measures proves criticality by itself. A branching ratio near one also comes from slow input or slow
membranes, a cut at a threshold makes power laws out of noise, and a ceiling on the rate makes a supercritical network
look subcritical. So each measure comes with its interval or its control: look at all of them.

Shapes: B batch, H heads, T tokens, K neurons per head, M trials (sequences).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bdh.mechanisms.homeostasis import Homeostatic

_GRID = 64


def spike_counts(activity: Tensor) -> Tensor:
    """Count the neurons that fire at each token: (B, H, T, K) to (B, T), int64. Sequences are trials."""
    return (activity > 0).sum((1, 3))


class Branching(NamedTuple):
    """Result of `branching_ratio`."""

    m: float
    """Branching ratio: spikes that one spike causes. Activity fades within `-1 / ln m` tokens."""
    low: float
    """Lower end of the 95 % interval of m over resampled trials."""
    high: float
    """Upper end."""
    b: float
    """Share by which seeing a part of the neurons only weakens every slope; about 1 if all are seen."""
    slopes: Tensor
    """(steps,) slope of the count k tokens later on the count now, k = 1 .. steps; `b m^k` if it is a branching."""
    shuffled: Tensor
    """(steps,) the same with each trial's tokens in random order. Where `slopes` does not stand clearly above it,
    there is nothing whose m could be estimated."""


def branching_ratio(counts: Tensor, steps: int = 50, bootstrap: int = 500, seed: int = 0) -> Branching:
    """Estimate the branching ratio by multistep regression (Wilting and Priesemann 2018).

        slope_k of A_{t+k} on A_t,    k = 1 .. steps,    fitted by b m^k

    The fit over many steps finds m also where a few of the neurons are seen, which weakens each slope by the same b;
    the first slope alone would then be far too low. Choose `steps` of about five times `-1 / ln m`, with texts four
    times longer than that.

    Args:
        counts: (M, T) neurons firing at each token, see `spike_counts`.
        steps: largest distance in tokens.
        bootstrap: how often the trials are drawn anew for the interval.
        seed: of the draws and of the shuffled control.

    Raises:
        ValueError: fewer than two trials or steps, trials too short for them, or counts that never vary.

    Examples:
        >>> noise = torch.randint(0, 9, (20, 400), generator=torch.Generator().manual_seed(0))
        >>> bool(branching_ratio(noise, steps=5).slopes.abs().max() < 0.05)
        True
    """
    if counts.ndim != 2 or len(counts) < 2 or counts.shape[1] <= 2 * steps or steps < 2:
        raise ValueError(
            f"counts {tuple(counts.shape)}, steps={steps}: expected (M, T) with M >= 2 trials of T > 2 steps tokens, "
            "and steps >= 2; cut one long recording into trials, or change steps"
        )
    A = counts.detach().double().cpu()
    if A.min() == A.max():
        raise ValueError(f"counts are {A[0, 0]:g} at every token: expected counts that vary; there is nothing to fit")
    products, squares = _regression_sums(A, steps)
    m, b = _fit_branching(products.sum(0) / squares.sum(0))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(A), (bootstrap, len(A)), generator=generator)
    again, _ = _fit_branching(products[drawn].sum(1) / squares[drawn].sum(1))
    low, high = again.quantile(torch.tensor([0.025, 0.975], dtype=A.dtype)).tolist()
    control, control_squares = _regression_sums(_shuffle(A, generator), steps)
    slopes, shuffled = products.sum(0) / squares.sum(0), control.sum(0) / control_squares.sum(0)
    return Branching(m.item(), low, high, b.item(), slopes, shuffled)


def _regression_sums(counts: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Per trial and distance, the sums of (A_t - mean)(A_{t+k} - mean) and of (A_t - mean)^2: two of (M, steps)."""
    deviation = counts - counts.mean()
    products, squares = [], []
    for k in range(1, steps + 1):
        now, later = deviation[:, :-k], deviation[:, k:]
        products.append((now * later).sum(1))
        squares.append(now.square().sum(1))
    return torch.stack(products, 1), torch.stack(squares, 1)


def _fit_branching(slopes: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares m and b >= 0 of slope_k = b m^k, for each of (..., steps).

    For a given m the best b is a ratio, and what it leaves unexplained falls with q(m) = (sum slope_k m^k)^2 /
    sum m^2k. So one number is searched: a grid in log(-1 / ln m), narrowed four times around its best point.
    """
    k = torch.arange(1, slopes.shape[-1] + 1, dtype=slopes.dtype, device=slopes.device)
    unit = torch.linspace(0, 1, _GRID, dtype=slopes.dtype, device=slopes.device)
    low, high = (slopes.new_full(slopes.shape[:-1], value) for value in (math.log(0.1), math.log(1e5)))
    for _ in range(4):
        log_tau = low[..., None] + (high - low)[..., None] * unit  # (..., grid)
        powers = (-k * torch.exp(-log_tau)[..., None]).exp()  # (..., grid, steps)
        match = (slopes[..., None, :] * powers).sum(-1)
        # b >= 0: an anticorrelation is no branching
        best = (match.clamp_min(0).square() / powers.square().sum(-1)).argmax(-1, keepdim=True)
        log_tau, cell = log_tau.gather(-1, best)[..., 0], (high - low) / (_GRID - 1)
        low, high = log_tau - cell, log_tau + cell
    m = (-torch.exp(-log_tau)).exp()
    powers = m[..., None] ** k
    b = ((slopes * powers).sum(-1) / powers.square().sum(-1)).clamp_min(0)
    return m, b


def _shuffle(trials: Tensor, generator: torch.Generator) -> Tensor:
    return trials.gather(1, torch.rand(trials.shape, generator=generator).argsort(1))


class Avalanches(NamedTuple):
    """Excursions of the activity above a threshold, and those of the same counts in random order."""

    sizes: Tensor
    """Sum over an excursion of what exceeds the threshold."""
    durations: Tensor
    """Tokens of the excursion, in the same order."""
    shuffled_sizes: Tensor
    """Control: of each trial's tokens in random order. A heavy tail that is here too says nothing."""
    shuffled_durations: Tensor
    """Control."""


def avalanches(counts: Tensor, threshold: float | None = None, seed: int = 0) -> Avalanches:
    """Cut the activity into avalanches.

    Exponents (sizes 3/2, durations 2, mean size against duration 2 at mean-field criticality) are a matter for a
    package that fits power laws between bounds, such as `powerlaw` with `xmin` and `xmax`.

    Args:
        counts: (M, T) neurons firing at each token, see `spike_counts`.
        threshold: an avalanche lasts while the count is above it; None: the median. Excursions cut off by an end of
            their trial are left out.
        seed: of the shuffled control.

    Raises:
        ValueError: not (M, T).

    Examples:
        >>> found = avalanches(torch.tensor([[0, 1, 2, 0, 3, 0, 5]]), threshold=0)
        >>> found.sizes.tolist(), found.durations.tolist()
        ([3.0, 3.0], [2, 1])
    """
    if counts.ndim != 2:
        raise ValueError(f"counts {tuple(counts.shape)}: expected (M, T); one trial is counts[None]")
    A = counts.detach().double().cpu()
    level = A.median().item() if threshold is None else threshold
    generator = torch.Generator().manual_seed(seed)
    return Avalanches(*_excursions(A - level), *_excursions(_shuffle(A, generator) - level))


def _excursions(excess: Tensor) -> tuple[Tensor, Tensor]:
    above = torch.nn.functional.pad((excess > 0).to(torch.int8), (1, 1))
    change = above.diff(dim=1)
    # both are listed row by row, so the n-th start and the n-th end belong together
    row, start = (change == 1).nonzero(as_tuple=True)
    _, end = (change == -1).nonzero(as_tuple=True)
    sums = torch.nn.functional.pad(excess.cumsum(1), (1, 0))
    whole = (start > 0) & (end < excess.shape[1])
    return (sums[row, end] - sums[row, start])[whole], (end - start)[whole]


def jacobian_gain(
    step: Callable[[Tensor], Tensor], v: Tensor, probes: int = 4, *, tangent: bool = True, seed: int = 0
) -> Tensor:
    """Measure how much a step amplifies small perturbations.

        chi = E |J u|^2 / |u|^2        J = d step(v) / d v,  u random

    Above one small differences grow, below they fade; over L levels the Lyapunov exponent per level is
    `mean(log chi_l) / 2`. The transposed Jacobian is applied, which has the same mean square: so a spike counts with
    its surrogate gradient, which exists backward only.

    Args:
        step: maps (..., D) to the same shape, for example one level over (B, T, D). In eval mode, or dropout counts.
        v: (..., D) where to look.
        probes: random directions.
        tangent: perturb, and look, along the sphere of normalised vectors only (sum and length over D unchanged), as
            behind and before a LayerNorm; False for maps of all vectors.
        seed: of the directions.

    Returns:
        (probes,) one estimate each; their mean is chi, their spread its error.

    Raises:
        ValueError: the step changes the shape.

    Examples:
        >>> round(jacobian_gain(lambda v: 3 * v, torch.randn(2, 5, 8), tangent=False).mean().item(), 3)
        9.0
    """
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        out = step(v)
    if out.shape != v.shape:
        raise ValueError(f"step: expected to keep the shape {tuple(v.shape)}, got {tuple(out.shape)}")
    generator = torch.Generator().manual_seed(seed)
    gains = []
    for _ in range(probes):
        u = torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v)
        u = _along_sphere(u, out) if tangent else u
        (back,) = torch.autograd.grad(out, v, u, retain_graph=True)
        back = _along_sphere(back, v) if tangent else back
        gains.append(back.double().square().sum() / u.double().square().sum())
    return torch.stack(gains)


def _along_sphere(u: Tensor, at: Tensor) -> Tensor:
    u, normal = u - u.mean(-1, keepdim=True), (at - at.mean(-1, keepdim=True)).detach()
    return u - normal * (u * normal).sum(-1, keepdim=True) / normal.square().sum(-1, keepdim=True)


class CriticalityRegulator(Homeostatic):
    """A gain on a drive that holds the branching ratio of what fires, without gradients.

        u' = g u - threshold,    log g <- log g - eta (m - target)          once per optimiser step

    The gain acts against the threshold: a gain on activity that a LayerNorm reads later would be divided out. m is
    estimated from the observed counts by `branching_ratio`'s regression. Saturation makes a supercritical network look
    subcritical, and then the equation would raise the gain further. So the gain starts low, and where `ceiling` is
    reached it is halved, to come back from below. Where firing at one token does not cause firing at the next, whatever
    the gain, m stays below the target and the gain ends at its bound: that is not criticality, look at `ratio`.

    Args:
        threshold: what the gained drive must exceed, > 0.
        target: branching ratio to hold; cortex is found just below one.
        gain: g at the start, subcritical.
        largest: bound of g; far above one the threshold hardly counts any more.
        eta: step.
        ceiling: share of neurons that fire, mean over tokens, from which m is not believed.
        steps: largest distance in tokens of the regression, shorter than the texts.

    Raises:
        ValueError: a value out of range; above all a threshold that is not positive.

    Examples:
        >>> part = CriticalityRegulator(threshold=0.1)
        >>> fired = part(torch.zeros(2, 1, 100, 16)).relu()
        >>> part.observe(fired)
        >>> part.homeostasis_step()
        >>> bool(part.gain() > 0.5)                                   # silence does not branch
        True
    """

    SUMS = ("products", "squares", "active", "tokens")
    log_gain: Tensor
    products: Tensor
    """(steps,) sums of the regression since the last step."""
    squares: Tensor
    """(steps,) sums of the regression since the last step."""
    active: Tensor
    """Sum over tokens of the share of neurons that fired since the last step."""
    tokens: Tensor
    """Tokens observed since the last step."""

    def __init__(
        self,
        *,
        threshold: float = 0.1,
        target: float = 0.98,
        gain: float = 0.5,
        largest: float = 4.0,
        eta: float = 0.05,
        ceiling: float = 0.3,
        steps: int = 30,
    ) -> None:
        super().__init__()
        if not threshold > 0:
            raise ValueError(f"threshold={threshold}: expected > 0; without one the LayerNorm behind removes the gain")
        if not (0 < target < 1 and 0 < gain <= largest < math.inf and eta > 0 and 0 < ceiling <= 1 and steps >= 2):
            raise ValueError(
                f"target={target}, gain={gain}, largest={largest}, eta={eta}, ceiling={ceiling}, steps={steps}: "
                "expected 0 < target < 1, 0 < gain <= largest, eta > 0, 0 < ceiling <= 1, steps >= 2"
            )
        self.threshold, self.target, self.largest = threshold, target, largest
        self.eta, self.ceiling, self.steps = eta, ceiling, steps
        self.register_buffer("log_gain", torch.tensor(math.log(gain)))
        for name in ("products", "squares"):
            self.register_buffer(name, torch.zeros(steps))
        self.register_buffer("active", torch.zeros(()))
        self.register_buffer("tokens", torch.zeros((), dtype=torch.int64))

    def gain(self) -> Tensor:
        """Return g."""
        return self.log_gain.exp()

    def forward(self, drive: Tensor) -> Tensor:
        """Return `g u - threshold` of a drive of any shape."""
        return drive * self.gain().to(drive.dtype) - self.threshold

    def ratio(self) -> Tensor:
        """Return the branching ratio in what was observed since the last step.

        It is 0 where the slope of one token on the next is within two standard errors of none: there nothing branches,
        and a fit to noise would be any number.
        """
        slopes = torch.where(self.squares > 0, self.products / self.squares, 0.0)
        m, _ = _fit_branching(slopes)
        return torch.where(slopes[0] > 2 * self.tokens.clamp_min(1).rsqrt(), m, 0.0)

    def _add_up(self, activity: Tensor) -> None:
        if activity.shape[2] <= self.steps:
            raise ValueError(
                f"texts of {activity.shape[2]} tokens: expected more than steps={self.steps}; lower steps or train on "
                "longer texts"
            )
        counts = spike_counts(activity).to(self.products.dtype)
        products, squares = _regression_sums(counts, self.steps)
        self.products, self.squares = self.products + products.sum(0), self.squares + squares.sum(0)
        self.active = self.active + counts.sum() / (activity.shape[1] * activity.shape[3])
        self.tokens = self.tokens + counts.numel()

    @torch.no_grad()
    def homeostasis_step(self) -> None:
        """Move the gain by what was observed since the last call; call it once per optimiser step."""
        rate = self.active / self.tokens.clamp_min(1)
        # tensors all the way: an accelerator is not waited for
        move = torch.where(rate < self.ceiling, self.eta * (self.target - self.ratio()), -math.log(2))
        moved = (self.log_gain + move).clamp_max(math.log(self.largest))
        self.log_gain = torch.where(self.tokens > 0, moved, self.log_gain)
        for name in ("products", "squares", "active", "tokens"):
            setattr(self, name, torch.zeros_like(getattr(self, name)))
