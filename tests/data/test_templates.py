"""The words around an instruction, letter by letter as they were published."""

import pytest

from bdh.data import Prompting, fill

# tatsu-lab/stanford_alpaca, train.py: PROMPT_DICT
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSing.\n\n### Response:"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nSing.\n\n### Input:\nla\n\n### Response:"
)


def test_official_is_that_of_alpaca_without_a_newline_at_the_end() -> None:
    assert fill("official", "Sing.") == ALPACA
    assert fill("official", "Sing.", "la") == ALPACA_WITH_INPUT


def test_newline_adds_one_and_short_drops_the_first_paragraph() -> None:
    assert fill("newline", "Sing.") == ALPACA + "\n"
    assert fill("newline", "Sing.", "la") == ALPACA_WITH_INPUT + "\n"
    assert fill("short", "Sing.") == "### Instruction:\nSing.\n\n### Response:\n"
    assert fill("short", "Sing.", "la") == "### Instruction:\nSing.\n\n### Input:\nla\n\n### Response:\n"


def test_prompting_comes_back_from_json_and_others_are_refused() -> None:
    for prompting in (Prompting("official", 0), Prompting("short", 4095)):
        assert Prompting.from_dict(prompting.to_dict()) == prompting
    assert Prompting.from_dict({"tokenizer": "bytes"}) is None
    with pytest.raises(ValueError, match="template 'chatml': expected one of newline, official, short"):
        Prompting.from_dict({"template": "chatml", "end_token": 0})
    for wrong in (None, "0", -1, True):
        with pytest.raises(ValueError, match="expected a token id"):
            Prompting.from_dict({"template": "short", "end_token": wrong})
