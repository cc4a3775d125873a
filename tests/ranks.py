"""Several processes on this machine that run one function, each with its rank."""

import io
import os
import socket
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

# a server that has torch loaded and has computed nothing: its forks are there at once
CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["bdh.train", "bdh.checkpoint", "torch.distributed.fsdp"])


def on_ranks(size: int, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """Call a function of a module on each of `size` ranks, and return what each returned or raised, in their order.

    A rank that is gone without a word counts as None.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(size)]
    processes = [
        CONTEXT.Process(target=_run, args=(rank, size, port, pipe, function, args))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    found = []
    for receive, send in pipes:
        send.close()
        try:
            found.append(receive.recv() if receive.poll(timeout) else None)
        except EOFError:
            found.append(None)
        receive.close()
    for process in processes:
        process.join(1)
        process.kill()
    return found


def _run(
    rank: int, size: int, port: int, pipe: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    try:
        pipe.send(function(*args))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}" + ("" if str(error) else traceback.format_exc()))


def command(arguments: list[str]) -> tuple[object, str, str]:
    """Return exit code, stdout and stderr of the command on this rank."""
    from bdh.cli import main

    code: object = None
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()
