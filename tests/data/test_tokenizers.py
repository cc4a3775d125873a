"""Bytes as tokens: known values, round trips, and a decoder that never shows half a character."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bdh.data import ByteTokenizer, TextDecoder


def decode_in_pieces(content: bytes, cuts: list[int]) -> str:
    """Decode `content`, cut at the given places."""
    decoder = TextDecoder()
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    text = "".join(decoder.push(content[a:b]) for a, b in itertools.pairwise(edges))
    return text + decoder.flush()


def test_encode_gives_utf8_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.name, tokenizer.vocab_size) == ("bytes", 256)
    ids = tokenizer.encode("né€😀")
    assert ids.dtype == np.uint8
    assert ids.tolist() == [110, 195, 169, 226, 130, 172, 240, 159, 152, 128]
    assert tokenizer.encode(b"\x00\xff").tolist() == [0, 255]
    assert tokenizer.encode("").shape == (0,)


def test_encoded_ids_may_be_written_to() -> None:
    content = b"abc"
    ids = ByteTokenizer().encode(content)
    ids[0] = 0
    assert content == b"abc"


def test_encode_takes_stray_bytes_of_a_command_line_and_refuses_other_surrogates() -> None:
    stray = b"a\xffb".decode("utf-8", errors="surrogateescape")
    assert ByteTokenizer().encode(stray).tolist() == [97, 255, 98]
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at character 1; remove it"):
        ByteTokenizer().encode("a\ud800")


@given(st.text())
def test_text_survives_the_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary(max_size=40), st.lists(st.integers(0, 40), max_size=8))
def test_decode_equals_any_split_into_pushes(content: bytes, cuts: list[int]) -> None:
    text = ByteTokenizer().decode(content)
    assert text == content.decode("utf-8", errors="backslashreplace")
    assert decode_in_pieces(content, cuts) == text


@given(st.text(alphabet="aé€😀\u0301", max_size=10), st.data())
def test_pushed_text_is_always_a_prefix_of_whole_characters(text: str, data: st.DataObject) -> None:
    content = text.encode()
    cut = data.draw(st.integers(0, len(content)))
    assert text.startswith(TextDecoder().push(content[:cut]))


def test_a_character_appears_with_its_last_byte() -> None:
    decoder = TextDecoder()
    assert [decoder.push(byte) for byte in "€!".encode()] == ["", "", "€", "!"]
    assert decoder.flush() == ""


def test_invalid_bytes_appear_as_escapes() -> None:
    decoder = TextDecoder()
    assert decoder.push(b"\xe2\x82A\xff") == r"\xe2\x82A\xff"
    assert decoder.push(b"\xf0\x9f") == ""
    assert decoder.flush() == r"\xf0\x9f"
    # flushed: the bytes that would have completed the character are now on their own
    assert decoder.push(b"\x98\x80") == r"\x98\x80"


@pytest.mark.parametrize(
    "ids",
    [[104, 105], (104, 105), b"hi", np.array([104, 105], np.uint8), torch.tensor([104, 105])],
    ids=lambda ids: type(ids).__name__,
)
def test_decode_takes_ids_as_they_come(ids: object) -> None:
    assert ByteTokenizer().decode(ids) == "hi"


def test_decode_takes_one_id_and_none() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(65) == tokenizer.decode(torch.tensor(65)) == "A"
    assert tokenizer.decode([]) == tokenizer.decode(torch.tensor([])) == ""


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 256], r"0\.\.255, got 0\.\.256"),
        ([-1], r"got -1\.\.-1"),
        ([1.5], "must be integers, got float64"),
        ("text", "must be integers, got <U4"),
        ([True], "must be integers, got bool"),
        (torch.zeros(2, 3, dtype=torch.int64), r"one sequence \(T,\), got shape \(2, 3\)"),
    ],
)
def test_decode_refuses_what_is_no_byte(ids: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ByteTokenizer().decode(ids)
