"""The words around an instruction, as a model is told them in fine-tuning and in chat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast, get_args

Template = Literal["newline", "official", "short"]
TEMPLATES: tuple[Template, ...] = get_args(Template)

_HEAD = "Below is an instruction that describes a task"
_TAIL = "Write a response that appropriately completes the request.\n\n"
_PREAMBLE = f"{_HEAD}. {_TAIL}"
_PREAMBLE_WITH_INPUT = f"{_HEAD}, paired with an input that provides further context. {_TAIL}"


def fill(template: Template, instruction: str, given: str = "") -> str:
    """Return the prompt of an instruction, in the words of Alpaca.

    Args:
        template: "official" ends right after "Response:"; "newline" goes on to the next line, so that the answer
            begins on its own; "short" is that without the first paragraph.
        instruction: what to do.
        given: what to do it with; may be empty.

    Examples:
        >>> fill("short", "Add the numbers.", "1, 2")
        '### Instruction:\\nAdd the numbers.\\n\\n### Input:\\n1, 2\\n\\n### Response:\\n'
    """
    preamble = "" if template == "short" else _PREAMBLE_WITH_INPUT if given else _PREAMBLE
    middle = f"### Input:\n{given}\n\n" if given else ""
    end = "" if template == "official" else "\n"
    return f"{preamble}### Instruction:\n{instruction}\n\n{middle}### Response:{end}"


class Prompting(NamedTuple):
    """How a model was taught to be asked, as config.json of its checkpoint keeps it."""

    template: Template
    """the words around an instruction"""
    end: int
    """token that ends an answer, and that every prompt begins with"""

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json holds."""
        return {"template": self.template, "end_token": self.end}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Prompting | None:
        """Read what config.json holds; None if the model was never taught.

        Raises:
            ValueError: an unknown template, or no token.

        Examples:
            >>> Prompting.from_dict({"template": "short", "end_token": 0})
            Prompting(template='short', end=0)
        """
        if "template" not in content:
            return None
        name, end = content["template"], content.get("end_token")
        if name not in TEMPLATES:
            raise ValueError(f"template {name!r}: expected one of {', '.join(TEMPLATES)}; a newer bdh may know it")
        if not isinstance(end, int) or isinstance(end, bool) or end < 0:
            raise ValueError(f"end_token {end!r}: expected a token id, an integer >= 0")
        return cls(cast(Template, name), end)
