"""The index of neurons: read a text once, then ask for any neuron."""

from bdh.lens.index.build import build_index
from bdh.lens.index.page import NeuronPage, panel
from bdh.lens.index.store import Index

__all__ = ["Index", "NeuronPage", "build_index", "panel"]
