"""Low-rank changes of the three maps (LoRA, Hu et al. 2021, arXiv 2106.09685), on the neurons' rows.

Apart from the model that they change, the changes are an adapter, a safetensors file:

    MAP.directions, MAP.coefficients    of encoder, encoder_v and decoder
    parts. ...                          what mechanisms adapt (thresholds, gains); nothing in a model without
    metadata                            rank, alpha, seed, hash of the weights it changes, how to ask the changed model

Shapes: H heads, D embedding, K neurons per head, r rank.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bdh.checkpoint import CheckpointError, fingerprint
from bdh.data.templates import Prompting
from bdh.model import BDH, MAPS

FILE = "adapter.safetensors"
FORMAT = "1"


class LowRank(nn.Module):
    """A change of a map that moves the weights of every neuron along r directions, which its head shares.

        W_n = W_n(0) + (alpha / r) sum_j c_jn d_j        for neuron n, d_j in R^D

    The directions begin at random and the coefficients at zero, so that nothing is changed at first.

    Args:
        shape: H, D, K.
        rank: r.
        alpha: strength; twice the strength is twice the step of an optimiser.
    """

    about: dict[str, str]
    """Metadata of the adapter that it is of."""

    def __init__(self, shape: tuple[int, int, int], rank: int, alpha: float) -> None:
        super().__init__()
        H, D, K = shape
        self.scale = alpha / rank
        self.directions = nn.Parameter(torch.randn(H, D, rank) * D**-0.5)
        self.coefficients = nn.Parameter(torch.zeros(H, rank, K))

    def forward(self, weight: Tensor) -> Tensor:
        """Change an encoder (H, D, K) or the decoder (H*K, D)."""
        change = self.scale * (self.directions @ self.coefficients)  # (H, D, K)
        return weight + (change if weight.ndim == 3 else change.transpose(1, 2).flatten(0, 1))


def add_low_rank(model: BDH, rank: int, alpha: float = 16.0, *, seed: int = 0) -> int:
    """Freeze a model and give its encoders and decoder changes of low rank, which alone are trained.

    The model computes and is saved with the maps as they are changed, under their released names: a checkpoint of it
    is a plain model. One of a training holds the changes too, see `load_adapter`.

    Args:
        model: changed in place.
        rank: r; the maps have rank D at most.
        alpha: see `LowRank`.
        seed: of the directions; the caller's random state is untouched.

    Returns:
        How many parameters are trained.

    Raises:
        ValueError: the rank is out of range, the model has such changes, or its weights are under masks or signs,
            which a sum would break.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> add_low_rank(model, rank=2), sorted(model.state_dict())[1:3]
        (576, ['embed.weight', 'encoder'])
    """
    added = _changes(model, rank, alpha, seed)
    about = {"rank": str(rank), "alpha": repr(float(alpha)), "seed": str(seed), "base": fingerprint(model)}
    model.requires_grad_(False)
    for name, part in added.items():
        part.about = about
        parametrize.register_parametrization(model, name, part)
    nn.Module.register_state_dict_post_hook(model, _as_changed)
    return sum(parameter.numel() for part in added.values() for parameter in part.parameters())


def _changes(model: BDH, rank: int, alpha: float, seed: int) -> dict[str, LowRank]:
    """Return a change for every map of a model, which is not changed yet."""
    c = model.config
    if not 1 <= rank <= c.n_embd or not alpha > 0:
        raise ValueError(f"lora_rank={rank}, lora_alpha={alpha:g}: expected 1 <= rank <= n_embd={c.n_embd}, alpha > 0")
    held = [name for name in ("dale", "scale_free") if getattr(c, name).on]
    if held:
        raise ValueError(f"lora_rank={rank}: expected free weights, {held[0]} holds them; leave --lora-rank away")
    if _parts(model):
        raise ValueError(f"lora_rank={rank}: expected a plain model, got one with changes of low rank")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = (c.n_head, c.n_embd, c.neurons_per_head)
        return {name: LowRank(shape, rank, alpha).to(model.embed.weight) for name in MAPS}


def _parts(model: BDH) -> dict[str, LowRank]:
    """Return the change of every map, if they have any."""
    changed = [name for name in MAPS if parametrize.is_parametrized(model, name)]
    found = {name: model.get_submodule(f"parametrizations.{name}.0") for name in changed}
    return {name: part for name, part in found.items() if isinstance(part, LowRank)}


def _as_changed(model: nn.Module, tensors: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in [name for name in tensors if name.startswith(f"{prefix}parametrizations.")]:
        del tensors[name]
    tensors |= {prefix + name: getattr(model, name).detach() for name in MAPS}


# --- adapters -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapter:
    """Changes of low rank, apart from the model that they change."""

    tensors: dict[str, Tensor]
    """As the file names them."""
    about: dict[str, str]
    """Its metadata."""

    @classmethod
    def of(cls, model: BDH) -> Adapter | None:
        """Return the changes of a model, not copied; None if there are none."""
        parts = _parts(model)
        return cls(_tensors(model, parts), parts[MAPS[0]].about) if parts else None

    def write(self, directory: str | Path, asked: Prompting | None = None) -> Path:
        """Write the file into an existing directory, with how the changed model is to be asked, and return its path."""
        file = Path(directory) / FILE
        words = json.dumps(asked.to_dict() if asked else {})
        save_file(self.tensors, file, metadata={"format": FORMAT, **self.about, "prompting": words})
        return file


def load_adapter(model: BDH, path: str | Path) -> Prompting | None:
    """Change a model as an adapter says; it stays a plain model.

    Args:
        model: the weights that the adapter was trained on, unchanged; changed in place.
        path: adapter.safetensors of a checkpoint of `bdh finetune --lora-rank`.

    Returns:
        How the changed model was taught to be asked, if it was.

    Raises:
        CheckpointError: no such file, it is damaged, or it was trained on other weights.
    """
    tensors, about = _read(Path(path), fingerprint(model))
    try:
        parts = _changes(model, int(about["rank"]), float(about["alpha"]), seed=0)
        asked = Prompting.from_dict(json.loads(about["prompting"]))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    _fill(model, parts, tensors, Path(path))
    with torch.no_grad():
        for name, part in parts.items():
            weight = getattr(model, name)
            weight.copy_(part(weight))
    return asked


def restore_adapter(model: BDH, path: Path) -> bool:
    """Give a model of `add_low_rank` the changes that it had when a checkpoint was made, to train them on.

    Args:
        model: changed in place.
        path: where its adapter is, if there are changes.

    Returns:
        Whether there are any: neither is a plain model changed, nor has its checkpoint an adapter.

    Raises:
        CheckpointError: only one of them is of low rank, in another way, or of other weights.
    """
    parts = _parts(model)
    if not parts:
        if path.exists():
            raise CheckpointError(f"{path.parent} was trained with changes of low rank: give its --lora-rank to resume")
        return False
    if not path.exists():
        raise CheckpointError(f"{path.parent} was trained without --lora-rank: leave it away to resume")
    now = parts[MAPS[0]].about
    tensors, about = _read(path, now["base"])
    for name in ("rank", "alpha", "seed"):
        if about[name] != now[name]:
            raise CheckpointError(f"{path.parent} was trained with lora {name} {about[name]}, not {now[name]}: keep it")
    _fill(model, parts, tensors, path)
    return True


def _tensors(model: BDH, parts: dict[str, LowRank]) -> dict[str, Tensor]:
    """Return what an adapter holds, the tensors themselves."""
    found = {f"{name}.{key}": tensor for name, part in parts.items() for key, tensor in part.state_dict().items()}
    adapting = {f"parts.{name}" for name, _ in model.parts.named_buffers()}
    return found | {name: kept for name, kept in model.parts.state_dict(prefix="parts.").items() if name in adapting}


def _fill(model: BDH, parts: dict[str, LowRank], tensors: dict[str, Tensor], path: Path) -> None:
    targets = _tensors(model, parts)
    shapes = ({name: tuple(tensor.shape) for name, tensor in some.items()} for some in (targets, tensors))
    if next(shapes) != next(shapes):
        raise CheckpointError(f"{path}: its tensors do not fit the model and the rank that it names; it is damaged")
    for name, target in targets.items():
        target.copy_(tensors[name])


def _read(path: Path, base: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of an adapter that changes the weights with the hash `base`."""
    if not path.is_file():
        raise CheckpointError(f"no adapter at {path}: expected the file {FILE} of bdh finetune --lora-rank")
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, str] = file.metadata() or {}
            if about.get("format") != FORMAT or {"rank", "alpha", "seed", "base", "prompting"} - about.keys():
                raise ValueError(f"its metadata are not those of format {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no adapter ({error}): expected {FILE} of bdh finetune --lora-rank") from None
    if about["base"] != base:
        raise CheckpointError(
            f"{path} changes weights with the hash {about['base'][:12]}, not {base[:12]}: expected the model that it "
            "was trained on, as it was then"
        )
    return tensors, about
