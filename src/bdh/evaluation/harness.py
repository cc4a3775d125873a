"""A model of this package in lm-evaluation-harness: `python -m bdh.evaluation.harness run --model bdh ...`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bdh import checkpoint
from bdh.data import Tokenizer
from bdh.evaluation.reading import loglikelihoods
from bdh.generate import stream_text
from bdh.model import BDH

NEW_TOKENS = 256
"""Where a task does not say how many; the harness's own default."""


class Answers:
    """What the harness asks a model for, apart from the harness.

    A text is read as one stream, whatever its length: nothing is cut off. An empty context is the separator.

    Args:
        model: run directory or checkpoint directory.
        device: where it runs.
        batch_size: the harness hands it over; requests are answered one by one.
        max_batch_size: likewise.
    """

    backend = "causal"

    def __init__(
        self, model: str, device: str | None = None, batch_size: Any = None, max_batch_size: Any = None
    ) -> None:
        super().__init__()
        if (device or "cpu").startswith("cuda") and not torch.cuda.is_available():
            # the harness asks for a GPU by default
            print(f"bdh: {device} is not present: the model runs on the CPU", file=sys.stderr)
            device = "cpu"
        self.bdh: BDH = checkpoint.load(Path(model), device or "cpu")
        self.words: Tokenizer = checkpoint.load_tokenizer(Path(model))

    @property
    def eot_token_id(self) -> int:
        """The token between documents."""
        return self.words.separator

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Turn text into ids; there are no special tokens to add."""
        return [int(token) for token in self.words.encode(string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return loglikelihoods(self.bdh, ((context, continuation) for _, context, continuation in requests))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log p of whole texts."""
        pairs = (([self.eot_token_id], self.tok_encode(request.args[0])) for request in requests)
        return [score for score, _ in loglikelihoods(self.bdh, pairs)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue texts up to a stop string; greedily, unless a temperature is asked for."""
        found = []
        for request in requests:
            context, wanted = request.args
            stop = wanted.get("until") or []
            temperature = wanted.get("temperature", 0.0) if wanted.get("do_sample", True) else 0.0
            pieces = stream_text(
                self.bdh,
                context or self.words.decode([self.eot_token_id]),
                wanted.get("max_gen_toks", NEW_TOKENS),
                temperature=temperature,
                stop=[stop] if isinstance(stop, str) else [s for s in stop if s],
                tokenizer=self.words,
            )
            found.append("".join(pieces))
        return found


@functools.cache
def register() -> type:
    """Make the harness know the model `bdh`, and return its class.

    Raises:
        ValueError: the harness is not installed.
    """
    try:
        from lm_eval.api.model import TemplateLM
        from lm_eval.api.registry import register_model
    except ImportError:
        raise ValueError('lm-evaluation-harness is not installed: pip install "bdh[eval]"') from None
    model: type = register_model("bdh")(type("BDHLM", (Answers, TemplateLM), {"__doc__": Answers.__doc__}))
    return model


def main() -> None:
    """Run the harness's own command line with the model `bdh` in it."""
    try:
        register()
    except ValueError as error:
        print(f"bdh: {error}", file=sys.stderr)
        sys.exit(2)
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
