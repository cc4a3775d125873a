"""`bdh` and `python -m bdh`: the command line, once the threads of its process are set up."""

from __future__ import annotations

import os

SPINS = "10000"


def main() -> None:
    """Run the command line and exit.

    A training step waits for its threads thousands of times. By default an OpenMP thread waits by spinning for
    milliseconds, which on a machine with other work keeps the thread that it waits for from running; one that sleeps at
    once takes half as long again on an idle machine. A short spin costs nothing on an idle machine and is the fastest
    on a busy one (docs/LOG.md). OpenMP reads the setting once, when torch is loaded.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS
    from bdh.cli import main as run

    run()


if __name__ == "__main__":
    main()
