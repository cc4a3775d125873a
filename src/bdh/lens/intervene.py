"""Change what a model computes inside a `with`: for a forward pass, for `advance` and for generation alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from bdh.lens.interventions import Intervention, Walk
from bdh.lens.surgery import remember
from bdh.model import BDH, State
from bdh.taps import Tap


@contextmanager
def intervene(model: BDH, interventions: Sequence[Intervention]) -> Iterator[None]:
    """Let interventions act on everything that the model reads inside the `with`, in their order.

    They act on `model(idx)`, `advance`, `generate`, `stream` and on what `record` shows; the native kernels, which
    cannot be changed inside, are not taken meanwhile. Afterwards the model is what it was, after an error too. Blocks
    may be nested: the inner interventions come after the outer ones. An empty list changes nothing, not even which
    kernels run.

    Args:
        model: the model; its weights are not touched.
        interventions: `Ablate`, `Scale`, `Clamp`, `Patch`, `ScaleSynapse`, `EraseTokens`.

    Yields:
        Nothing.

    Raises:
        ValueError: the model does not have what is to be changed; a pass that an intervention cannot act on (at the
            pass); or positions of the text that were not read inside the block (at its end).

    Examples:
        >>> import torch
        >>> from bdh import BDHConfig
        >>> from bdh.lens import Ablate
        >>> config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)
        >>> model = BDH.from_seed(config, seed=0).eval()
        >>> idx = torch.tensor([[1, 2, 3]])
        >>> before, _ = model(idx)
        >>> with intervene(model, [Ablate(neurons=[12, 47])]):
        ...     changed, _ = model(idx)
        >>> torch.equal(changed, before), torch.equal(model(idx)[0], before)
        (False, True)
    """
    session = _Session(interventions)
    for one in session.interventions:
        one.check(model)
    if not session.interventions:
        yield
        return
    stack = next((edit for edit in model.edits if isinstance(edit, _Stack)), None)
    if stack is None:
        stack = _Stack(model)
        model.edits = (*model.edits, stack)
    stack.sessions = (*stack.sessions, session)
    try:
        yield
    finally:
        # blocks of different tasks need not end in the order in which they began
        stack.sessions = tuple(one for one in stack.sessions if one is not session)
        if not stack.sessions:
            model.edits = tuple(edit for edit in model.edits if edit is not stack)
    session.check_read()


class _Session:
    """The interventions of one `with`, and which of the tokens that they are about were read."""

    def __init__(self, interventions: Sequence[Intervention]) -> None:
        if isinstance(interventions, Intervention):
            raise ValueError(f"interventions: expected a list, got {interventions!r}; put it into [...]")
        self.interventions = tuple(interventions)
        for one in self.interventions:
            if not isinstance(one, Intervention):
                raise ValueError(f"interventions: expected {', '.join(Intervention.kinds)}, got {one!r}")
        self._asked = {at for one in self.interventions for at in one.asked_positions()}
        self._read: set[int] = set()
        self._tokens = 0

    def begin(self, walk: Walk) -> None:
        for one in self.interventions:
            one.begin(walk, self._read)
        end = walk.position + walk.tokens
        self._tokens = max(self._tokens, end)
        self._read |= {at for at in self._asked if walk.position <= at < end}

    def check_read(self) -> None:
        # of a block in which nothing was read nothing was expected
        if self._tokens and (missed := sorted(self._asked - self._read)):
            raise ValueError(
                f"positions: token {missed[0]} was to be changed and was not read inside the block, which ended at "
                f"token {self._tokens - 1}; leave it out, or read further"
            )


class _Stack:
    """All interventions that are active on a model, as the one edit of its walks."""

    def __init__(self, model: BDH) -> None:
        self._model = model
        self.sessions: tuple[_Session, ...] = ()

    def __call__(self, idx: Tensor, state: State | None) -> Tap:
        walk = Walk(self._model, idx.shape[1], state)
        for session in self.sessions:
            session.begin(walk)
        interventions = [one for session in self.sessions for one in session.interventions]

        def tap(name: str, tensor: Tensor) -> Tensor:
            level, place = _parsed(name)
            for one in interventions:
                tensor = one.change(tensor, level, place, walk)
            remember(walk, level, place, tensor, interventions)
            return tensor

        return tap


def _parsed(name: str) -> tuple[int, str]:
    """Level and place of a name; -1 for those outside the levels."""
    parts = name.split(".")
    return (int(parts[1]), parts[2]) if len(parts) == 3 else (-1, name)
