"""Training: one loop, a learning-rate schedule, and the run directory."""

from bdh.train.distributed import LostRankError, World, joined
from bdh.train.fit import NonFiniteError, Result, fit
from bdh.train.neurons import NeuronShard
from bdh.train.report import Reporter
from bdh.train.run import Run
from bdh.train.schedule import learning_rate
from bdh.train.setup import make_optimizer, pick_device, pick_dtype

__all__ = [
    "LostRankError",
    "NeuronShard",
    "NonFiniteError",
    "Reporter",
    "Result",
    "Run",
    "World",
    "fit",
    "joined",
    "learning_rate",
    "make_optimizer",
    "pick_device",
    "pick_dtype",
]
