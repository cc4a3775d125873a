"""Corpora: names, the user's own texts, and what a corpus knows of itself."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from bdh.data import CORPORA, Corpus, CorpusError, corpora, download, load_corpus


def digest(content: bytes) -> str:
    """Hash bytes."""
    return hashlib.sha256(content).hexdigest()


def one_line(error: pytest.ExceptionInfo[CorpusError]) -> str:
    """The message of an error, which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BDH_CACHE", str(tmp_path / "cache"))


def test_cache_default_is_in_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Path] = []

    def keep(directory: Path, *args: object, **kwargs: object) -> download.Splits:
        seen.append(directory)
        return corpora._cut(b"to be or not to be", {"source": "test"})

    monkeypatch.setattr(corpora, "cached", keep)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    load_corpus("tiny-shakespeare", cache_dir=tmp_path / "argument")
    load_corpus("tiny-shakespeare")
    monkeypatch.delenv("BDH_CACHE")
    load_corpus("tiny-shakespeare")
    roots = [path.parent.relative_to(tmp_path).as_posix() for path in seen]
    assert roots == ["argument", "cache", ".cache/bdh"]


def test_file_is_taken_byte_by_byte(tmp_path: Path) -> None:
    content = "é\r\n".encode() * 25 + b"e"
    path = tmp_path / "my text.txt"
    path.write_bytes(b"\xef\xbb\xbf" + content)
    corpus = load_corpus(data=path)
    assert corpus.name == "my text.txt"
    assert corpus.train.tobytes() == content[:90]
    assert corpus.validation.tobytes() == content[90:]
    assert corpus.info["source"] == str(path)
    assert corpus.info["source_sha256"] == digest(content)
    assert json.loads(json.dumps(corpus.info)) == corpus.info
    assert load_corpus("letters", data=str(path)).name == "letters"


def test_directory_is_joined_in_the_order_of_relative_paths(tmp_path: Path) -> None:
    directory = tmp_path / "texts"
    for name, text in {"b.md": "bb", "a/z.TXT": "zz", "a.txt": "aa", "code.py": "no", "c/d/e.txt": "ee"}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    corpus = load_corpus(data=directory)
    assert corpus.train.tobytes() + corpus.validation.tobytes() == b"aa\nzz\nbb\nee"
    assert corpus.info["files"] == [
        {"path": "a.txt", "bytes": 2},
        {"path": "a/z.TXT", "bytes": 2},
        {"path": "b.md", "bytes": 2},
        {"path": "c/d/e.txt", "bytes": 2},
    ]


def test_tiny_shakespeare_as_a_file_must_be_the_canonical_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = b"First Citizen:\n" * 100
    source = dataclasses.replace(corpora.TINY_SHAKESPEARE, sha256=digest(content), size=len(content))
    monkeypatch.setattr(corpora, "TINY_SHAKESPEARE", source)
    path = tmp_path / "input.txt"
    path.write_bytes(content)
    corpus = load_corpus("tiny-shakespeare", data=path)
    assert corpus.name == "tiny-shakespeare"
    assert len(corpus.train) == 1350
    path.write_bytes(content + b"\n")
    with pytest.raises(CorpusError, match=r"got 1,501 bytes of .*: not the canonical file; leave --dataset") as error:
        load_corpus("tiny-shakespeare", data=path)
    one_line(error)


def test_texts_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "none").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "s.csv").touch()
    (tmp_path / "s.parquet").touch()
    (tmp_path / "x.docx").write_bytes(b"PK\3\4")
    for path, message in {
        "missing.txt": "expected a text file or a directory, found nothing; check the path",
        "empty.txt": "expected text, got 0 bytes; give a longer text",
        "none": "expected a directory with *.txt or *.md files, found none; give a file, or rename your texts",
        "rows": "expected a directory with *.txt or *.md files, found none; rows are read by bdh prepare "
        f"{tmp_path / 'rows'}",
        "s.parquet": f"expected text, this holds rows: make them documents by bdh prepare {tmp_path / 's.parquet'}, "
        "and train on what that writes",
    }.items():
        with pytest.raises(CorpusError) as error:
            load_corpus(data=tmp_path / path)
        assert one_line(error) == f"--data {tmp_path / path}: {message}"
    with pytest.raises(
        CorpusError, match=r"x.docx: expected text, found byte 0x03 at 2; .* rename it to x.bin"
    ) as error:
        load_corpus(data=tmp_path / "x.docx")
    one_line(error)


def test_any_bytes_are_taken_if_the_name_says_so(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4
    (tmp_path / "any.bin").write_bytes(content)
    corpus = load_corpus(data=tmp_path / "any.bin")
    assert corpus.train.tobytes() + corpus.validation.tobytes() == content
    (tmp_path / "any.bin").rename(tmp_path / "any.txt")
    with pytest.raises(CorpusError, match=r"found byte 0x80 at 128 \(line 2\); .* if it is called any.bin"):
        load_corpus(data=tmp_path / "any.txt")


def test_rows_beside_texts_are_not_forgotten_silently(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    with pytest.warns(UserWarning, match=r"1 files of rows in it are left out; rows are read by bdh prepare"):
        assert load_corpus(data=tmp_path).train.tobytes() == b"some tex"


def test_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    assert CORPORA == ("shakespeare", "tiny-shakespeare", "repeated-words", "copy", "needle")
    with pytest.raises(CorpusError) as error:
        load_corpus("shakespear")
    assert one_line(error) == (
        "unknown corpus 'shakespear': expected one of shakespeare, tiny-shakespeare, repeated-words, copy, needle; "
        "did you mean shakespeare?"
    )
    with pytest.raises(CorpusError, match="for a text of your own, give --data FILE"):
        load_corpus("wikipedia")


def test_corpus_is_read_only_and_knows_what_it_is_long_enough_for(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"x" * 100)
    corpus = load_corpus(data=path)
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        corpus.name = "other"  # type: ignore[misc]
    corpus.require(9)
    with pytest.raises(CorpusError) as error:
        corpus.require(10)
    assert one_line(error) == (
        "text.txt: block_size=10 needs at least 11 bytes in each split, got train 90, validation 10; "
        "use --block-size 9 or less, or a longer text"
    )
    with pytest.raises(CorpusError, match="validation 1; use a longer text"):
        Corpus("x", corpus.train, corpus.train[:1]).require(1)
