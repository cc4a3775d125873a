"""Models on disk: a directory with model.safetensors and config.json; and import of foreign .pt files.

Nothing here runs code from a file: our format holds tensors and JSON, foreign files are read by torch's
restricted loader. Names and shapes are checked against the config before the model is built.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bdh.config import BDHConfig
from bdh.data.subwords import FILE as TOKENIZER
from bdh.data.subwords import read_tokenizer
from bdh.data.tokenizers import ByteTokenizer, Tokenizer
from bdh.files import replacing_directory, replacing_file
from bdh.model import BDH, State

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1

# training code in the wild wraps the state dict under one of these
_STATE_KEYS = ("model_state", "model_state_dict", "model", "state_dict")
# a prefix of torch.compile or of a parallel wrapper
_PREFIXES = ("_orig_mod.", "module.")
# a function of the config in this package, stored by others
_DERIVED = ("attn.freqs",)


class CheckpointError(ValueError):
    """A file or directory that is not a usable checkpoint."""


def parameter_shapes(config: BDHConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a model, in the released layout; those of mechanisms come after."""
    return {name: tuple(tensor.shape) for name, tensor in _empty(config).state_dict().items()}


def _empty(config: BDHConfig) -> BDH:
    """Return a model without memory for its weights."""
    with torch.device("meta"):
        return BDH(config)


def save(model: BDH, path: str | Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write a model to the directory `path`: model.safetensors, config.json, and tokenizer.json if there is one.

    A model that stands there already is replaced; anything else is not.

    Args:
        model: what to write.
        path: a directory.
        tokenizer: what its tokens are; None: bytes.

    Returns:
        The directory.

    Raises:
        ValueError: `path` is a file, or a directory that holds more than a model.

    Examples:
        >>> import bdh, tempfile
        >>> model = bdh.BDH(bdh.BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     same = bdh.load(bdh.save(model, folder + "/hatchling"))
        >>> bool((same.decoder == model.decoder).all())
        True
    """
    target = Path(path)
    if target.is_file():
        raise ValueError(f"{target} is a file: expected the name of a directory to write the model to")
    others = {file.name for file in target.iterdir()} - {WEIGHTS, CONFIG, TOKENIZER} if target.is_dir() else set()
    if others:
        raise ValueError(f"{target} holds other files ({min(others)}, ...): choose a new directory for the model")
    with replacing_directory(target) as work:
        write_model(model, work, tokenizer)
    return target


def write_model(model: BDH, directory: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write the model's files into an existing directory (no atomicity of its own)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_config(model, directory, tokenizer)


def write_config(model: BDH, directory: Path, tokenizer: Tokenizer | None = None) -> None:
    """Write all files of a model but its weights into an existing directory."""
    config = {"format": FORMAT, "model": model.config.to_dict(), "tokenizer": tokenizer.name if tokenizer else "bytes"}
    if tokenizer and (definition := tokenizer.definition()) is not None:
        (directory / TOKENIZER).write_text(definition, encoding="utf-8")
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, device: torch.device | str = "cpu") -> BDH:
    """Read a model written by `save` or by a training run (its best checkpoint, else its last).

    Args:
        path: a checkpoint directory or a run directory.
        device: where the weights go.

    Returns:
        The model, in eval mode, in the precision it was saved in.

    Raises:
        CheckpointError: missing, truncated or foreign files, or tensors that do not fit the config.
    """
    directory = resolve(path)
    config = read_config(directory)
    weights = directory / WEIGHTS
    try:
        with safe_open(weights, framework="pt", device=str(device)) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: tuple(part.get_shape()) for name, part in slices.items()}
            _check_shapes(found, config, weights)
            # the rest are masks, signs, thresholds and counters
            learned = {name for name, _ in _empty(config).named_parameters()}
            types = {part.get_dtype() for name, part in slices.items() if name in learned}
            _check_types(types, {"F64", "F32", "F16", "BF16"}, weights)
            tensors = {name: file.get_tensor(name) for name in found}
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {WEIGHTS}: expected a directory written by bdh.save") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} cannot be read ({error}): it is damaged or cut off; use another") from None
    return _build(config, tensors).eval()


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read what the tokens of a model are.

    Args:
        path: as for `load`; a .pt file holds a byte model.

    Raises:
        CheckpointError: no such model, or its tokenizer is damaged.
        ValueError: the package that reads it is missing.
    """
    if Path(path).is_file():
        return ByteTokenizer()
    directory = resolve(path)
    name = _read_json(directory / CONFIG).get("tokenizer", ByteTokenizer.name)
    if name == ByteTokenizer.name:
        return ByteTokenizer()
    if name != TOKENIZER:
        raise CheckpointError(f"{directory / CONFIG}: tokenizer {name!r}: expected {ByteTokenizer.name} or {TOKENIZER}")
    return read_tokenizer(directory / TOKENIZER)


def resolve(path: str | Path) -> Path:
    """Return the checkpoint directory that `path` names: itself, or the best (else last) one of a run."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: expected a directory written by bdh.save or bdh train")
    if path.is_file():
        raise CheckpointError(f"{path} is a file: expected the directory of a run or model (.pt files: bdh convert)")
    if (path / CONFIG).exists():
        return path
    for pointer in ("best", "last"):
        chosen = pointed(path, pointer)
        if chosen is not None:
            return chosen
    raise CheckpointError(f"{path} holds no checkpoint ({CONFIG} is missing); give the directory of a run or a model")


def pointed(run: Path, pointer: str) -> Path | None:
    """Return the checkpoint that the pointer file `run/checkpoints/<pointer>` names, if both exist."""
    file = run / "checkpoints" / pointer
    if not file.is_file():
        return None
    name = file.read_text(encoding="utf-8", errors="replace").strip()
    chosen = file.parent / name
    return chosen if name and chosen.parent == file.parent and chosen.is_dir() else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error}); the checkpoint is not usable") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{file} is not a model config of format {FORMAT}: expected what bdh.save writes")
    return content


def read_config(directory: Path) -> BDHConfig:
    """Return the shape of the model in a directory.

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    file = directory / CONFIG
    content = _read_json(file)
    try:
        return BDHConfig.from_dict(content["model"])
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file}: {error}") from None


def _check_shapes(found: dict[str, tuple[int, ...]], config: BDHConfig, source: Path) -> None:
    expected = parameter_shapes(config)
    for name in expected.keys() | found.keys():
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{source}: {name} expected {expected.get(name, 'not to exist')}, got {found.get(name, 'nothing')}; "
                "the weights do not belong to this config"
            )


def _check_types(found: set[Any], allowed: set[Any], source: Path) -> None:
    if len(found) != 1 or not found <= allowed:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in found))
        raise CheckpointError(f"{source}: expected weights of one floating-point type, got {names}")


def _build(config: BDHConfig, tensors: dict[str, Tensor]) -> BDH:
    # on meta nothing is allocated; assign=True then adopts the tensors as they are, in their precision
    model = _empty(config)
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.parts.mask([model.encoder, model.encoder_v, model.decoder])
    return model


# --- states ---------------------------------------------------------------------------------------------------


def fingerprint(model: BDH) -> str:
    """Return a hash of the model's weights: a state is of use to the weights that made it, and to no others."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_state(state: State, path: str | Path, model: BDH | None = None) -> Path:
    """Write what a model remembers to one safetensors file, atomically.

    Args:
        state: what `advance` returned.
        path: the file.
        model: whose state it is; then `load_state` can tell if it is handed to another.

    Examples:
        >>> import bdh, tempfile
        >>> model = bdh.BDH(bdh.BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> _, state = model.advance(torch.tensor([[1, 2, 3]]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     same = load_state(save_state(state, folder + "/memory.safetensors", model), model)
        >>> same.position
        3
    """
    tensors = {
        f"{name}.{level}": part.detach().cpu().contiguous()
        for level in range(len(state.rho))
        for name, part in state.level(level).items()
    }
    about = {"format": str(FORMAT), "position": str(state.position), "model": fingerprint(model) if model else ""}
    with replacing_file(path) as work:
        save_file(tensors, work, metadata=about)
    return Path(path)


def load_state(path: str | Path, model: BDH | None = None, device: torch.device | str = "cpu") -> State:
    """Read a state written by `save_state`.

    Raises:
        CheckpointError: not such a file, or the state of other weights than `model`'s.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            about = file.metadata()
            position, owner = int(about["position"]), about["model"]
            levels: dict[int, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118
                name, _, level = key.rpartition(".")
                levels.setdefault(int(level), {})[name] = file.get_tensor(key)
            state = State.of_levels([levels[level] for level in range(len(levels))], position)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a saved state ({error}): expected a file of save_state") from None
    if model is not None and owner and owner != fingerprint(model):
        raise CheckpointError(f"{path} is the state of another model: expected one that these weights made")
    return state


# --- foreign files -------------------------------------------------------------------------------------------


def import_checkpoint(path: str | Path, *, n_layer: int | None = None) -> BDH:
    """Read a .pt file as the released code or community training scripts write them.

    Understood: a bare state dict; a training checkpoint that holds one under "model_state", "model",
    "state_dict" or "model_state_dict" beside a "config"; `torch.compile` prefixes. Optimiser state and other
    keys are ignored. The file is read by torch's restricted loader: no code in it can run.

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
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    chosen = _foreign_config(stored, shapes, path, n_layer)
    _check_shapes(shapes, chosen, path)
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.numel() * tensor.itemsize:
            raise CheckpointError(f"{path}: {name} is not a plain dense tensor; save it with .contiguous()")
    floats = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    _check_types({tensor.dtype for tensor in found.values()}, floats, path)
    tensors, _ = _state_dict(_read_restricted(path, "cpu"), path)
    return _build(chosen, {name: tensor.contiguous() for name, tensor in tensors.items()}).eval()


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
            if name not in _DERIVED:
                weights[name] = value
    missing = [name for name in ("embed.weight", "encoder", "encoder_v", "decoder", "lm_head") if name not in weights]
    if missing:
        raise CheckpointError(f"{path} has no weights named {', '.join(missing)}: it is not a BDH checkpoint")
    return weights, stored


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
