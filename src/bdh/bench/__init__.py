"""What the package does on this machine, beside the naive way and beside a peer."""

from bdh.bench.contenders import CONTENDERS
from bdh.bench.measure import run
from bdh.bench.planted import plant
from bdh.bench.report import check, report
from bdh.bench.results import Column, Learning, Memory, Table, Timing
from bdh.bench.settings import CASES, Case, Point, Settings

__all__ = [
    "CASES",
    "CONTENDERS",
    "Case",
    "Column",
    "Learning",
    "Memory",
    "Point",
    "Settings",
    "Table",
    "Timing",
    "check",
    "plant",
    "report",
    "run",
]
