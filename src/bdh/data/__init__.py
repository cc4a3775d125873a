"""Where text comes from (corpora), how it becomes tokens (tokenizers) and batches (streams)."""

from bdh.data.corpora import CORPORA, Corpus, CorpusError, load_corpus
from bdh.data.order import Batch, DocumentStreams, RandomWindows, cut_documents, document_starts
from bdh.data.shards import read_documents
from bdh.data.streams import fixed_windows, random_windows, scored_share, spread
from bdh.data.subwords import SubwordTokenizer, read_tokenizer, train_bpe
from bdh.data.tokenizers import ByteTokenizer, TextDecoder, Tokenizer

__all__ = [
    "CORPORA",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "CorpusError",
    "DocumentStreams",
    "RandomWindows",
    "SubwordTokenizer",
    "TextDecoder",
    "Tokenizer",
    "cut_documents",
    "document_starts",
    "fixed_windows",
    "load_corpus",
    "random_windows",
    "read_documents",
    "read_tokenizer",
    "scored_share",
    "spread",
    "train_bpe",
]
