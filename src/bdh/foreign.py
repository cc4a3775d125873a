"""Other people's .pt files: official state dicts and the checkpoints of community training scripts.

They are read by torch's restricted loader, so that no code in them runs. Names and shapes are checked against the
config before the model is built.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bdh import ops
from bdh.checkpoint import CheckpointError, build, check_shapes, check_types
from bdh.config import BDHConfig
from bdh.model import BDH

# training code in the wild wraps the state dict under one of these
_STATE_KEYS = ("model_state", "model_state_dict", "model", "state_dict")
# a prefix of torch.compile or of a parallel wrapper
_PREFIXES = ("_orig_mod.", "module.")
# a function of the config in this package, stored by others
_FREQUENCIES = "attn.freqs"
# a parameter of the first released version, which nothing in it reads
_UNUSED = "lm_gate"
# what community configs say beside the fields of BDHConfig; attn_window is looked at
_KNOWN_ELSEWHERE = {"attn_window", "latent_token_id"}


def import_checkpoint(path: str | Path, *, n_layer: int | None = None) -> BDH:
    """Read a .pt file as the released code or community training scripts write them.

    Understood: a bare state dict; a training checkpoint that holds one under "model_state", "model",
    "state_dict" or "model_state_dict" beside a "config"; `torch.compile` prefixes; the `lm_gate` of the first
    released version, which it never read. Optimiser state and other keys are ignored, stored rotary frequencies
    compared with those of this package. The file is read by torch's restricted loader: no code in it can run.

    Args:
        path: the .pt file.
        n_layer: number of levels, when the file does not say. It cannot be read off the weights, since levels
            share them; without it a file with no config is taken to have the released default of 6, with a warning.

    Returns:
        The model, in eval mode.

    Raises:
        CheckpointError: not such a file, truncated, made of anything but plain tensors, or of a wrong shape.
    """
    path = Path(path)
    content = _read_restricted(path, "meta")
    found, stored = _state_dict(content, path)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items() if name != _FREQUENCIES}
    chosen = _foreign_config(stored, shapes, path, n_layer)
    check_shapes(shapes, chosen, path)
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
            raise CheckpointError(f"{path}: {name} is not a plain dense tensor; save it with .contiguous()")
    floats = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    check_types({tensor.dtype for name, tensor in found.items() if name != _FREQUENCIES}, floats, path)
    tensors, _ = _state_dict(_read_restricted(path, "cpu"), path)
    _check_frequencies(tensors.pop(_FREQUENCIES, None), chosen, path)
    return build(chosen, {name: tensor.contiguous() for name, tensor in tensors.items()}).eval()


def _read_restricted(path: Path, device: str) -> Any:
    if not path.is_file():
        raise CheckpointError(f"no file at {path}: expected a .pt checkpoint")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the loader raises many kinds for a file that is not a checkpoint
        # its own text recommends loading the file unsafely, so it is not repeated
        raise CheckpointError(
            f"{path} was refused: expected a complete .pt file of plain tensors ({type(error).__name__}); "
            "nothing in it was run"
        ) from None


def _state_dict(content: Any, path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the weights by their released names, and the stored config if there is one."""
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a state dict or a dict with one")
    stored = content.get("config")
    state = next((content[key] for key in _STATE_KEYS if isinstance(content.get(key), dict)), content)
    weights: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(key, str) and isinstance(value, Tensor):
            name = key
            while name.startswith(_PREFIXES):
                name = name.split(".", 1)[1]
            weights[name] = value
    if weights.get(_UNUSED, torch.empty(0)).shape[1:] == (1,):
        del weights[_UNUSED]
    missing = [name for name in ("embed.weight", "encoder", "encoder_v", "decoder", "lm_head") if name not in weights]
    if missing:
        raise CheckpointError(f"{path} has no weights named {', '.join(missing)}: it is not a BDH checkpoint")
    return weights, stored


def _check_frequencies(stored: Tensor | None, config: BDHConfig, path: Path) -> None:
    """Refuse a model that rotates otherwise: its weights would load, and mean something else."""
    K = config.neurons_per_head
    # within what a cast to half precision rounds
    same = stored is None or (stored.numel() == K and torch.allclose(
        stored.flatten().double(), ops.frequencies(K).repeat_interleave(2), rtol=1e-2, atol=0.0
    ))  # fmt: skip
    if not same:
        raise CheckpointError(f"{path}: its rotary frequencies are not those of the released model: not supported")


def _foreign_config(stored: Any, shapes: dict[str, tuple[int, ...]], path: Path, n_layer: int | None) -> BDHConfig:
    """Build the config from what the file stores, or from the shapes and the released default of 6 levels."""
    get: Callable[[str, Any], Any] = stored.get if isinstance(stored, dict) else lambda _key, default: default
    if len(shapes["encoder"]) != 3 or len(shapes["embed.weight"]) != 2:
        raise CheckpointError(f"{path}: encoder {shapes['encoder']} is not (heads, width, neurons per head)")
    H, D, K = shapes["encoder"]
    if D == 0 or (H * K) % D:
        raise CheckpointError(f"{path}: {H * K} neurons are not a multiple of the width {D}")
    if get("attn_window", None) is not None:
        raise CheckpointError(f"{path}: attn_window={get('attn_window', None)} is not supported: expected none")
    known = _KNOWN_ELSEWHERE | {field.name for field in fields(BDHConfig)}
    if unknown := sorted(map(str, stored.keys() - known)) if isinstance(stored, dict) else []:
        warnings.warn(f"{path}: settings not known here are left out: {', '.join(unknown)}", stacklevel=3)
    if n_layer is None:
        n_layer = get("n_layer", None)
    if n_layer is None:
        n_layer = BDHConfig.n_layer
        warnings.warn(f"{path} does not say how many levels it has: {n_layer} assumed, as released", stacklevel=3)
    try:
        return BDHConfig(
            n_layer=n_layer,
            n_embd=get("n_embd", D),
            n_head=get("n_head", H),
            mlp_internal_dim_multiplier=get("mlp_internal_dim_multiplier", H * K // D),
            vocab_size=get("vocab_size", shapes["embed.weight"][0]),
            dropout=get("dropout", BDHConfig.dropout),
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from None
