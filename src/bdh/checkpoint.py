"""Models on disk: a directory with model.safetensors and config.json.

Nothing here runs code from a file: there are tensors and JSON in it. Names and shapes are checked against the config
before the model is built.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bdh import manifest
from bdh.config import BDHConfig
from bdh.data.subwords import FILE as TOKENIZER
from bdh.data.subwords import read_tokenizer
from bdh.data.templates import Prompting
from bdh.data.tokenizers import ByteTokenizer, Tokenizer
from bdh.files import replacing_directory, replacing_file
from bdh.model import BDH, State

WEIGHTS = "model.safetensors"
SHARDS = ".metadata"
"""Index of a checkpoint that ranks wrote their parts of, see `bdh.train.sharding`; it stands instead of weights."""
CONFIG = "config.json"
FORMAT = 1


class CheckpointError(ValueError):
    """A file or directory that is not a usable checkpoint."""


def parameter_shapes(config: BDHConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of a model, in the released layout; those of mechanisms come after."""
    return {name: tuple(tensor.shape) for name, tensor in _empty(config).state_dict().items()}


def _empty(config: BDHConfig) -> BDH:
    """Return a model without memory for its weights."""
    with torch.device("meta"):
        return BDH(config)


def save(model: BDH, path: str | Path, tokenizer: Tokenizer | None = None, asked: Prompting | None = None) -> Path:
    """Write a model to the directory `path`: model.safetensors, config.json, and tokenizer.json if there is one.

    A model that stands there already is replaced; anything else is not.

    Args:
        model: what to write.
        path: a directory.
        tokenizer: what its tokens are; None: bytes.
        asked: how it was taught to be asked, if it was.

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
        write_model(model, work, tokenizer, asked)
    return target


def write_model(
    model: BDH, directory: Path, tokenizer: Tokenizer | None = None, asked: Prompting | None = None
) -> None:
    """Write the model's files into an existing directory (no atomicity of its own)."""
    write_weights(model.state_dict(), model.config, directory, tokenizer, asked)


def write_weights(
    weights: dict[str, Tensor],
    config: BDHConfig,
    directory: Path,
    tokenizer: Tokenizer | None = None,
    asked: Prompting | None = None,
) -> None:
    """Write the files of the model that has these weights."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_config(config, directory, tokenizer, asked)


def write_config(
    config: BDHConfig, directory: Path, tokenizer: Tokenizer | None = None, asked: Prompting | None = None
) -> None:
    """Write all files of a model but its weights into an existing directory."""
    about = {"format": FORMAT, "model": config.to_dict(), "tokenizer": tokenizer.name if tokenizer else "bytes"}
    about |= asked.to_dict() if asked else {}
    if tokenizer and (definition := tokenizer.definition()) is not None:
        (directory / TOKENIZER).write_text(definition, encoding="utf-8")
    (directory / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def load(path: str | Path, device: torch.device | str = "cpu") -> BDH:
    """Read a model written by `save` or by a training run (its best whole checkpoint, see `resolve`).

    Args:
        path: a checkpoint directory or a run directory.
        device: where the weights go.

    Returns:
        The model, in eval mode, in the precision it was saved in.

    Raises:
        CheckpointError: missing, damaged or foreign files, or tensors that do not fit the config.
    """
    directory = resolve(path)
    config = read_config(directory)
    weights = directory / WEIGHTS
    try:
        with safe_open(weights, framework="pt", device=str(device)) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: tuple(part.get_shape()) for name, part in slices.items()}
            check_shapes(found, config, weights)
            # the rest are masks, signs, thresholds and counters
            learned = {name for name, _ in _empty(config).named_parameters()}
            types = {part.get_dtype() for name, part in slices.items() if name in learned}
            check_types(types, {"F64", "F32", "F16", "BF16"}, weights)
            tensors = {name: file.get_tensor(name) for name in found}
    except FileNotFoundError:
        if (directory / SHARDS).is_file():
            raise CheckpointError(
                f"{directory} is in parts: make a model of it by bdh convert, or go on by --parallel fsdp or neurons"
            ) from None
        raise CheckpointError(f"{directory} has no {WEIGHTS}: expected a directory written by bdh.save") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{weights} cannot be read ({error}): it is damaged or cut off; use another") from None
    return build(config, tensors).eval()


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


def load_prompting(path: str | Path) -> Prompting | None:
    """Read how a model was taught to be asked, with `path` as for `load_tokenizer`; None if it was not.

    Raises:
        CheckpointError: no such model, or a template that is not known.
    """
    content = {} if Path(path).is_file() else _read_json(file := resolve(path) / CONFIG)
    try:
        return Prompting.from_dict(content)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None


def resolve(path: str | Path) -> Path:
    """Return the checkpoint directory that `path` names: itself, or the best (else last) one of a run.

    What a model is read from is compared with the manifest, where training wrote one. Of a run, a damaged checkpoint
    gives way to the next with a warning: the last one, then older ones.

    Raises:
        CheckpointError: there is no checkpoint, or none that is whole.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}: expected a directory written by bdh.save or bdh train")
    if path.is_file():
        raise CheckpointError(f"{path} is a file: expected the directory of a run or model (.pt files: bdh convert)")
    if (path / CONFIG).exists() or (path / manifest.FILE).exists():
        if problem := _misread(path):
            raise CheckpointError(f"{path} is damaged: {problem}; use another checkpoint")
        return path
    of_run = [pointed(path, "best"), pointed(path, "last"), *reversed(kept(path))]
    if not any(of_run):
        raise CheckpointError(
            f"{path} holds no checkpoint ({CONFIG} is missing); give the directory of a run or a model"
        )
    return first_whole(list(dict.fromkeys(filter(None, of_run))), _misread)


def first_whole(checkpoints: Sequence[Path], damage: Callable[[Path], str | None]) -> Path:
    """Return the first of some checkpoints of a run that is not damaged, and warn of every one before it.

    Raises:
        CheckpointError: all are damaged.
    """
    for directory, after in zip_longest(checkpoints, checkpoints[1:]):
        problem = damage(directory)
        if problem is None:
            return directory
        then = f"{after.name} is tried" if after else "no other is left"
        _warn(f"{directory} is damaged: {problem}; {then}")
    raise CheckpointError(
        f"{checkpoints[0].parent}: none of {len(checkpoints)} checkpoints is whole: put back a copy of one, or train "
        "anew in another --out-dir"
    )


@lru_cache(maxsize=64)  # a command asks for weights, tokenizer and template of the same run
def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _misread(directory: Path) -> str | None:
    """Return what is wrong with the files that a model is read from; models of `save` have no manifest to tell."""
    if not (directory / manifest.FILE).exists():
        return None
    stats = [file.stat() for file in sorted(directory.iterdir())]
    return _compared(directory.absolute(), tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats))


@lru_cache(maxsize=64)  # weights, tokenizer and template are asked for one after the other
def _compared(directory: Path, _stamps: tuple[tuple[int, ...], ...]) -> str | None:
    in_parts = (directory / SHARDS).is_file()
    return manifest.damage(directory, None if in_parts else {WEIGHTS, CONFIG, TOKENIZER}, quick=True)


def kept(run: Path) -> list[Path]:
    """Return the checkpoints that are in a run directory, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdecimal())


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


def check_shapes(found: dict[str, tuple[int, ...]], config: BDHConfig, source: Path) -> None:
    expected = parameter_shapes(config)
    for name in expected.keys() | found.keys():
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{source}: {name} expected {expected.get(name, 'not to exist')}, got {found.get(name, 'nothing')}; "
                "the weights do not belong to this config"
            )


def check_types(found: set[Any], allowed: set[Any], source: Path) -> None:
    if len(found) != 1 or not found <= allowed:
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in found))
        raise CheckpointError(f"{source}: expected weights of one floating-point type, got {names}")


def build(config: BDHConfig, tensors: dict[str, Tensor]) -> BDH:
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
