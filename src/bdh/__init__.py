"""Baby Dragon Hatchling: a brain-inspired language model that can be looked into."""

from bdh import lens
from bdh.checkpoint import import_checkpoint, load, load_state, save, save_state
from bdh.config import BDHConfig, TrainConfig, preset
from bdh.model import BDH, State

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
