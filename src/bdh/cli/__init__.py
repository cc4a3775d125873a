"""The command line: one subcommand is one typed function; no tensor code.

Exit codes: 0 done, 1 the work failed, 2 the user's mistake (one line on stderr), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from bdh import __version__
from bdh.arguments import plan_defaults, pretrain_defaults, train_defaults
from bdh.cli.evaluating import run_eval
from bdh.cli.lens import LENS
from bdh.cli.looking import inspect
from bdh.cli.probing import probe
from bdh.cli.speaking import chat, convert, doctor, generate
from bdh.cli.texts import prepare
from bdh.cli.training import plan, pretrain, run_bench, run_compare, train
from bdh.cli.tuning import finetune, sft
from bdh.parsing import Group, parse
from bdh.train import LostRankError, NonFiniteError

ALIASES = {"--mlp-mult": "--mlp-internal-dim-multiplier"}

_MISTAKEN = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}
"""What the system says of a path that was named wrongly."""

COMMANDS: dict[str, Callable[..., int] | Group] = {
    "train": train,
    "pretrain": pretrain,
    "finetune": finetune,
    "sft": sft,
    "generate": generate,
    "chat": chat,
    "inspect": inspect,
    "probe": probe,
    "lens": LENS,
    "eval": run_eval,
    "prepare": prepare,
    "plan": plan,
    "bench": run_bench,
    "compare": run_compare,
    "convert": convert,
    "doctor": doctor,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    warnings.showwarning = lambda message, *_: print(f"bdh: warning: {message}", file=sys.stderr)
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("bdh: stopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left: nothing to say
        code = 1
    except (Exception, MemoryError) as error:
        if os.environ.get("BDH_DEBUG"):
            raise
        known = isinstance(error, ValueError | OSError | NonFiniteError | LostRankError)
        kind = "" if known else f"{type(error).__name__}: "
        hint = "" if known else " (BDH_DEBUG=1 shows where)"
        print("bdh: " + kind + " ".join(str(error).split()) + hint, file=sys.stderr)
        code = 2 if isinstance(error, ValueError) or getattr(error, "errno", None) in _MISTAKEN else 1
    sys.exit(code)


def _run(argv: list[str]) -> int:
    argv = [ALIASES.get(flag, flag) + equals + value for flag, equals, value in (word.partition("=") for word in argv)]
    if argv == ["--version"]:
        print(f"bdh {__version__}")
        return 0
    makers: dict[str, Callable[[list[str]], object]] = {
        "train": train_defaults,
        "pretrain": pretrain_defaults,
        "plan": plan_defaults,
    }
    defaults = {argv[0]: {"args": makers[argv[0]](argv)}} if argv and argv[0] in makers else {}
    return parse(argv, COMMANDS, defaults)()
