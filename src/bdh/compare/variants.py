"""What takes part: a member of the model family or the peer, with settings of its own."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from bdh.config import BDHConfig, TrainConfig, preset
from bdh.sections import SECTIONS, VARIANTS

PEER = "gpt"
PEER_RATE = 1e-3
"""Learning rate of the peer: what nanoGPT trains a GPT of this kind with on this text."""
NAMES = (*VARIANTS, PEER)

# settings of a run that may differ between what is compared; the others would change the comparison
_PEER_TRAINING = ("learning_rate", "min_lr_ratio", "schedule", "weight_decay", "beta1", "beta2", "grad_clip")
_TRAINING = (*_PEER_TRAINING, "sparse_weight", "rate_weight", "backend")
_FIXED = {"variant", "vocab_size", *SECTIONS}


@dataclass(frozen=True)
class Variant:
    """One row of a comparison."""

    name: str
    """As it was asked for; also the name of its directory."""
    model: BDHConfig
    """The model; of the peer, the one whose number of parameters it takes."""
    training: dict[str, Any] = field(default_factory=dict)
    """Fields of `TrainConfig` that are its own."""
    peer: bool = False
    """Whether it is the GPT."""


def parse_variants(text: str, model_size: str = "nano") -> list[Variant]:
    """Return what a comma list of variants stands for.

    Each is `NAME` or `NAME+FIELD=VALUE+FIELD=VALUE`, where a field is one of the model's (`n_layer`), of its sections
    (`lif.tau`) or of the training (`learning_rate`).

    Args:
        text: the list.
        model_size: named size of the models.

    Raises:
        ValueError: unknown name or field, a value out of range, or a name that comes twice.

    Examples:
        >>> plain, spiking = parse_variants("bdh,bdh+lif.tau=10+learning_rate=1e-3")
        >>> spiking.model.lif.tau, spiking.training
        (10.0, {'learning_rate': 0.001})
    """
    names = [name.strip() for name in text.split(",")]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"variant {repeated!r} comes twice: expected each once")
    return [_variant(name, model_size) for name in names]


def _variant(name: str, model_size: str) -> Variant:
    # a plus sign inside a number (1e+3) does not part
    base, *settings = re.split(r"\+(?=[A-Za-z_])", name)
    if base not in NAMES:
        _unknown(f"variant {base!r}", base, NAMES)
    model, training = preset(model_size, variant=None if base == PEER else base), {}
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not value:
            raise ValueError(f"variant {name!r}: {setting!r}: expected FIELD=VALUE, for example lif.tau=10")
        section, dot, inner = key.partition(".")
        if base == PEER:
            _known(name, key, _PEER_TRAINING)
            training[key] = _read(name, key, value, TrainConfig)
        elif dot:
            _known(name, section, SECTIONS)
            _known(name, inner, [f.name for f in dataclasses.fields(SECTIONS[section])], prefix=f"{section}.")
            sections.setdefault(section, {})[inner] = _read(name, inner, value, SECTIONS[section])
        elif key in _TRAINING:
            training[key] = _read(name, key, value, TrainConfig)
        else:
            _known(name, key, [f.name for f in dataclasses.fields(BDHConfig) if f.name not in _FIXED] + [*_TRAINING])
            top[key] = _read(name, key, value, BDHConfig)
    try:
        changed = {section: replace(getattr(model, section), **values) for section, values in sections.items()}
        model = replace(model, **top, **changed)
        TrainConfig.from_dict(training)
    except ValueError as error:
        raise ValueError(f"variant {name!r}: {error}") from None
    return Variant(name, model, training, base == PEER)


def _known(name: str, key: str, choices: Collection[str], prefix: str = "") -> None:
    if key not in choices:
        _unknown(f"variant {name!r}: field {prefix + key!r}", key, choices)


def _unknown(what: str, key: str, choices: Collection[str]) -> NoReturn:
    near = difflib.get_close_matches(key, choices, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what}: expected one of {', '.join(choices)}{hint}")


def _read(name: str, key: str, text: str, kind: type) -> Any:
    """Read a value as the type that the field has; its range is checked by the config."""
    hint = typing.get_type_hints(kind)[key]
    hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text in ("None", "none") and types.NoneType in hints:
        return None
    if any(typing.get_origin(choice) is typing.Literal for choice in hints):
        return text
    flags: Mapping[str, bool] = {"true": True, "false": False}
    if bool in hints and text.lower() in flags:
        return flags[text.lower()]
    for number in (int, float):
        if number in hints:
            try:
                return number(text)
            except ValueError:
                continue
    expected = " or ".join("None" if h is types.NoneType else h.__name__ for h in hints)
    raise ValueError(f"variant {name!r}: {key}={text}: expected {expected}")
