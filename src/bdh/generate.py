"""Continue a text: read the prompt once, then one O(1) step per token.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bdh import ops
from bdh.data.tokenizers import ByteTokenizer, Decoder, Tokenizer
from bdh.model import BDH, State, evaluating

_MEMORIES = {"rho", "fading"}
"""Parts of a state that low precision rounds; the others are small, and a membrane decides on a threshold."""
PREFILL_BLOCK = 512
"""Prompt tokens read at once; bounds the memory of the activations, not the result."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 1.0
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int | None = None
    """Choose among the k most likely tokens only, exactly k of them; of equal ones the lower ids."""
    top_p: float | None = None
    """Choose among the fewest tokens whose probabilities sum to at least p; of equal ones the lower ids."""
    seed: int | None = None
    """Seed of the choices; None draws a fresh one."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature}: expected a number >= 0; 0 is greedy, 1 is unchanged")
        if self.top_k is not None and (self.top_k < 1 or self.top_k != int(self.top_k)):
            raise ValueError(f"top_k={self.top_k}: expected an integer >= 1; leave it out to choose among all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected 0 < top_p <= 1; leave it out to choose among all tokens")

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the random source of one generation."""
        generator = torch.Generator(device=device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """Return a token (B,) for each row of logits (B, V).

        Raises:
            ValueError: a logit is NaN or infinite.

        Examples:
            >>> Sampling(temperature=0).choose(torch.tensor([[0.0, 2.0, 1.0]]), torch.Generator()).tolist()
            [1]
        """
        if not bool(logits.isfinite().all()):
            raise ValueError("logits are not finite: the model's weights or input are broken")
        if self.temperature == 0:
            return logits.argmax(-1)
        # subtracting the maximum first keeps a tiny temperature from overflowing
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = logits.scatter(-1, _ranked(logits)[1][:, self.top_k :], -math.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1:
            probabilities = _nucleus(probabilities, self.top_p)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


def _ranked(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sort falling and return (values, ids); equal entries in the order of their ids, on every device."""
    values, ids = x.sort(dim=-1, descending=True, stable=True)
    return values, ids


def _nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Zero all but the most likely tokens that together reach p; the most likely one always stays."""
    sorted_p, order = _ranked(probabilities)
    before = sorted_p.cumsum(-1) - sorted_p
    kept = sorted_p.masked_fill(before >= p, 0.0)
    return torch.zeros_like(probabilities).scatter(-1, order, kept)


def prefill(model: BDH, idx: Tensor, state: State | None = None) -> tuple[Tensor, State]:
    """Read a prompt of any length in bounded memory, without dropout or gradients.

    Args:
        model: the model.
        idx: (B, T) token ids.
        state: what was read before; not changed.

    Returns:
        Logits (B, V) after the last token, and the state.
    """
    with evaluating(model):
        logits, owned = model.advance(idx[:, :PREFILL_BLOCK], state)
    for start in range(PREFILL_BLOCK, idx.shape[1], PREFILL_BLOCK):
        logits, owned = step(model, idx[:, start : start + PREFILL_BLOCK], owned)
    return logits[:, -1], owned


def step_weights(model: BDH, state: State, precision: ops.Precision = "float32") -> ops.StepWeights | None:
    """Return copies of the weights as they are now, which make a single token cheaper; None where nothing would.

    Raises:
        ValueError: an unknown precision, or one that cannot be had here.
    """
    memories = [level[name] for level in map(state.level, range(len(state.rho))) for name in _MEMORIES & level.keys()]
    if (
        ops.step_backend(model.encoder, *memories, refused=_why_no_native_step(model), precision=precision)
        == "composed"
    ):
        return None
    return ops.step_weights(model.encoder, model.encoder_v, model.decoder, precision, *model.parts.step_constants())


def _why_no_native_step(model: BDH) -> str | None:
    return "the kernels have no place for an intervention" if model.edits else model.parts.why_no_native_step()


def step(model: BDH, idx: Tensor, state: State, weights: ops.StepWeights | None = None) -> tuple[Tensor, State]:
    """Advance without dropout or gradients; the caller gives the state away and its memory is reused, not copied.

    Args:
        model: the model.
        idx: (B, T) token ids.
        state: what was read before.
        weights: from `step_weights`, to be made again when the model changes.
    """
    # asked at every step: an intervention may begin and end between the tokens of a stream
    if weights is not None and idx.shape[1] == 1 and not model.edits:
        return model.step(idx, state, weights)
    with evaluating(model):
        logits, after = model.walk(idx, state, wants_state=True, owns_state=True)
    assert after is not None
    return logits, after


def stream(
    model: BDH,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    state: State | None = None,
    precision: ops.Precision = "float32",
) -> Iterator[Tensor]:
    """Yield `max_new_tokens` tokens after the prompt, each as it is chosen, at a cost independent of the position.

    Args:
        model: the model; dropout is off while a token is made, and between tokens the mode is the caller's, so that
            several streams of one model, or a training step, may take turns.
        idx: (B, T) prompts of equal length.
        max_new_tokens: how many to make.
        temperature: see `Sampling`.
        top_k: see `Sampling`.
        top_p: see `Sampling`.
        seed: see `Sampling`; the same seed gives the same tokens.
        state: what was read before the prompt; not changed.
        precision: "bfloat16" or "int8" reads rounded copies of the maps and keeps the state in bfloat16, for speed:
            on a CPU with the native kernels. The prompt is read with the weights as they are.

    Yields:
        The next token of each sequence, (B,).

    Raises:
        ValueError: a sampling value or the precision is not usable (at the call), the prompt is not (at the first
            token), or the logits are not finite (at any token).
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    check_length(max_new_tokens)
    ops.step_backend(model.encoder, refused=_why_no_native_step(model), precision=precision)
    return _stream(model, idx, max_new_tokens, sampling, state, precision)


def check_length(max_new_tokens: int) -> None:
    """Raise ValueError for a number of tokens that cannot be made."""
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected an integer >= 0")


def _stream(
    model: BDH, idx: Tensor, max_new_tokens: int, sampling: Sampling, state: State | None, precision: ops.Precision
) -> Iterator[Tensor]:
    generator = sampling.generator(idx.device)
    logits, state = prefill(model, idx, state)
    if precision != "float32":
        state = _rounded(state)
    weights = step_weights(model, state, precision) if max_new_tokens > 1 else None
    for made in range(max_new_tokens):
        token = sampling.choose(logits, generator)
        yield token
        if made + 1 < max_new_tokens:
            all_logits, state = step(model, token[:, None], state, weights)
            logits = all_logits[:, -1]


def _rounded(state: State) -> State:
    levels = [state.level(level) for level in range(len(state.rho))]
    return State.of_levels(
        [{k: part.bfloat16() if k in _MEMORIES else part for k, part in level.items()} for level in levels],
        state.position,
    )


def generate(model: BDH, idx: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """Return the prompts followed by `max_new_tokens` new tokens; options as in `stream`.

    Returns:
        (B, T + max_new_tokens) token ids.

    Examples:
        >>> from bdh import BDH, BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> generate(model, torch.tensor([[1, 2]]), 5, seed=0).shape
        torch.Size([1, 7])
    """
    new = list(stream(model, idx, max_new_tokens, **options))
    return torch.cat([idx, *(token[:, None] for token in new)], dim=1)


def as_ids(model: BDH, text: str | bytes | Tensor, tokenizer: Tokenizer | None = None) -> Tensor:
    """Return a text as ids (1, T) on the model's device; ids pass through.

    Args:
        model: who is to read it.
        text: not empty.
        tokenizer: what the tokens of the model are; None: bytes.
    """
    if isinstance(text, Tensor) or tokenizer is None or tokenizer.name == ByteTokenizer.name:
        return model.as_ids(text)
    return torch.as_tensor(tokenizer.encode(text), dtype=torch.int64, device=model.encoder.device)[None]


def remember(
    model: BDH, text: str | bytes | Tensor, state: State | None = None, *, tokenizer: Tokenizer | None = None
) -> State:
    """Return what a model remembers after reading `text`, or ids (1, T)."""
    return prefill(model, as_ids(model, text, tokenizer), state)[1]


def stream_text(
    model: BDH,
    prompt: str | bytes | Tensor,
    max_new_tokens: int,
    *,
    stop: Sequence[str] = (),
    end: int | None = None,
    tokenizer: Tokenizer | None = None,
    **options: Any,
) -> Iterator[str]:
    """Yield the continuation of a text, in pieces that are whole characters.

    Args:
        model: a model.
        prompt: what to continue; at least one byte, or ids (1, T).
        max_new_tokens: how many tokens to make.
        stop: the text ends before the first of these strings.
        end: the text ends before this token, too.
        tokenizer: what the tokens of the model are; None: the first 256 are the bytes.
        **options: as in `stream`.

    Yields:
        Text. Bytes that are not valid UTF-8 appear as \\xNN, tokens that are no bytes as <300>.

    Raises:
        ValueError: an empty prompt or stop string, or a value that `stream` refuses.
    """
    if not isinstance(prompt, Tensor) and not prompt:
        raise ValueError("the prompt is empty: expected at least one character, for example a newline")
    if isinstance(stop, str) or not all(stop):
        raise ValueError(f"stop={stop!r}: expected a list of non-empty strings")
    tokens = stream(model, as_ids(model, prompt, tokenizer), max_new_tokens, **options)
    pieces = _characters(tokens, (tokenizer or ByteTokenizer()).decoder(), end)
    return _until(stop, pieces) if stop else pieces


def _characters(tokens: Iterator[Tensor], decoder: Decoder, end: int | None) -> Iterator[str]:
    for token in tokens:
        if token.tolist() == [end]:
            break
        if piece := decoder.push(token.tolist()):
            yield piece
    if rest := decoder.flush():
        yield rest


def _until(stop: Sequence[str], pieces: Iterator[str]) -> Iterator[str]:
    """Pass pieces on up to the first stop string; hold back what may yet become one."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [at for s in stop if (at := held.find(s)) >= 0]
        if ends:
            yield held[: min(ends)]
            return
        keep = max((n for s in stop for n in range(1, len(s)) if held.endswith(s[:n])), default=0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held
