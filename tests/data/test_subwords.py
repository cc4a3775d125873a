"""Tokens of several bytes: round trips, streams of characters, and what is no tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from bdh.cli import main
from bdh.data import SubwordTokenizer, read_tokenizer, shards, train_bpe
from bdh.data.download import CorpusError
from bdh.data.prepare import Settings, prepare

TEXTS = [f"the cat number {number} sat on the mat.\n" for number in range(400)]
TOKENIZER = train_bpe((text.encode() for text in TEXTS), 300)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_survives_the_round_trip(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    decoder = TOKENIZER.decoder()
    assert "".join(decoder.push(token) for token in ids) + decoder.flush() == text


def test_a_bpe_knows_all_bytes_and_what_is_frequent() -> None:
    assert 257 < TOKENIZER.vocab_size <= 300
    assert len(TOKENIZER.encode("the cat")) <= 4
    assert [list(ids) for ids in TOKENIZER.encode_all([b"the cat", b""])] == [TOKENIZER.encode("the cat").tolist(), []]
    assert SubwordTokenizer(TOKENIZER.definition()).encode("the mat").tolist() == TOKENIZER.encode("the mat").tolist()


def test_text_that_looks_like_the_separator_is_text() -> None:
    ids = TOKENIZER.encode("a<|endoftext|>b")
    assert TOKENIZER.separator not in ids
    assert TOKENIZER.decode(ids) == "a<|endoftext|>b"


def test_a_character_appears_with_its_last_byte() -> None:
    decoder = TOKENIZER.decoder()
    pieces = [decoder.push(token) for token in TOKENIZER.encode("€!")]
    assert pieces == ["", "", "€", "!"]
    assert decoder.push(TOKENIZER.encode("€")[:2]) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.push(TOKENIZER.encode("a")) == "a"


@pytest.mark.parametrize("tokenizer", ["bpe:300", "file"])
def test_preparing_with_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    if tokenizer == "file":
        tokenizer = "given.json"
        (tmp_path / tokenizer).write_text(TOKENIZER.definition())
    out = prepare("cats.jsonl", Settings(tokenizer=tokenizer, validation_share=0.1))
    manifest, _ = shards.read_manifest(out)
    assert manifest["dtype"] == "<u2"
    stored = read_tokenizer(out / "tokenizer.json")
    found = [stored.decode(ids) for split in shards.SPLITS for ids, _ in shards.read_documents(out, split)]
    assert sorted(found) == sorted(TEXTS)
    counts = manifest["splits"]["train"]
    assert counts["tokens"] < counts["text_bytes"] / 2
    train = np.fromfile(out / "train-00000.bin", "<u2")
    assert int((train == stored.separator).sum()) == counts["separators"] == counts["documents"]


def test_a_tokenizer_that_loses_text_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    small = json.loads(TOKENIZER.definition())
    small["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "small.json").write_text(json.dumps(small))
    told = []
    for name, change in (("exact", "the"), ("small", "The")):
        text = (tmp_path / "cats.jsonl").read_text().replace("the", change)
        (tmp_path / f"{name}.jsonl").write_text(text)
        with pytest.raises(SystemExit) as stop:
            main(["prepare", f"{name}.jsonl", "--tokenizer", "small.json", "--validation-share", "0.1"])
        assert not stop.value.code
        told.append("does not keep the text" in capsys.readouterr().err)
    assert told == [False, True]


def test_what_is_no_tokenizer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.txt").write_text("the cat")
    (tmp_path / "broken.json").write_text("{}")
    endless = json.loads(TOKENIZER.definition())
    endless["added_tokens"] = []
    vocabulary = endless["model"]["vocab"]
    endless["model"]["vocab"] = {("zzzz" if word == "<|endoftext|>" else word): n for word, n in vocabulary.items()}
    (tmp_path / "endless.json").write_text(json.dumps(endless))
    for name, message in {
        "missing.json": "expected bytes, bpe:N or a tokenizer.json, found no such file",
        "byte": "expected bytes, bpe:N or a tokenizer.json, found no such file",
        "broken.json": "broken.json: not a tokenizer.json",
        "endless.json": "no token between documents: expected one of",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            prepare("cats.txt", Settings(tokenizer=name))
        assert "\n" not in str(error.value)
    with pytest.raises(CorpusError, match="at least 257 tokens"):
        Settings(tokenizer="bpe:256")
