"""Which text is scored: what was held out, or all of a text that the model has not seen."""

import json
from pathlib import Path

import pytest

from bdh.data import ByteTokenizer, CorpusError, load_corpus, train_bpe
from bdh.data.prepare import Settings, prepare
from bdh.evaluation import load_text

BYTES = ByteTokenizer()


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    file = tmp_path / "cats.txt"
    file.write_text("".join(f"cat {n} sat.\n" for n in range(100)))
    return file


def test_of_the_text_of_the_training_only_what_was_held_out(cats: Path) -> None:
    whole = cats.read_bytes()
    corpus = load_corpus(data=cats)
    facts = {"text": {"dataset": "shakespeare", "data": str(cats)}, "data": corpus.info}
    for data in (None, cats):
        text = load_text(BYTES, data=data, facts=facts)
        assert (text.part, bytes(text.tokens)) == ("validation split", whole[int(0.9 * len(whole)) :])
    assert bytes(load_text(BYTES, data=cats).tokens) == whole
    renamed = cats.with_name("copy.txt")
    renamed.write_bytes(whole)
    assert load_text(BYTES, data=renamed, facts=facts).part == "validation split"
    renamed.write_bytes(b"!" + whole)
    assert load_text(BYTES, data=renamed, facts=facts).part == "whole text"


def test_documents_are_joined_as_prepare_joins_them(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\n")
    (tmp_path / "s.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    for name in ("s.txt", "s.jsonl"):
        text = load_text(BYTES, data=tmp_path / name)
        assert (bytes(text.tokens), text.separator) == (b"\0one\0two", 0)


def test_any_tokens_keep_the_text(cats: Path) -> None:
    words = train_bpe(iter([cats.read_bytes()]), 280)
    text = load_text(words, data=cats)
    assert words.decode(text.tokens) == cats.read_text()
    assert text.lossless
    assert text.separator is None
    assert len(text.tokens) < len(cats.read_bytes())
    beginning = text.beginning(100, words)
    assert 80 < words.token_bytes()[beginning.tokens].sum() < 120


def test_prepared_text_is_its_validation_split(tmp_path: Path) -> None:
    source = tmp_path / "s.txt"
    source.write_text("".join(f"story {n}\n<|endoftext|>\n" for n in range(200)))
    out = prepare(str(source), Settings(out_dir=tmp_path / "out", validation_share=0.3))
    text = load_text(BYTES, data=out)
    assert text.separator == 0
    held_out = json.loads((out / "manifest.json").read_text())["splits"]["validation"]
    assert len(text.tokens) == held_out["tokens"]
    words = train_bpe(iter([source.read_bytes()]), 280)
    assert words.decode(load_text(words, data=out).tokens).replace("<|endoftext|>", "\0") == bytes(text.tokens).decode()


def test_nothing_to_score_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    for data, says in ((tmp_path / "empty.txt", "at least two bytes"), (tmp_path / "no", "found nothing")):
        with pytest.raises(CorpusError, match=says):
            load_text(BYTES, data=data)
