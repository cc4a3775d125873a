"""Members of the model family, parts of them, and a GPT of equal size, trained alike and told apart by their seeds."""

from bdh.compare.report import write_report
from bdh.compare.results import Comparison, Contender, Evaluation, SeedRun
from bdh.compare.runs import Stopped, compare
from bdh.compare.settings import Settings
from bdh.compare.statistics import Estimate, estimate, paired
from bdh.compare.terminal import print_comparison
from bdh.compare.variants import Variant, parse_variants

__all__ = [
    "Comparison",
    "Contender",
    "Estimate",
    "Evaluation",
    "SeedRun",
    "Settings",
    "Stopped",
    "Variant",
    "compare",
    "estimate",
    "paired",
    "parse_variants",
    "print_comparison",
    "write_report",
]
