"""Where text comes from (corpora), how it becomes tokens (tokenizers) and batches (streams)."""

from bdh.data.corpora import CORPORA, Corpus, CorpusError, load_corpus
from bdh.data.streams import fixed_windows, random_windows, spread
from bdh.data.tokenizers import ByteTokenizer, TextDecoder

__all__ = [
    "CORPORA",
    "ByteTokenizer",
    "Corpus",
    "CorpusError",
    "TextDecoder",
    "fixed_windows",
    "load_corpus",
    "random_windows",
    "spread",
]
