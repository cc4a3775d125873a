"""Rows and plain texts: what is no row and no UTF-8 is told with its place, and what has two readings has one."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh.data.documents import Reading
from bdh.data.download import CorpusError
from bdh.data.plain import line_of, read_text
from bdh.data.rows import read_rows


def texts(file: Path) -> list[str]:
    return [row.values["text"] for row in read_rows(file)]


def refusal(file: Path, reading: Reading | None = None) -> str:
    with pytest.raises(CorpusError) as error:
        list((reading or Reading()).documents(file))
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{file}: ")


def test_a_quote_that_is_not_closed_is_no_text(tmp_path: Path) -> None:
    file, lines = tmp_path / "rows.csv", [f'"row {n}, and",{n}' for n in range(400)]
    file.write_text("\n".join(["text,n", *lines]))
    assert texts(file) == [f"row {n}, and" for n in range(400)]
    lines[100] = '"row 100, and,100'
    file.write_text("\n".join(["text,n", *lines]))
    assert refusal(file).startswith("the row that begins in line 102 is not CSV (',' expected after")
    file.write_text('text\none\n"two\nthree\n')
    assert refusal(file).startswith("the row that begins in line 3 is not CSV (unexpected end of data)")


def test_fields_too_many_or_too_few_are_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text\nYes.\n\nNo, never.\n")
    assert refusal(file) == (
        "the row that begins in line 4 is not CSV (expected 1 fields, as in its first line, found 2); look for a quote "
        "or a comma too many"
    )


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.just("x")), min_size=1))
def test_what_csv_writes_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    file = tmp_path_factory.mktemp("csv") / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerows([("text", "other"), *rows])
    assert texts(file) == [text for text, _ in rows]


@pytest.mark.parametrize("value", [{"x": 297}, 5, True, ["a"]])
def test_what_is_no_text_is_not_learned(tmp_path: Path, value: object) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": "Say it.", "output": "it"}, {"instruction": "Say it.", "output": value}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert refusal(file) == f"expected text in the column output of line 2, found {value!r}; write it as text"
    file.write_text(json.dumps({"text": None}) + "\n" + json.dumps({"text": value}))
    assert refusal(file) == f"expected text in the column text of line 2, found {value!r}; write it as text"


def test_instructions_win_over_a_column_that_joins_them(tmp_path: Path) -> None:
    file = tmp_path / "alpaca.jsonl"
    row = {"instruction": "Count.", "input": "", "output": "1, 2", "text": "### Instruction: Count. ### Response: 1, 2"}
    file.write_text(json.dumps(row) + "\n")
    with pytest.warns(
        UserWarning, match=r"alpaca.jsonl: its instructions .* text is left out \(bdh prepare --text-col"
    ):
        (document,) = Reading().documents(file)
    assert document.text == b"1, 2"
    assert document.prompt.endswith(b"### Instruction:\nCount.\n\n### Response:\n")
    for column in ("text", "output"):
        (document,) = Reading(column=column).documents(file)
        assert (document.prompt, document.text) == (b"", row[column].encode())
    assert refusal(file, Reading(column="body")).startswith("expected the column body, found instruction, input, outp")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_the_mark_of_another_encoding_is_told(tmp_path: Path, encoding: str, suffix: str) -> None:
    file = tmp_path / f"notes{suffix}"
    file.write_bytes("\ufeff".encode(encoding.removesuffix("-be") + "-be") if encoding.endswith("-be") else b"")
    with file.open("ab") as handle:
        handle.write("Some notes.\n".encode(encoding))
    name, raw = encoding[:6].upper(), "bdh train takes its bytes as they are if it is called notes.bin, else "
    assert refusal(file) == (
        f"expected UTF-8, found the mark of {name}; {'' if suffix != '.txt' else raw}convert it: "
        f"iconv -f {name} -t UTF-8 {file} > NEW"
    )
    with pytest.raises(CorpusError, match=f"the mark of {name}"):
        read_text(file)


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_the_place_that_is_not_utf8_is_told(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"menu{suffix}"
    before = (
        b'text\n"' + b"a" * 20_000 + b'"\n"' if suffix == ".csv" else b'{"text": "' + b"a" * 20_000 + b'"}\n{"text": "'
    )
    file.write_bytes(before + b'caf\xe9"')
    line = before.count(b"\n") + 1
    assert refusal(file).startswith(f"expected UTF-8, found byte 0xe9 at {len(before) + 3:,} (line {line}); ")
    with pytest.raises(CorpusError, match=rf"found byte 0xe9 at {len(before) + 3:,} \(line {line}\)"):
        read_text(file)


@given(st.text(st.characters(codec="utf-8"), min_size=1).map(lambda text: text * 9000))
def test_all_of_a_text_that_is_utf8_is_read(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    content = text[:60_000].lstrip("\ufeff").encode()
    file.write_bytes(b"\xef\xbb\xbf" + content)
    assert b"".join(row.values["text"] for row in read_rows(file)) == content


@given(st.lists(st.sampled_from([b"a", b"\n", b"bc\r\n"])), st.data())
def test_lines_are_counted_from_one(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], data: st.DataObject
) -> None:
    file, content = tmp_path_factory.mktemp("lines") / "a", b"".join(parts)
    file.write_bytes(content)
    at = data.draw(st.integers(0, len(content)))
    assert line_of(file, at) == content[:at].count(b"\n") + 1
