"""What a model and a training run are made of: frozen, validated dataclasses that go to JSON and back.

Every check happens on construction, so that a config that exists is a config that works.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

Variant = Literal["bdh"]
Schedule = Literal["cosine", "linear", "constant"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
LevelsBackend = Literal["auto", "native", "tiled", "composed", "reference"]


def _fail(name: str, got: object, expected: str, remedy: str) -> None:
    raise ValueError(f"{name}={got!r}: expected {expected}; {remedy}")


def _check_int(config: object, name: str, low: int = 1) -> None:
    value = getattr(config, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        _fail(name, value, f"an integer >= {low}", f"for example {name}={max(low, 1)}")


def _check_number(config: object, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    """Check low <= value < high (low < value if `open_low`); an infinite `high` still excludes inf and nan."""
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not (low < value < high or (value == low and not open_low)):
        bound = f"{'>' if open_low else '>='} {low:g}" + (f" and < {high:g}" if math.isfinite(high) else "")
        _fail(name, value, f"a number {bound}", "change it")


def _check_choice(config: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        _fail(name, value, "one of " + ", ".join(choices), "choose one of them")


class _Json:
    """Plain-dict conversion shared by the config dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-able dict."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a dict; an unknown key is an error that names the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else "known fields: " + ", ".join(known)
                raise ValueError(f"unknown {cls.__name__} field {key!r}: {hint}")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class BDHConfig(_Json):
    """Shape of a Baby Dragon Hatchling; field names are those of the released code.

    Layers share one set of weights, so parameters number `3*n_neurons*n_embd + 2*vocab_size*n_embd`,
    whatever `n_layer` is.

    Raises:
        ValueError: a value is out of range or the neurons do not divide into heads of rotary pairs.

    Examples:
        >>> BDHConfig(n_layer=6, n_embd=256, n_head=4, mlp_internal_dim_multiplier=128).n_parameters
        25296896
    """

    n_layer: int = 6
    """Passes over the one shared layer (L)."""
    n_embd: int = 256
    """Width of the residual stream (D, the paper's d)."""
    n_head: int = 4
    """Heads; they split the neurons (H)."""
    mlp_internal_dim_multiplier: int = 128
    """Neurons in all = this times n_embd (the paper's n); --mlp-mult for short."""
    vocab_size: int = 256
    """Token vocabulary (V); 256 for bytes."""
    dropout: float = 0.1
    """Dropout probability on the gated activations, in training only."""
    sparsity: float | None = None
    """Fraction of neurons of each head that must be silent at each token (k winners take all); None: plain ReLU."""
    variant: Variant = "bdh"
    """Model family member."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_embd", "n_head", "mlp_internal_dim_multiplier", "vocab_size"):
            _check_int(self, name)
        _check_number(self, "dropout", 0.0, 1.0)
        _check_choice(self, "variant", get_args(Variant))
        n, pairs = self.n_neurons, 2 * self.n_head
        if n % pairs:
            step = pairs // math.gcd(self.n_embd, pairs)
            near = max(step, self.mlp_internal_dim_multiplier // step * step)
            _fail(
                "mlp_internal_dim_multiplier",
                self.mlp_internal_dim_multiplier,
                f"n_embd * mlp_internal_dim_multiplier = {n} divisible by 2 * n_head = {pairs} "
                "(neurons rotate in pairs inside a head)",
                f"nearest: {near} or {near + step}",
            )
        if self.sparsity is not None:
            _check_number(self, "sparsity", 0.0, 1.0)
            if not self.winners_per_head:
                _fail(
                    "sparsity",
                    self.sparsity,
                    f"at least one of {self.neurons_per_head} neurons per head left to fire",
                    f"use at most {1 - 1 / self.neurons_per_head:.6g}",
                )

    @property
    def n_neurons(self) -> int:
        """Neurons in all (N, the paper's n)."""
        return self.mlp_internal_dim_multiplier * self.n_embd

    @property
    def neurons_per_head(self) -> int:
        """K = N / H."""
        return self.n_neurons // self.n_head

    @property
    def winners_per_head(self) -> int | None:
        """How many neurons of a head may fire at one token; None without a `sparsity` target."""
        return None if self.sparsity is None else round((1.0 - self.sparsity) * self.neurons_per_head)

    def activities(self, tokens: int) -> int:
        """Return how many neuron activities the levels compute for so many tokens: tokens * L * N."""
        return tokens * self.n_layer * self.n_neurons

    @property
    def n_parameters(self) -> int:
        """Number of trainable numbers."""
        return (3 * self.n_neurons + 2 * self.vocab_size) * self.n_embd


PRESETS: dict[str, dict[str, Any]] = {
    # chosen by experiment for 2 CPU cores: docs/LOG.md
    "nano": {"n_layer": 3, "n_embd": 128, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.0},
    "25m": {"n_layer": 6, "n_embd": 256, "n_head": 4, "mlp_internal_dim_multiplier": 128},
    "100m": {"n_layer": 8, "n_embd": 512, "n_head": 8, "mlp_internal_dim_multiplier": 128},
}


def preset(name: str, **overrides: Any) -> BDHConfig:
    """Return the config of a named model size, with any field replaced.

    Args:
        name: "nano", "25m" or "100m" (what `--model-size` names).
        **overrides: `BDHConfig` fields; a value of None keeps the preset's.

    Raises:
        ValueError: unknown name or field, or a combination that does not fit.

    Examples:
        >>> preset("100m").n_parameters
        100925440
        >>> preset("nano", n_layer=2).n_layer
        2
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "choose one of them"
        raise ValueError(f"model size {name!r}: expected one of {', '.join(PRESETS)}; {hint}")
    chosen = {key: value for key, value in overrides.items() if value is not None}
    return BDHConfig.from_dict(PRESETS[name] | chosen)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Json):
    """How a model is trained: batches, optimiser, schedule, and when to evaluate, log and save.

    One step reads `batch_size * grad_acc_steps` windows of `block_size` tokens. The learning rate rises
    linearly over `warmup_steps`, then decays to `min_lr_ratio * learning_rate` at `max_steps`.

    Raises:
        ValueError: a value is out of range.

    Examples:
        >>> TrainConfig(batch_size=12, block_size=64).tokens_per_step
        768
    """

    block_size: int = 128
    """Tokens of one training window (T)."""
    batch_size: int = 8
    """Windows of one forward and backward pass (B)."""
    grad_acc_steps: int = 1
    """Passes whose gradients are averaged into one optimiser step."""
    max_steps: int = 2000
    """Optimiser steps."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    min_lr_ratio: float = 0.1
    """The schedule ends at this fraction of the peak."""
    warmup_steps: int = 100
    """Steps of linear rise at the start."""
    schedule: Schedule = "cosine"
    """Shape of the decay after the warm-up."""
    weight_decay: float = 0.1
    """AdamW decay of the encoders, the decoder and the readout; the embedding is not decayed."""
    beta1: float = 0.9
    """AdamW decay of the gradient mean."""
    beta2: float = 0.99
    """AdamW decay of the gradient square."""
    grad_clip: float = 1.0
    """Largest allowed global gradient norm; 0 switches clipping off."""
    eval_interval: int = 200
    """Steps between validations."""
    eval_windows: int | None = 128
    """Fixed validation windows per evaluation, spread evenly over the split; None: the whole split."""
    log_interval: int = 10
    """Steps between lines of metrics."""
    save_every: int = 500
    """Steps between checkpoints."""
    dtype: DType = "auto"
    """Precision of the matrix products: auto (float32 on CPU, bfloat16 where a GPU has it) or by name."""
    backend: LevelsBackend = "auto"
    """How training passes are computed: native (C++), tiled (PyTorch, little memory), composed (PyTorch), reference
    (as the equations say, slow), or auto."""
    compile: bool = False
    """Run the model through torch.compile."""
    device: str = "auto"
    """cpu, cuda, cuda:N, mps, or auto (the fastest one present)."""
    seed: int = 1337
    """Seed of the weights, the data order and the dropout."""

    def __post_init__(self) -> None:
        for name in ("block_size", "batch_size", "grad_acc_steps", "max_steps"):
            _check_int(self, name)
        for name in ("eval_interval", "log_interval", "save_every"):
            _check_int(self, name)
        for name in ("warmup_steps", "seed"):
            _check_int(self, name, low=0)
        if self.warmup_steps >= self.max_steps:
            _fail(
                "warmup_steps", self.warmup_steps, f"fewer than max_steps={self.max_steps}", "lower it, or train longer"
            )
        if self.seed >= 2**63:
            _fail("seed", self.seed, "an integer below 2**63", "choose a smaller one")
        if self.eval_windows is not None:
            _check_int(self, "eval_windows")
        _check_number(self, "learning_rate", 0.0, math.inf, open_low=True)
        _check_number(self, "weight_decay", 0.0, math.inf)
        _check_number(self, "grad_clip", 0.0, math.inf)
        _check_number(self, "min_lr_ratio", 0.0, 1.0 + 1e-9)
        _check_number(self, "beta1", 0.0, 1.0)
        _check_number(self, "beta2", 0.0, 1.0)
        _check_choice(self, "schedule", get_args(Schedule))
        _check_choice(self, "dtype", get_args(DType))
        _check_choice(self, "backend", get_args(LevelsBackend))
        if self.compile and self.backend not in ("auto", "composed"):
            _fail("backend", self.backend, "auto or composed, since compile is on", "leave one of them away")

    @property
    def tokens_per_step(self) -> int:
        """Tokens read by one optimiser step."""
        return self.batch_size * self.grad_acc_steps * self.block_size


# what a size is trained with unless told otherwise; nano by experiment (docs/LOG.md), the others after the paper
TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {},  # the defaults of TrainConfig
    "25m": {"block_size": 512, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 1000, "schedule": "linear"},
    "100m": {"block_size": 512, "batch_size": 32, "learning_rate": 1e-3, "warmup_steps": 1000, "schedule": "linear"},
}


def train_preset(name: str, **overrides: Any) -> TrainConfig:
    """Return the training settings that suit a model size, with any field replaced.

    Examples:
        >>> train_preset("25m").schedule
        'linear'
    """
    if name not in TRAIN_PRESETS:
        raise ValueError(f"model size {name!r}: expected one of {', '.join(TRAIN_PRESETS)}")
    return TrainConfig.from_dict(TRAIN_PRESETS[name] | overrides)
