"""How good a model is: bits per byte, by position too, recall of facts, multiple choice, and a foreign harness."""

from bdh.evaluation.bits import Bits, bits_per_byte
from bdh.evaluation.choices import Choices, Question, multiple_choice, read_questions
from bdh.evaluation.positions import Bin, Positions, by_position
from bdh.evaluation.reading import loglikelihoods, surprisals
from bdh.evaluation.recall import Recall, needle_recall
from bdh.evaluation.report import evaluate
from bdh.evaluation.settings import Settings
from bdh.evaluation.statistics import ratio, share
from bdh.evaluation.texts import Text, load_text

__all__ = [
    "Bin",
    "Bits",
    "Choices",
    "Positions",
    "Question",
    "Recall",
    "Settings",
    "Text",
    "bits_per_byte",
    "by_position",
    "evaluate",
    "load_text",
    "loglikelihoods",
    "multiple_choice",
    "needle_recall",
    "ratio",
    "read_questions",
    "share",
    "surprisals",
]
