"""What was found about each mechanism, in one or two sentences that a terminal and a page share."""

from __future__ import annotations

from bdh.lens.mechanisms import Degrees, Mechanisms, Rates, Signs, Window

NO_PROOF = (
    "A branching ratio alone proves no criticality: slow input and slow membranes bring it near one too, and a ceiling "
    "on the rate hides values above one."
)


def sentences(found: Mechanisms) -> dict[str, str]:
    """Return what to say about each mechanism that is on, by the name of its field.

    Examples:
        >>> sentences(Mechanisms("advanced", dendrites=(0.1, 0.12)))
        {'dendrites': 'strength of the quadratic term by head 0.1, 0.12; training starts at 0.1'}
    """
    said: dict[str, str] = {}
    if found.lif is not None:
        levels = found.lif.raster.levels
        rates = ", ".join(f"{sum(level.rate) / len(level.rate):.1%}" for level in levels)
        said["lif"] = f"spikes per neuron and token of this text, by level: {rates}"
    if found.firing is not None:
        said["firing"] = _rates(found.firing)
    if found.stdp is not None:
        said["stdp"] = _window(found.stdp)
    if found.dale is not None:
        said["dale"] = _signs(found.dale)
    if found.scale_free is not None:
        said["scale_free"] = _degrees(found.scale_free)
    if found.hippo is not None:
        h = found.hippo
        said["hippo"] = (
            f"{h.measure}, {h.order} coefficients of {h.channels} channels; gate {h.gate:.3g}, training starts at 0.1"
        )
    if found.bcm is not None:
        widest = [f"{low:.2g} to {high:.2g}" for low, *_, high in found.bcm.quantiles]
        said["bcm"] = "thresholds subtracted from the drive, by level: " + ", ".join(widest)
    if found.criticality is not None:
        gains = ", ".join(f"{gain:.3g}" for gain in found.criticality.gain)
        said["criticality"] = (
            f"gain of the gate's drive by level {gains}; target of its branching ratio {found.criticality.target:g}"
        )
    if found.dendrites is not None:
        strengths = ", ".join(f"{value:.3g}" for value in found.dendrites)
        said["dendrites"] = f"strength of the quadratic term by head {strengths}; training starts at 0.1"
    if found.neuromodulation is not None:
        values = [value for level in found.neuromodulation.values for head in level for value in head]
        said["neuromodulation"] = (
            f"gains of the heads on this text between {min(values):.3g} and {max(values):.3g}; 1 is neutral"
        )
    return said


def branching(rates: Rates) -> list[str]:
    """Return the branching ratio of each level with its interval.

    Examples:
        >>> branching(Rates(9, None, (0.1, 0.1), (0.0, 0.0), (0.0, 0.0), ((0.9, 0.85, 0.95), None)))
        ['0.90 (0.85 to 0.95)', 'not measured']
    """
    return [
        "not measured" if found is None else "{:.2f} ({:.2f} to {:.2f})".format(*found) for found in rates.branching
    ]


def _rates(r: Rates) -> str:
    target = "" if r.target is None else f" (target {r.target:.0%})"
    rates, dead, full = (", ".join(f"{value:.1%}" for value in values) for values in (r.rate, r.dead, r.saturated))
    return (
        f"share that fires on {r.n_tokens:,} tokens of validation text, by level: {rates}{target}; never {dead}; "
        f"almost always {full}. Branching ratio with its 95 % interval: {', '.join(branching(r))}. {NO_PROOF}"
    )


def _window(w: Window) -> str:
    after, before = ([curve[len(curve) // 2 + 1] for curve in per] for per in (w.learned, w.initial))
    now, first = (", ".join(f"{value:.2g}" for value in values) for values in (after, before))
    return f"{w.form}: weight of a pair one token apart, by head {now}; training started at {first}"


def _signs(s: Signs) -> str:
    middle = f"{s.balance[len(s.balance) // 2]:.2f}" if s.balance else "not defined"
    used = (
        "with the centring of the LayerNorm between decoder and encoder, as the model uses it"
        if s.centred
        else "as the model uses it"
    )
    return (
        f"{s.excitatory:.0%} of the neurons excite; sign purity of their synapses {s.purity:.2f}, of the graph from "
        f"neuron to neuron {s.graph:.2f} ({used}); inhibition over excitation, median {middle}"
    )


def _degrees(d: Degrees) -> str:
    # the share of neurons with at least k, summed from 1 on, is the mean
    mean, last = 0.0, 0
    for degree, share in zip(d.degree, d.share, strict=True):
        mean, last = mean + (degree - last) * share, degree
    return f"{d.degree[0]} to {d.degree[-1]} connections per neuron, mean {mean:.0f}; drawn from k^-{d.gamma:g}"
