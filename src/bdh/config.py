"""What a model and a training run are made of: frozen, validated dataclasses that go to JSON and back.

Every check happens on construction, so that a config that exists is a config that works.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from bdh.checks import Json, check_choice, check_int, check_number, fail
from bdh.sections import (
    BCM,
    LIF,
    SECTIONS,
    STDP,
    VARIANTS,
    Branches,
    Criticality,
    Dale,
    HiPPOMemory,
    Modulation,
    ScaleFreeWiring,
)

Variant = Literal["bdh", "hatching", "advanced"]
Norm = Literal["layer", "rms"]
_AS_VARIANT: Any = None  # on construction the variant's section takes its place
Schedule = Literal["cosine", "linear", "constant"]
Order = Literal["windows", "streams"]
Bptt = Literal["window", "none"]
Clip = Literal["norm", "adaptive"]
Parallel = Literal["data", "fsdp", "neurons"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
LevelsBackend = Literal["auto", "native", "tiled", "composed", "reference"]
Precision = Literal["float32", "bfloat16", "int8"]
"""How the copies of the weights that the kernels' step of one token reads are stored."""


@dataclass(frozen=True, kw_only=True)
class BDHConfig(Json):
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
    norm: Norm = "layer"
    """layer: LayerNorm, as released; rms: RMSNorm, which does not centre, so that Dale's law binds."""
    variant: Variant = "bdh"
    """Model family member: what the sections below are set to where nothing else is said."""
    lif: LIF = _AS_VARIANT
    """Spiking neurons."""
    stdp: STDP = _AS_VARIANT
    """Memory that depends on timing."""
    dale: Dale = _AS_VARIANT
    """Signs of the neurons."""
    scale_free: ScaleFreeWiring = _AS_VARIANT
    """Wiring."""
    hippo: HiPPOMemory = _AS_VARIANT
    """Memory of the residual stream."""
    bcm: BCM = _AS_VARIANT
    """Sliding thresholds."""
    criticality: Criticality = _AS_VARIANT
    """Regulated branching."""
    dendrites: Branches = _AS_VARIANT
    """Branches of the neurons' input."""
    neuromodulation: Modulation = _AS_VARIANT
    """Gains of the heads."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_embd", "n_head", "mlp_internal_dim_multiplier", "vocab_size"):
            check_int(self, name)
        check_number(self, "dropout", 0.0, 1.0)
        check_choice(self, "norm", get_args(Norm))
        check_choice(self, "variant", get_args(Variant))
        for name, kind in SECTIONS.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, VARIANTS[self.variant].get(name, kind()))
            elif not isinstance(getattr(self, name), kind):
                fail(name, getattr(self, name), f"a {kind.__name__}", f"for example bdh.sections.{kind.__name__}()")
        n, pairs = self.n_neurons, 2 * self.n_head
        if n % pairs:
            step = pairs // math.gcd(self.n_embd, pairs)
            near = max(step, self.mlp_internal_dim_multiplier // step * step)
            fail(
                "mlp_internal_dim_multiplier",
                self.mlp_internal_dim_multiplier,
                f"n_embd * mlp_internal_dim_multiplier = {n} divisible by 2 * n_head = {pairs} "
                "(neurons rotate in pairs inside a head)",
                f"nearest: {near} or {near + step}",
            )
        if self.sparsity is not None:
            check_number(self, "sparsity", 0.0, 1.0)
            if not self.winners_per_head:
                fail(
                    "sparsity",
                    self.sparsity,
                    f"at least one of {self.neurons_per_head} neurons per head left to fire",
                    f"use at most {1 - 1 / self.neurons_per_head:.6g}",
                )
        self._check_together()

    def _check_together(self) -> None:
        """Check what sections must not be together, or with the shape."""
        if self.sparsity is not None and self.lif.on:
            fail("sparsity", self.sparsity, "none with lif.tau", "both decide who fires: use lif.rate")
        least = self.scale_free.smallest(self.n_embd)
        if self.scale_free.on and least > self.n_embd:
            fail("scale_free.k_min", least, f"at most n_embd={self.n_embd}", "lower it")
        share, K = self.dale.excitatory, self.neurons_per_head
        if share is not None and not 0 < round(share * K) < K:
            fail("dale.excitatory", share, f"a share that leaves some of {K} neurons of both kinds", "0.8 is usual")
        if self.dendrites.on and (self.dendrites.branches or 0) > self.n_embd:
            fail("dendrites.branches", self.dendrites.branches, f"at most n_embd={self.n_embd}", "lower it")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a dict, whose sections may be dicts; an unknown key is an error that names the nearest one."""
        sections = {name: SECTIONS[name].from_dict(part) for name, part in values.items()
                    if name in SECTIONS and isinstance(part, dict)}  # fmt: skip
        return super().from_dict({**values, **sections})

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
        """Number of trainable numbers, those that a mask holds at zero included."""
        H, D, memory = self.n_head, self.n_embd, self.hippo
        parts = {"off": 0, "kernel": 2 * H, "trace": 5 * H}[self.stdp.form]
        if memory.on:
            parts += memory.channels * (1 + memory.order) * D + 1
        parts += H * self.dendrites.on + H * (D + 1) * self.neuromodulation.on
        return (3 * self.n_neurons + 2 * self.vocab_size) * D + parts

    @property
    def released(self) -> bool:
        """Whether a pass computes what the released model computes: no section changes it, only perhaps the weights."""
        changing = (self.lif, self.stdp, self.hippo, self.bcm, self.criticality, self.dendrites, self.neuromodulation)
        return self.norm == "layer" and not any(section.on for section in changing)


PRESETS: dict[str, dict[str, Any]] = {
    # the first two chosen by experiment for 2 CPU cores: docs/LOG.md
    "nano": {"n_layer": 3, "n_embd": 128, "n_head": 2, "mlp_internal_dim_multiplier": 8, "dropout": 0.0},
    "1m": {"n_layer": 4, "n_embd": 192, "n_head": 2, "mlp_internal_dim_multiplier": 8},
    "2m": {"n_layer": 4, "n_embd": 128, "n_head": 4, "mlp_internal_dim_multiplier": 32},
    "25m": {"n_layer": 6, "n_embd": 256, "n_head": 4, "mlp_internal_dim_multiplier": 128},
    "100m": {"n_layer": 8, "n_embd": 512, "n_head": 8, "mlp_internal_dim_multiplier": 128},
}


def preset(name: str, **overrides: Any) -> BDHConfig:
    """Return the config of a named model size, with any field replaced.

    Args:
        name: "nano", "1m", "2m", "25m" or "100m" (what `--model-size` names).
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
class TrainConfig(Json):
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
    batches: Order = "windows"
    """windows: drawn at random from the text, each read from an empty memory; streams: every row reads documents from
    beginning to end, and its memory is carried from step to step."""
    carry: int | None = None
    """With streams: windows after which a row begins anew even inside a document; None: at the ends of documents only.
    A memory sums all that was read, so in very long documents the recent past drowns in it."""
    bptt: Bptt = "window"
    """How far gradients go back in time: through the window, or not at all (keys and values are detached)."""
    max_steps: int = 2000
    """Optimiser steps."""
    learning_rate: float = 4e-3
    """Peak learning rate of AdamW."""
    min_lr_ratio: float = 0.1
    """The schedule ends at this fraction of the peak."""
    warmup_steps: int = 100
    """Steps of linear rise at the start, but no more than half of max_steps."""
    schedule: Schedule = "cosine"
    """Shape of the decay after the warm-up."""
    weight_decay: float = 0.1
    """AdamW decay of the encoders, the decoder and the readout; the embedding is not decayed."""
    beta1: float = 0.9
    """AdamW decay of the gradient mean."""
    beta2: float = 0.99
    """AdamW decay of the gradient square."""
    sparse_weight: float = 0.0
    """Weight of the mean activity of the neurons in what is minimised."""
    rate_weight: float = 0.0
    """Weight of the neurons' squared distances from their target rate, for spiking neurons."""
    clip: Clip = "norm"
    """What is clipped: the norm of the whole gradient, or adaptively that of each unit against its weights."""
    grad_clip: float = 1.0
    """Largest allowed gradient norm, with --clip adaptive as a share of the norm of the unit's weights; 0 switches
    clipping off."""
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
            check_int(self, name)
        for name in ("eval_interval", "log_interval", "save_every"):
            check_int(self, name)
        for name in ("warmup_steps", "seed"):
            check_int(self, name, low=0)
        if self.seed >= 2**63:
            fail("seed", self.seed, "an integer below 2**63", "choose a smaller one")
        for name in ("eval_windows", "carry"):
            if getattr(self, name) is not None:
                check_int(self, name)
        if self.carry is not None and self.batches != "streams":
            fail("carry", self.carry, "none, since batches is windows", "add --batches streams")
        check_number(self, "learning_rate", 0.0, math.inf, open_low=True)
        check_number(self, "weight_decay", 0.0, math.inf)
        for name in ("grad_clip", "sparse_weight", "rate_weight"):
            check_number(self, name, 0.0, math.inf)
        check_number(self, "min_lr_ratio", 0.0, 1.0 + 1e-9)
        check_number(self, "beta1", 0.0, 1.0)
        check_number(self, "beta2", 0.0, 1.0)
        check_choice(self, "schedule", get_args(Schedule))
        check_choice(self, "dtype", get_args(DType))
        check_choice(self, "batches", get_args(Order))
        check_choice(self, "bptt", get_args(Bptt))
        check_choice(self, "clip", get_args(Clip))
        check_choice(self, "backend", get_args(LevelsBackend))
        if self.compile and (self.sparse_weight or self.rate_weight):
            fail("compile", self.compile, "none beside sparse_weight or rate_weight", "leave one away")
        if self.compile and (self.batches == "streams" or self.bptt == "none"):
            fail("compile", self.compile, "none beside batches=streams or bptt=none", "leave one away")
        if self.bptt == "none" and self.backend in ("tiled", "reference"):
            fail("backend", self.backend, "auto, native or composed, since bptt is none", "leave one of them away")
        if self.batches == "streams" and self.backend == "tiled":
            fail("backend", self.backend, "another, since these levels carry no memory", "leave it away")
        if self.compile and self.backend not in ("auto", "composed"):
            fail("backend", self.backend, "auto or composed, since compile is on", "leave one of them away")

    @property
    def tokens_per_step(self) -> int:
        """Tokens read by one optimiser step."""
        return self.batch_size * self.grad_acc_steps * self.block_size


# what a size is trained with unless told otherwise; small ones by experiment (docs/LOG.md), large ones after the paper
TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    "nano": {},  # the defaults of TrainConfig
    "1m": {"block_size": 256, "max_steps": 2500, "learning_rate": 3e-3},
    "2m": {"block_size": 256, "max_steps": 5000, "learning_rate": 2e-3, "warmup_steps": 200},
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


# after the paper (arXiv 2509.26507, Sec. 4): AdamW, 1,000 steps of warm-up, linear decay to a tenth, weight decay 0.1,
# adaptive clipping, memory carried over the minibatches of a stream; the share that is clipped to is Brock et al.'s
PRETRAINING: dict[str, Any] = {
    "batches": "streams",
    "schedule": "linear",
    "warmup_steps": 1000,
    "min_lr_ratio": 0.1,
    "weight_decay": 0.1,
    "clip": "adaptive",
    "grad_clip": 0.01,
}

# small steps, no pull towards zero, and rows that hold most examples of Alpaca in bytes
FINETUNING: dict[str, Any] = {
    "block_size": 512,
    "learning_rate": 1e-3,
    "warmup_steps": 50,
    "max_steps": 1000,
    "weight_decay": 0.0,
    "eval_interval": 100,
}
