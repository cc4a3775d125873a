"""Baby Dragon Hatchling: a brain-inspired language model that can be looked into."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bdh import lens
    from bdh.checkpoint import load, load_state, save, save_state
    from bdh.config import BDHConfig, TrainConfig, preset
    from bdh.foreign import import_checkpoint
    from bdh.model import BDH
    from bdh.state import State

__version__ = "0.1.0"

__all__ = [
    "BDH",
    "BDHConfig",
    "State",
    "TrainConfig",
    "import_checkpoint",
    "lens",
    "load",
    "load_state",
    "preset",
    "save",
    "save_state",
]

_HOMES = {
    "checkpoint": ("load", "load_state", "save", "save_state"),
    "config": ("BDHConfig", "TrainConfig", "preset"),
    "foreign": ("import_checkpoint",),
    "model": ("BDH",),
    "state": ("State",),
}


# torch is loaded with the first name that is asked for, so that the command line can set up its threads before
def __getattr__(name: str) -> object:
    if name == "lens":
        return importlib.import_module("bdh.lens")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"bdh.{module}"), name)
    raise AttributeError(f"module 'bdh' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
