"""Where text comes from (corpora), how it becomes tokens (tokenizers) and batches (streams)."""

from bdh.data.corpora import CORPORA, Corpus, CorpusError, load_corpus
from bdh.data.examples import Example, ExampleCorpus, Examples, load_examples, opening
from bdh.data.order import Batch, DocumentStreams, RandomWindows, cut_documents, document_starts
from bdh.data.shards import read_documents
from bdh.data.streams import fixed_windows, random_windows, scored_share, spread
from bdh.data.subwords import SubwordTokenizer, read_tokenizer, train_bpe
from bdh.data.templates import TEMPLATES, Prompting, Template, fill
from bdh.data.tokenizers import ByteTokenizer, TextDecoder, Tokenizer

__all__ = [
    "CORPORA",
    "TEMPLATES",
    "Batch",
    "ByteTokenizer",
    "Corpus",
    "CorpusError",
    "DocumentStreams",
    "Example",
    "ExampleCorpus",
    "Examples",
    "Prompting",
    "RandomWindows",
    "SubwordTokenizer",
    "Template",
    "TextDecoder",
    "Tokenizer",
    "cut_documents",
    "document_starts",
    "fill",
    "fixed_windows",
    "load_corpus",
    "load_examples",
    "opening",
    "random_windows",
    "read_documents",
    "read_tokenizer",
    "scored_share",
    "spread",
    "train_bpe",
]
