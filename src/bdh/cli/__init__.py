"""The command line: one subcommand is one typed function; no tensor code.

Exit codes: 0 done, 1 the work failed, 2 the user's mistake (one line on stderr), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Sequence

from bdh import __version__
from bdh.cli.commands import COMMANDS
from bdh.parsing import parse

ALIASES = {"--mlp-mult": "--mlp-internal-dim-multiplier"}

_MISTAKEN = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}
"""What the system says of a path that was named wrongly."""


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
    except Exception as error:
        if os.environ.get("BDH_DEBUG"):
            raise
        known = isinstance(error, ValueError | OSError) or _ends_training(error)
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
    return parse(argv, COMMANDS)()


def _ends_training(error: BaseException) -> bool:
    """Whether it is what a training says when it cannot go on."""
    train = sys.modules.get("bdh.train")  # who trains has it; loading it for any other error takes a second
    return train is not None and isinstance(error, train.NonFiniteError | train.LostRankError)
