"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from bdh.config import TrainConfig


def warm_up(config: TrainConfig) -> int:
    """Return the steps of the rise: those that are asked for, but no more than half of the training."""
    return min(config.warmup_steps, config.max_steps // 2)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of optimiser step `step` (from 0): a linear rise, then a decay that ends at the floor.

        warm-up:  peak (s + 1) / w,     w = min(warmup_steps, S / 2): a short training rises and decays, too
        cosine:   floor + (peak - floor) (1 + cos(pi p)) / 2,   p = (s - w) / (S - 1 - w)
        linear:   peak - (peak - floor) p

    Examples:
        >>> config = TrainConfig(learning_rate=1.0, warmup_steps=10, max_steps=110, schedule="linear")
        >>> [round(learning_rate(step, config), 3) for step in (0, 9, 10, 109)]
        [0.1, 1.0, 1.0, 0.1]
    """
    peak, floor = config.learning_rate, config.learning_rate * config.min_lr_ratio
    rise = warm_up(config)
    if step < rise:
        return peak * (step + 1) / rise
    if config.schedule == "constant":
        return peak
    progress = min(1.0, (step - rise) / max(1, config.max_steps - 1 - rise))
    if config.schedule == "linear":
        return peak - (peak - floor) * progress
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
