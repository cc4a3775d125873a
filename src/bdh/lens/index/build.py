"""Build an index in one pass that may be stopped, go on, and be shared out over processes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bdh.files import replacing_file, write_text
from bdh.lens.index.ngrams import frequent
from bdh.lens.index.plan import Plan
from bdh.lens.index.store import Index, write_index
from bdh.lens.index.tally import Tally
from bdh.lens.texts import Ids, as_bytes, blocks
from bdh.model import BDH, evaluating

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much there is."""

SAVE_SECONDS = 60.0
"""Between two savings of what was counted: so much is lost at most where a build is stopped."""


def build_index(
    model: BDH,
    ids: Ids,
    folder: str | os.PathLike[str],
    *,
    signal: str = "x_sparse",
    window: int = 256,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> Index | None:
    """Read a text once and write down what every neuron does in it.

    The text is read in windows that start from an empty state. What was counted is saved beside the folder, in
    FOLDER.building; a build that was stopped goes on there when it is called again, and comes to the same index. Each
    of several processes reads every so-manieth block, and the one that ends last puts the shards together.

    Args:
        model: a model of bytes; it is not changed.
        ids: (S,) bytes of the text.
        folder: directory to write; an index of the same model, text and settings that is there already is returned.
        signal: x_sparse, y_sparse or xy_sparse.
        window: bytes read from one empty state.
        seed: of the sample of places at which each neuron fires.
        shard: number of this process and how many there are; by default from RANK and WORLD_SIZE, as torchrun sets
            them, or (0, 1).
        progress: told how far it is.

    Returns:
        The index, or None where other shards are not done.

    Raises:
        ValueError: ids that are not bytes, a setting out of range, or a folder that holds something else.

    Examples:
        >>> import tempfile
        >>> from bdh import BDHConfig
        >>> model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4))
        >>> with tempfile.TemporaryDirectory() as place:
        ...     index = build_index(model, b"to be or not to be", place + "/index")
        ...     page = index.neuron("h1:7")
        >>> page.neuron, len(page.levels)
        (39, 2)
    """
    text, target = as_bytes(ids, "text"), Path(folder)
    plan = Plan.of(model, text, signal=signal, window=window, seed=seed)
    rank, of = shard or (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if not 0 <= rank < of:
        raise ValueError(f"shard=({rank}, {of}): expected a number below how many there are")
    if target.exists():
        return _existing(target, plan)
    work = target.with_name(target.name + ".building")
    _claim(work, plan)
    tally = Tally(plan, frequent(text, plan.window, plan.ngrams))
    _count(model, text, tally, work / f"shard-{rank}-of-{of}.safetensors", (rank, of), progress)
    with _alone(work):
        if not target.exists():  # else another process was as quick
            shards = [work / f"shard-{number}-of-{of}.safetensors" for number in range(of)]
            if not all(map(_is_whole, shards)):
                return None
            for file in shards[:rank] + shards[rank + 1 :]:
                other = Tally(plan, tally.ngrams)
                _load(other, file)
                tally.merge(other)
            write_index(target, plan, tally, text, model, progress)
        shutil.rmtree(work)
    return _existing(target, plan)


def _existing(target: Path, plan: Plan) -> Index:
    index = Index.open(target)  # says so if it is none
    if different := plan.differs(index.plan):
        raise ValueError(f"{target} is an index of another {different}: choose another folder, or delete it")
    return index


def _claim(work: Path, plan: Plan) -> None:
    """Make the directory of an unfinished build, or check that it is of the same."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "plan.json"
    if not file.exists():
        write_text(file, json.dumps(plan.to_dict()))
        return
    try:
        different = plan.differs(Plan.from_dict(json.loads(file.read_text(encoding="utf-8"))))
    except (ValueError, TypeError):
        different = "kind"
    if different:
        raise ValueError(f"{work} is an unfinished index of another {different}: delete it, or choose another folder")


def _count(
    model: BDH, text: npt.NDArray[np.uint8], tally: Tally, file: Path, shard: tuple[int, int], progress: Progress | None
) -> None:
    """Read the blocks of this shard that were not read before."""
    rank, of = shard
    first = _load(tally, file) if file.exists() else 0
    saved = time.monotonic()
    with evaluating(model):
        for number, (start, idx) in enumerate(blocks(model, text, tally.plan.window)):
            if number < first or number % of != rank:
                continue
            tally.begin(start, *idx.shape)
            model(idx, tap=tally)
            tally.finish()
            if time.monotonic() - saved >= SAVE_SECONDS:
                _save(tally, file, number + 1)
                saved = time.monotonic()
            if progress:
                progress("reading", min(start + idx.numel(), len(text)), len(text))
    _save(tally, file, number + 1, whole=True)


def _save(tally: Tally, file: Path, done: int, whole: bool = False) -> None:
    with replacing_file(file) as work:
        save_file(tally.arrays(), work, metadata={"blocks": str(done), "whole": str(int(whole))})


def _load(tally: Tally, file: Path) -> int:
    """Fill a tally, and return how many blocks it has seen or passed over."""
    try:
        with safe_open(file, framework="numpy") as saved:
            for name, array in tally.arrays().items():
                array[...] = saved.get_tensor(name)
            return int(saved.metadata()["blocks"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): delete {file.parent} and begin again") from None


def _is_whole(file: Path) -> bool:
    if not file.exists():
        return False
    with safe_open(file, framework="numpy") as saved:
        return bool(saved.metadata()["whole"] == "1")


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Wait until no other process is in this block; the lock goes with the process that holds it."""
    work.mkdir(exist_ok=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
