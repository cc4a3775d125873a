"""Conversations: every turn is read once, and what a model remembers is all that is kept of it."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from bdh.data import ByteTokenizer, Prompting, Tokenizer, fill
from bdh.generate import Sampling, as_ids, check_length, prefill, step, step_weights
from bdh.model import BDH, State


def prompt_ids(
    model: BDH, tokenizer: Tokenizer, prompting: Prompting, instruction: str, *, begins: bool = False
) -> Tensor:
    """Return an instruction in the words that a model was taught, (1, T), behind an end token where a text begins."""
    ids = as_ids(model, fill(prompting.template, instruction), tokenizer)
    return torch.cat([ids.new_tensor([[prompting.end]]), ids], dim=1) if begins else ids


class Conversation:
    """A model, and what it remembers of a conversation.

    What it has read at any time is one text: end token, prompt, answer, end token, prompt, and so on, as in prepared
    data. Nothing is read twice, so a turn costs the same after a thousand others, and the memory has one size.

    Args:
        model: the model.
        prompting: how it was taught to be asked.
        tokenizer: what its tokens are; None: bytes.
        state: `state` of an earlier conversation, to go on with.
        sampling: how tokens are chosen.

    Examples:
        >>> from bdh import BDHConfig
        >>> model = BDH.from_seed(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4), seed=0)
        >>> talk = Conversation(model, Prompting("short", 0), sampling=Sampling(seed=0))
        >>> answer = "".join(talk.reply("Who are you?", max_new_tokens=5))
        >>> size = talk.state.nbytes
        >>> answer = "".join(talk.reply("And who am I?", max_new_tokens=5))
        >>> talk.state.nbytes == size
        True
    """

    def __init__(
        self,
        model: BDH,
        prompting: Prompting,
        tokenizer: Tokenizer | None = None,
        *,
        state: State | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        self.model, self.prompting, self.tokenizer = model, prompting, tokenizer or ByteTokenizer()
        self._sampling = sampling or Sampling()
        self._generator = self._sampling.generator(model.embed.weight.device)
        self._end = torch.tensor([[prompting.end]], device=model.embed.weight.device)
        self.state = state if state is not None else prefill(model, self._end)[1]
        """What was read, up to the end of the last answer."""

    def reply(self, text: str, max_new_tokens: int = 500) -> Generator[str]:
        """Yield the answer in pieces that are whole characters, as it is made.

        Whenever the iterator is closed, what was said by then and an end token are part of the memory.

        Args:
            text: the turn of the user.
            max_new_tokens: after these an answer ends in any case.

        Raises:
            ValueError: `max_new_tokens` is negative (at the first piece).
        """
        check_length(max_new_tokens)
        logits, state = prefill(self.model, prompt_ids(self.model, self.tokenizer, self.prompting, text), self.state)
        weights = step_weights(self.model, state)
        decoder = self.tokenizer.decoder()
        try:
            for _ in range(max_new_tokens):
                token = self._sampling.choose(logits, self._generator)
                if token.item() == self.prompting.end:
                    break
                all_logits, state = step(self.model, token[:, None], state, weights)
                logits = all_logits[:, -1]
                if piece := decoder.push(token.tolist()):
                    yield piece
            if rest := decoder.flush():
                yield rest
        except GeneratorExit:
            self._end_turn(state)
            raise
        # after any other exception the memory is that of before the turn: a step may have been cut in two
        self._end_turn(state)

    def _end_turn(self, state: State) -> None:
        self.state = step(self.model, self._end, state)[1]
