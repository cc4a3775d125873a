"""Preparing text: what comes out of every kind of source, stops and goes on, and one line for what cannot be read."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bdh import files
from bdh.cli import main
from bdh.data import documents, preparation, prepare, rows, shards, sources
from bdh.data import terminal as terminal_module
from bdh.data.download import CorpusError
from bdh.data.prepare import Settings
from bdh.data.terminal import showing

TEXTS = [f"Story {number}: once there was a hatchling number {number * number}.\n" for number in range(500)]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BDH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BDH_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)


def jsonl(path: Path, values: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def parquet(path: Path, values: list[dict[str, object]], *, group: int = 100) -> Path:
    pyarrow, table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=group)
    return path


def texts_of(directory: Path, split: str) -> list[str]:
    return [tokens.tobytes().decode() for tokens, _ in shards.read_documents(directory, split)]


def all_texts(directory: Path) -> list[str]:
    return [text for split in shards.SPLITS for text in texts_of(directory, split)]


def manifest(directory: Path) -> dict:
    return shards.read_manifest(directory)[0]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "stories.jsonl", [{"text": text} for text in TEXTS])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "txt"])
def test_all_formats_give_the_same_documents(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"stories.{kind}"
    values: list[dict[str, object]] = [{"text": text.strip(), "other": 1} for text in TEXTS]
    if kind == "jsonl":
        jsonl(file, values)
    elif kind == "parquet":
        parquet(file, values)
    elif kind == "csv":
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["other", "text"])
            writer.writeheader()
            writer.writerows(values)
    else:
        file.write_text("".join(text + "<|endoftext|>\n" for text in TEXTS))
    out = prepare.prepare(str(file), Settings(validation_share=0.1))
    assert out == Path("data/stories")
    assert sorted(all_texts(out)) == sorted(text.strip() for text in TEXTS)
    # by hash of the text, so that the split is the same for every format
    assert len(texts_of(out, "validation")) == 49


def test_shards_and_manifest_say_what_is_in_them(stories: Path) -> None:
    out = prepare.prepare(str(stories), Settings(shard_tokens=4000, validation_share=0.1))
    found = manifest(out)
    assert (found["dtype"], found["separator"], found["tokenizer"]["name"]) == ("|u1", 0, "bytes")
    assert found["source"]["files"] == [
        {
            "name": "stories.jsonl",
            "bytes": stories.stat().st_size,
            "sha256": hashlib.sha256(stories.read_bytes()).hexdigest(),
        }
    ]
    assert len(found["splits"]["train"]["shards"]) > 1
    names = {"manifest.json"}
    for split in shards.SPLITS:
        about = found["splits"][split]
        assert about["tokens"] == about["text_bytes"] + about["documents"]
        for shard in about["shards"]:
            names |= {shard["file"], shard["index"]}
            assert hashlib.sha256((out / shard["file"]).read_bytes()).hexdigest() == shard["file_sha256"]
            content = (out / shard["file"]).read_bytes()
            assert content.startswith(b"\0Story")
            assert content.count(b"\0") == shard["documents"]
    assert {file.name for file in out.iterdir()} == names
    assert not list(out.parent.glob(".*"))


def test_the_share_is_that_of_documents_and_copies_stay_together(tmp_path: Path) -> None:
    values = [{"text": f"{number % 3000} is a number"} for number in range(6000)]
    out = prepare.prepare(str(jsonl(tmp_path / "numbers.jsonl", values)), Settings(validation_share=0.2))
    train, validation = (set(texts_of(out, split)) for split in shards.SPLITS)
    assert not train & validation
    assert 0.17 < len(validation) / 3000 < 0.23


def test_a_directory_has_splits_of_its_own_only_if_it_says_so(tmp_path: Path) -> None:
    jsonl(tmp_path / "corpus" / "train" / "a.jsonl", [{"text": text} for text in TEXTS[:300]])
    jsonl(tmp_path / "corpus" / "valid.jsonl", [{"text": text} for text in TEXTS[300:310]])
    jsonl(tmp_path / "corpus" / "test.jsonl", [{"text": "secret"}])
    with pytest.warns(UserWarning, match=r"corpus: left out, .* neither to train nor to validate: test.jsonl$"):
        out = prepare.prepare("corpus")
    assert texts_of(out, "train") == TEXTS[:300]
    assert texts_of(out, "validation") == TEXTS[300:310]
    with pytest.warns(UserWarning, match="left out"):
        pooled = prepare.prepare("corpus", Settings(validation_share=0.3, out_dir=tmp_path / "pooled"))
    assert sorted(all_texts(pooled)) == sorted(TEXTS[:310])
    assert len(texts_of(pooled, "validation")) > 50


def test_long_text_is_cut_at_line_ends_and_joined_without_separators(tmp_path: Path) -> None:
    lines = "".join(f"{number} é line of a novel without any end\n" for number in range(20_000))
    (tmp_path / "novel.txt").write_text(lines + "é" * 50_000)
    out = prepare.prepare("novel.txt", Settings(validation_share=0.1))
    train = (out / "train-00000.bin").read_bytes()
    pieces = [
        piece.decode() for split in shards.SPLITS for piece in (out / f"{split}-00000.bin").read_bytes().split(b"\0")
    ]
    assert sorted(text for piece in pieces for text in piece.splitlines()) == sorted(
        (lines + "é" * 50_000).splitlines()
    )
    assert all(piece.endswith("\n") or set(piece[-9:]) == {"é"} for piece in pieces if piece)
    # a separator only where a piece went to the other split
    assert 2 < train.count(b"\0") < manifest(out)["splits"]["train"]["documents"] / 2
    assert len(all_texts(out)) == sum(manifest(out)["splits"][split]["documents"] for split in shards.SPLITS)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "txt"])
def test_reading_goes_on_after_every_row(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"some.{kind}"
    values: list[dict[str, object]] = [{"text": f"row {number}\nof é text"} for number in range(25)]
    if kind == "jsonl":
        jsonl(file, values)
    elif kind == "parquet":
        parquet(file, values, group=4)
    elif kind == "csv":
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["text"])
            writer.writeheader()
            writer.writerows(values)
    else:
        file.write_bytes(b"abc\n<|endoftext|>\n" + b"some line\n" * 5000 + "é".encode() * 20_000)
    whole = list(rows.read_rows(file))
    assert len(whole) > 5
    for number, row in enumerate(whole):
        assert list(rows.read_rows(file, row.cursor)) == whole[number + 1 :]


def test_a_killed_preparation_goes_on_and_gives_the_same_files(stories: Path, tmp_path: Path) -> None:
    settings = {"shard_tokens": 4000, "validation_share": 0.1}
    whole = prepare.prepare("stories.jsonl", Settings(**settings, out_dir=tmp_path / "whole"))
    code = f"""
import os, pathlib
from bdh.data import preparation, prepare, shards
begin, count = shards.SplitWriter.finish_shard, [0]
def finish(self):
    begin(self)
    count[0] += 1
    if count[0] == 4:
        os._exit(9)
shards.SplitWriter.finish_shard = finish
preparation.BATCH = 16, 10**6
prepare.prepare("stories.jsonl", prepare.Settings(out_dir=pathlib.Path("parts"), **{settings}))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 9
    assert not (tmp_path / "parts").exists()
    state = json.loads((tmp_path / ".parts.preparing" / "state.json").read_text())
    assert state["progress"]["documents"] > 100
    read: list[int] = []

    original = documents.read_rows

    def spied(file: Path, start: int = 0, columns: tuple[str, ...] | None = None):
        read.append(start)
        return original(file, start, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "read_rows", spied)
        parts = prepare.prepare("stories.jsonl", Settings(**settings, out_dir=tmp_path / "parts"))
    assert read == [state["progress"]["cursor"]]
    assert all_texts(parts) == all_texts(whole)
    assert {file.suffix for file in parts.iterdir()} == {".json", ".bin", ".idx"}


def source_of(kind: str, folder: Path) -> tuple[str, dict[str, object]]:
    """A name to prepare, and settings."""
    if kind == "novel":
        (folder / "novel.txt").write_text("".join(f"{n} is a line of a novel\n" for n in range(30_000)))
        return "novel.txt", {}
    if kind == "europarl":
        pairs = [{"translation": {"en": f"Point {n} is clear.", "fr": f"Le point {n} est clair."}} for n in range(9000)]
        parquet(folder / "mirror/Helsinki-NLP/europarl/resolve/main/en-fr/train.parquet", pairs)
        return "europarl", {"mirror": folder / "mirror"}
    jsonl(folder / "stories" / "a.jsonl", [{"text": text} for text in TEXTS])
    jsonl(folder / "stories" / "b.jsonl", [{"text": text} for text in TEXTS[:100]])
    return "stories", {"tokenizer": "bpe:300"} if kind == "bpe" else {}


@pytest.mark.parametrize("kind", ["stories", "novel", "europarl", "bpe"])
def test_stopping_at_any_shard_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    monkeypatch.setattr(preparation, "BATCH", (8, 10**5))
    name, more = source_of(kind, tmp_path)
    small = 4000 if kind in ("stories", "bpe") else 60_000
    settings = {"shard_tokens": small, "validation_share": 0.2, **more}
    whole = prepare.prepare(name, Settings(**settings, out_dir=tmp_path / "whole"))  # type: ignore[arg-type]
    keep = preparation.Preparation._keep_full_shards
    stops = 0

    def stop(self: preparation.Preparation) -> None:
        before = [len(writer.shards) for writer in self.writers.values()]
        keep(self)
        if before != [len(writer.shards) for writer in self.writers.values()]:
            raise KeyboardInterrupt

    monkeypatch.setattr(preparation.Preparation, "_keep_full_shards", stop)
    while True:
        try:
            parts = prepare.prepare(name, Settings(**settings, out_dir=tmp_path / "parts"))  # type: ignore[arg-type]
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 2
    assert {f.name: f.read_bytes() for f in parts.iterdir()} == {f.name: f.read_bytes() for f in whole.iterdir()}


def test_what_another_preparation_left_is_not_mixed_in(stories: Path, tmp_path: Path) -> None:
    left = tmp_path / "data" / ".stories.preparing"
    left.mkdir(parents=True)
    (left / "state.json").write_text('{"identity": {"settings": {}, "files": []}}')
    (left / "train-00007.bin").write_bytes(b"old")
    out = prepare.prepare("stories.jsonl", Settings(validation_share=0.1))
    assert not (out / "train-00007.bin").exists()
    assert len(all_texts(out)) == 500


def test_what_is_prepared_stays_unless_asked(stories: Path, tmp_path: Path) -> None:
    out = prepare.prepare("stories.jsonl", Settings(validation_share=0.1))
    before = (out / "manifest.json").stat().st_mtime_ns
    assert prepare.prepare("stories.jsonl", Settings(validation_share=0.1)) == out
    assert (out / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(CorpusError, match=r"prepared with validation_share=0.1, not 0.2: add --rebuild-data"):
        prepare.prepare("stories.jsonl", Settings(validation_share=0.2))
    prepare.prepare("stories.jsonl", Settings(validation_share=0.2, rebuild_data=True))
    assert manifest(out)["split"]["validation_share"] == 0.2
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    for rebuild in (False, True):
        with pytest.raises(CorpusError, match="choose another --out-dir"):
            prepare.prepare("stories.jsonl", Settings(out_dir=tmp_path / "thesis", rebuild_data=rebuild))
    assert (tmp_path / "thesis" / "thesis.txt").exists()


def test_a_changed_file_is_not_taken_for_the_prepared_one(stories: Path) -> None:
    prepare.prepare("stories.jsonl", Settings(validation_share=0.1))
    stories.write_text(stories.read_text().replace("Story 7", "Story 8"))
    with pytest.raises(CorpusError, match=r"stories.jsonl has changed since data.stories was prepared: add --rebuild"):
        prepare.prepare("stories.jsonl", Settings(validation_share=0.1))


def test_what_tells_about_data_is_no_data(tmp_path: Path) -> None:
    jsonl(tmp_path / "corpus" / "stories.jsonl", [{"text": text} for text in TEXTS])
    (tmp_path / "corpus" / "README.md").write_text("These are stories.")
    (tmp_path / "corpus" / "info.json").write_text("{}")
    with pytest.warns(UserWarning, match=r"corpus: left out, .* beside them: README.md, info.json$"):
        assert sorted(all_texts(prepare.prepare("corpus", Settings(validation_share=0.1)))) == sorted(TEXTS)
    (tmp_path / "corpus" / "sub").mkdir()
    (tmp_path / "corpus" / "sub" / "novel.txt").write_text("A novel.\n")
    with pytest.warns(UserWarning, match="left out"):
        both = prepare.prepare("corpus", Settings(validation_share=0.1, out_dir=tmp_path / "both"))
    assert sorted(all_texts(both)) == sorted([*TEXTS, "A novel.\n"])
    (tmp_path / "novels").mkdir()
    for number, name in enumerate(("b.txt", "a.md", "c.TXT")):
        (tmp_path / "novels" / name).write_text(f"line {number}\n" * 5000)
    out = prepare.prepare("novels", Settings(validation_share=0.4))
    assert [file["name"] for file in manifest(out)["source"]["files"]] == ["a.md", "b.txt", "c.TXT"]


@pytest.mark.parametrize(("package", "words"), [("pyarrow", ["a.parquet"]), ("tokenizers", ["a.jsonl", "bpe:300"])])
def test_what_a_missing_package_is_needed_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, words: list[str]
) -> None:
    (tmp_path / "a.parquet").touch()
    jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r'need.*: pip install "bdh\[data\]"'):
        prepare.prepare(words[0], Settings(tokenizer=words[-1] if len(words) > 1 else "bytes"))


def test_max_documents_zero_bytes_and_empty_texts(tmp_path: Path) -> None:
    jsonl(tmp_path / "odd.jsonl", [{"text": text} for text in ["a\0b\0", "", None, "\ud800", *TEXTS]])
    out = prepare.prepare("odd.jsonl", Settings(validation_share=0.2, max_documents=100))
    assert len(all_texts(out)) == 100
    assert {"ab", "?"} <= set(all_texts(out))
    assert manifest(out)["left_away"] == {"empty_documents": 2, "zero_bytes": 2}


ALPACA = [
    {"instruction": f"Count to {n}.", "input": "" if n % 2 else "in words", "output": f"{n}.", "text": "not this"}
    for n in range(200)
]
DOLLY = [
    {
        "instruction": f"What is {n}?",
        "context": "" if n % 2 else "It is odd.",
        "response": f"Number {n}.",
        "category": "qa",
    }
    for n in range(200)
]


def test_alpaca_from_a_mirror(tmp_path: Path) -> None:
    parquet(tmp_path / "mirror/tatsu-lab/alpaca/resolve/main" / sources.KNOWN["alpaca"].files[0], ALPACA)
    out = prepare.prepare("alpaca", Settings(mirror=tmp_path / "mirror", validation_share=0.1))
    assert "NC" in manifest(out)["source"]["licence"]
    found = {
        whole.tobytes().decode()[:n]: whole.tobytes().decode()[n:] for whole, n in shards.read_documents(out, "train")
    }
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nCount to 7.\n\n### Response:\n"
    )
    told = {prompt: answer for prompt, answer in found.items() if "Count to 7." in prompt}
    assert told in ({prompt: "7."}, {})
    assert all(
        ("### Input:\nin words\n\n" in prompt) == (int(answer[:-1]) % 2 == 0) for prompt, answer in found.items()
    )
    assert len(found) > 160


@pytest.mark.parametrize("context", ["input", "append"])
def test_dolly_is_alpaca_with_other_words(tmp_path: Path, context: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDH_MIRROR", str(tmp_path / "mirror"))
    folder = tmp_path / "mirror/databricks/databricks-dolly-15k/resolve/main"
    jsonl(folder / "databricks-dolly-15k.jsonl", [*DOLLY, {"instruction": "?", "context": "", "response": " "}])
    settings = Settings(validation_share=0.1, dolly_context=context, template="official")  # type: ignore[arg-type]
    out = prepare.prepare("dolly", settings)
    texts = all_texts(out)
    assert len(texts) == 200
    assert "qa" not in "".join(texts)
    assert manifest(out)["left_away"]["empty_documents"] == 1
    (two,) = (text for text in texts if "What is 2?" in text)
    middle = "\n\n### Input:\nIt is odd." if context == "input" else "\n\n**Context:**\nIt is odd."
    assert two.endswith(f"### Instruction:\nWhat is 2?{middle}\n\n### Response:Number 2.")


def test_europarl_keeps_the_order_of_the_sentences(tmp_path: Path) -> None:
    pairs = [{"translation": {"en": f"Point {n} is clear.", "fr": f"Le point {n} est clair."}} for n in range(3000)]
    folder = tmp_path / "mirror/Helsinki-NLP/europarl/resolve/main/en-fr"
    parquet(folder / "train-00000-of-00001.parquet", pairs, group=1000)
    out = prepare.prepare("europarl", Settings(mirror=tmp_path / "mirror", validation_share=0.2))
    texts = [(out / f"{split}-00000.bin").read_bytes().decode() for split in shards.SPLITS]
    for text in texts:
        told = [int(piece.split()[0]) for piece in text.split("Point ")[1:]]
        assert told == sorted(told)
    joined = "".join(texts)
    assert joined.count("<F:en>") + joined.count("<F:fr>") == joined.count("<T:en>") + joined.count("<T:fr>") == 3000
    assert 1300 < joined.count("<F:en>") < 1700
    assert "<F:en>Point 5 is clear.<T:fr>Le point 5 est clair." in joined or (
        "<F:fr>Le point 5 est clair.<T:en>Point 5 is clear." in joined
    )
    with pytest.raises(
        CorpusError, match="expected the languages de and en, found en, fr; choose two of them with --pair"
    ):
        prepare.prepare("europarl", Settings(mirror=tmp_path / "mirror", pair="de-en", out_dir=tmp_path / "other"))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    jsonl(tmp_path / "posts.jsonl", [{"title": "a", "body": "b"}])
    parquet(tmp_path / "posts.parquet", [{"title": "a", "body": "b"}])
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (tmp_path / "list.json").write_text('["a"]\n')
    (tmp_path / "broken.parquet").write_text("this is no parquet file")
    (tmp_path / "picture.png").write_bytes(b"")
    (tmp_path / "one.txt").write_text("one document")
    (tmp_path / "empty.txt").touch()
    jsonl(tmp_path / "blank.jsonl", [{"text": ""}, {"text": None}])
    jsonl(tmp_path / "same.jsonl", [{"text": "a"}] * 3)
    (tmp_path / "none").mkdir()
    (tmp_path / "story.txt.gz").write_bytes(gzip.compress(b"story"))
    columns = (
        "column text, or instruction and output or response, found title, body in (line|row) 1; name .* --text-column"
    )
    for name, message in {
        "tinystorys": "did you mean tinystories",
        "nothing": "expected one of tinystories, alpaca, dolly, europarl, a file.*check the path",
        "posts.jsonl": columns,
        "posts.parquet": columns,
        "broken.jsonl": "broken.jsonl: line 2 is not JSON",
        "list.json": "one JSON object per line, found an array; convert it: jq",
        "broken.parquet": "cannot be read as parquet",
        "picture.png": "expected a file that ends in .txt, .md",
        "story.txt.gz": "expected a file that ends in .txt, .md",
        "none": "expected .* files in it, found none",
        "one.txt": "expected at least two documents, .*, found one; give more, or .* bdh train --data one.txt, which",
        "same.jsonl": "expected at least two documents, .*, found 3 that are the same; give more, or .* text$",
        "empty.txt": "empty.txt: expected text, found an empty file$",
        "blank.jsonl": "blank.jsonl: expected text, found 2 empty documents$",
        "none/at/all": "none/at/all: expected one of tinystories",
        "none/here": "none/here: no such file or directory; check the path",
        "nowhere/one.txt": "nowhere/one.txt: no such file or directory; check the path",
        "./onne.txt": "./onne.txt: no such file or directory; did you mean one.txt?",
        "": "'': expected one of tinystories",
    }.items():
        with pytest.raises(CorpusError, match=message) as error:
            prepare.prepare(name)
        assert "\n" not in str(error.value)
    assert not any((tmp_path / "data").iterdir())
    for wrong in ({"validation_share": 1.0}, {"max_documents": 0}, {"shard_tokens": 0}, {"tokenizer": "bpe:12"}):
        with pytest.raises(CorpusError, match=r"--[a-z-]+ .*expected"):
            Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(("share", "held_out"), [(1e-9, 1), (1 - 1e-9, 5)])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_few_documents_are_in_both_splits(tmp_path: Path, share: float, held_out: int, tokenizer: str) -> None:
    if tokenizer != "bytes":
        pytest.importorskip("tokenizers")
    six = jsonl(tmp_path / "six.jsonl", [{"text": text} for text in [*TEXTS[:6], *TEXTS[:6]]])
    settings = Settings(validation_share=share, tokenizer=tokenizer, out_dir=tmp_path / "out")
    out = prepare.prepare(str(six), settings)
    counts = {split: manifest(out)["splits"][split]["documents"] for split in shards.SPLITS}
    assert counts == {"train": 2 * (6 - held_out), "validation": 2 * held_out}
    if tokenizer == "bytes":
        assert sorted(all_texts(out)) == sorted(2 * TEXTS[:6])
        hashes = {hashlib.blake2b(text.encode(), digest_size=8).digest(): text for text in TEXTS[:6]}
        alone, split = (min(hashes), "validation") if held_out == 1 else (max(hashes), "train")
        assert texts_of(out, split) == 2 * [hashes[alone]]


def test_the_same_text_is_the_same_however_it_is_spelled(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(validation_share=0.1, out_dir=tmp_path / "out")
    before = (prepare.prepare("stories.jsonl", settings) / "manifest.json").stat().st_mtime_ns
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stories.jsonl").write_bytes(stories.read_bytes())
    monkeypatch.chdir(tmp_path / "other")
    for name in ("../stories.jsonl", str(stories), "stories.jsonl"):
        assert prepare.prepare(name, settings) == tmp_path / "out"
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == before
    jsonl(tmp_path / "other" / "stories.jsonl", [{"text": "another story"}])
    with pytest.raises(CorpusError, match=r"out was prepared from .*/stories.jsonl, not stories.jsonl: add --rebuild"):
        prepare.prepare("stories.jsonl", settings)


def test_a_file_more_in_a_directory_is_not_overlooked(tmp_path: Path) -> None:
    jsonl(tmp_path / "many" / "b.jsonl", [{"text": text} for text in TEXTS])
    whole, part = Settings(out_dir=tmp_path / "whole"), Settings(out_dir=tmp_path / "part", max_documents=400)
    prepare.prepare("many", whole)
    prepare.prepare("many", part)
    jsonl(tmp_path / "many" / "c.jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(CorpusError, match=r"many has changed since .*whole was prepared"):
        prepare.prepare("many", whole)
    assert prepare.prepare("many", part) == tmp_path / "part"
    (tmp_path / "many" / "c.jsonl").rename(tmp_path / "many" / "a.jsonl")
    with pytest.raises(CorpusError, match=r"many has changed since .*part was prepared"):
        prepare.prepare("many", part)


def test_a_place_of_its_own_depends_on_content_and_settings(stories: Path, tmp_path: Path) -> None:
    def place(name: str = "stories.jsonl", **settings: object) -> Path:
        return prepare.own_place(name, Settings(**settings))  # type: ignore[arg-type]

    first = place()
    assert (first.parent, first.name[:8], len(first.name)) == (Path("data"), "stories-", 16)
    assert place("./stories.jsonl", rebuild_data=True) == first
    jsonl(tmp_path / "other" / "stories.jsonl", [{"text": "another story"}])
    tokenizers = [tmp_path / "a.json", tmp_path / "b.json"]
    for tokenizer in tokenizers:
        tokenizer.write_text(tokenizer.name)
    others = [place("other/stories.jsonl"), place(template="short"), *(place(tokenizer=str(t)) for t in tokenizers)]
    stories.write_text(stories.read_text() + '{"text": "one more"}\n')
    assert len({first, place(), *others}) == 6


def test_no_more_is_learned_from_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    for name, texts in (("a", TEXTS[:100]), ("b", TEXTS[100:])):
        jsonl(tmp_path / "stories" / f"{name}.jsonl", [{"text": text} for text in texts])
    seen: list[str] = []
    learn = preparation.subwords.train_bpe
    monkeypatch.setattr(
        preparation.subwords,
        "train_bpe",
        lambda texts, size: learn((seen.append(text.decode()) or text for text in texts), size),
    )
    assert tokenizers
    out = prepare.prepare("stories", Settings(tokenizer="bpe:300", max_documents=150, validation_share=0.2))
    found = manifest(out)["splits"]
    assert found["train"]["documents"] + found["validation"]["documents"] == 150
    assert len(seen) == found["train"]["documents"]
    assert set(seen) < set(TEXTS[:150])


def test_ctrl_c_is_heard_while_tokens_are_learned(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    jsonl(tmp_path / "words.jsonl", [{"text": f"{n} {n * n} {n**5} " * 20} for n in range(80_000)])
    words = ["prepare", "words.jsonl", "--tokenizer", "bpe:9000"]
    with subprocess.Popen([sys.executable, "-m", "bdh", *words], stderr=subprocess.PIPE, cwd=tmp_path) as process:
        try:
            while not list(tmp_path.glob("data/.*.preparing/lock")):
                time.sleep(0.05)
            time.sleep(1.0)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=5)
        finally:
            process.kill()
    assert (process.returncode, errors) == (130, b"bdh: stopped\n")
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_memory_does_not_grow_with_the_text(tmp_path: Path, kind: str) -> None:
    story = "Once upon a time there was a hatchling who lived under a very old tree. " * 14
    with (tmp_path / f"large.{kind}").open("w") as file:
        for number in range(100_000):
            file.write(json.dumps({"text": f"{number} {story}"}) + "\n" if kind == "jsonl" else f"{number} {story}\n")
    code = f"""
from bdh import process
from bdh.data import prepare
process.reset_peak()
before = process.peak()
prepare.prepare("large.{kind}")
print(process.peak() - before)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert sum(file.stat().st_size for file in (tmp_path / "data" / "large").glob("*.bin")) > 100_000_000
    assert int(done.stdout) < 64 * 2**20


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    times = itertools.count(0, 3)
    monkeypatch.setattr(terminal_module.time, "monotonic", lambda: next(times))
    out = io.StringIO()
    with showing(Console(file=out, force_terminal=terminal, width=100)) as told:
        for done in (5, 10):
            told("fetching a.parquet", done, 10)
        told("a.parquet: 7 documents", 100, None)
        told("a.parquet: 9 documents", 120, None)
    if terminal:
        assert "9 documents" in out.getvalue()
    else:
        assert out.getvalue() == "fetching a.parquet, 10 of 10 bytes\na.parquet: 9 documents, 120 bytes\n"


def test_two_preparations_of_the_same_are_not_mixed(stories: Path, tmp_path: Path) -> None:
    work = tmp_path / "data" / ".stories.preparing"
    work.mkdir(parents=True)
    with files.alone(work, "stop it"), pytest.raises(ValueError, match=f"in use by process {os.getpid()}: wait for"):
        prepare.prepare("stories.jsonl")


def test_shards_read_like_one_array() -> None:
    whole = np.arange(100, dtype=np.uint8)
    tokens = shards.TokenShards([whole[:7], whole[7:8], whole[8:60], whole[60:]])
    index = np.random.default_rng(0).integers(0, 100, (5, 9))
    assert (tokens[index] == whole[index]).all()
    assert (tokens[3:70] == whole[3:70]).all()
    assert len(tokens) == 100
    assert tokens.tobytes() == whole.tobytes()
    for wrong in (np.array([100]), np.array([-1])):
        with pytest.raises(IndexError, match=r"expected indices in 0\.\.99"):
            tokens[wrong]


@pytest.mark.parametrize(("vocabulary", "name"), [(256, "|u1"), (257, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_ids_take_the_fewest_bytes(vocabulary: int, name: str) -> None:
    assert shards.dtype_of(vocabulary).str == name


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_what_cannot_be_written_is_told(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run("prepare", "stories.jsonl", "--out-dir", "file/out") == 2
    assert capsys.readouterr().err == "bdh: --out-dir file/out cannot be written to (Not a directory): choose another\n"
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        "from bdh.cli import main; main(['prepare', 'stories.jsonl', '--shard-tokens', '4000'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "bdh: data/.stories.preparing/train-00000.bin cannot be written (File too large): make room or give rights, "
        "then give the same command again; it goes on with what is finished\n",
    )
    assert not list((tmp_path / "data").iterdir())
    assert run("prepare", "stories.jsonl", "--shard-tokens", "4000") == 0


def test_left_away_bytes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(tmp_path / "odd.jsonl", [{"text": "a\0b\0"}, {"text": "c"}])
    assert run("prepare", "odd.jsonl") == 0
    assert capsys.readouterr().err == "bdh: warning: 2 zero bytes of the text are left away: they separate documents\n"


def test_the_command(stories: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare", "stories.jsonl", "--validation-share", 0.1, "--out-dir", "some where") == 0
    out = capsys.readouterr().out
    assert "train      441 documents, " in out
    assert "licence: unknown (the user's own text)\ntrain on it with: bdh train --data 'some where'\n" in out
    assert run("prepare", "stories.jsonl", "--validation-share", 0.1, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["prepared"], told["splits"]["validation"]["documents"]) == ("data/stories", 59)
    for words in (("alpacca",), ("stories.jsonl", "--validation-share", 2), ("stories.jsonl", "--template", "new")):
        assert run("prepare", *words) == 2
        assert capsys.readouterr().err.count("\n") == 1
