"""Downloads that fail in every way, and the cache; the only server is on 127.0.0.1."""

import contextlib
import dataclasses
import hashlib
import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bdh.data import CorpusError, corpora, download, load_corpus

TINY = bytes(range(256)) * 400
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def answer(status: int = 200, content: bytes = TINY, length: int | None = None) -> Answer:
    """An answer with this status and body; `length` is what the header claims."""

    def send(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content) if length is None else length))
        request.end_headers()
        request.wfile.write(content)

    return send


def digest(content: bytes) -> str:
    """Hash bytes."""
    return hashlib.sha256(content).hexdigest()


def one_line(error: pytest.ExceptionInfo[CorpusError]) -> str:
    """The message of an error, which must be one line."""
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BDH_CACHE", str(tmp_path / "cache"))


@contextlib.contextmanager
def serve(send: Answer) -> Iterator[str]:
    """A server on 127.0.0.1 that gives every request the same answer; yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a client that has had enough closes the connection
            with contextlib.suppress(OSError):
                send(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/input.txt"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Point tiny-shakespeare at a URL, with the hash of our own bytes."""
    monkeypatch.setenv("no_proxy", "*")

    def point(url: str) -> None:
        source = dataclasses.replace(corpora.TINY_SHAKESPEARE, location=url, sha256=digest(TINY), size=len(TINY))
        monkeypatch.setattr(corpora, "TINY_SHAKESPEARE", source)

    return point


def test_tiny_shakespeare_is_the_published_file() -> None:
    source = corpora.TINY_SHAKESPEARE
    assert source.size == 1_115_394
    assert source.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert source.location.startswith("https://")


def test_tiny_shakespeare_is_downloaded_once(tiny: Callable[[str], None], tmp_path: Path) -> None:
    messages: list[str] = []
    with serve(answer()) as url:
        tiny(url)
        corpus = load_corpus("tiny-shakespeare", cache_dir=tmp_path / "mine", progress=messages.append)
    assert messages[-1] == "downloaded 102,400 of 102,400 bytes"
    n = int(0.9 * len(TINY))
    assert corpus.train.tobytes() == TINY[:n]
    assert corpus.validation.tobytes() == TINY[n:]
    assert corpus.info["source_sha256"] == digest(TINY)
    assert corpus.info["split"] == {"by": "position", "train": [0, n], "validation": [n, len(TINY)]}
    # the server is gone
    again = load_corpus("tiny-shakespeare", cache_dir=tmp_path / "mine")
    assert again.info == corpus.info
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["tiny-shakespeare-1"]


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (answer(404, b"not found"), "HTTP status 404; try again later"),
        (answer(503, b""), "HTTP status 503; try again later"),
        (answer(content=TINY[:5000], length=len(TINY)), "expected 102,400 bytes, got 5,000"),
        (answer(content=TINY[:5000]), "expected 102,400 bytes, got 5,000"),
        (answer(content=TINY * 20), "expected 102,400 bytes, got more than 102,400"),
        (answer(content=TINY[::-1]), f"expected sha256 {digest(TINY)}, got "),
        (lambda request: request.wfile.write(b"no HTTP\r\n\r\n"), "cannot download "),
        (lambda request: None, "cannot download "),
    ],
    ids=["404", "503", "truncated", "short", "long", "wrong hash", "no HTTP", "closed"],
)
def test_failed_download_is_one_line_and_leaves_nothing(
    send: Answer, message: str, tiny: Callable[[str], None], tmp_path: Path
) -> None:
    with serve(send) as url:
        tiny(url)
        with pytest.raises(CorpusError) as error:
            load_corpus("tiny-shakespeare")
    assert message in one_line(error)
    assert one_line(error).endswith("or give a text of your own with --data FILE")
    assert not list(tmp_path.rglob("*"))


def test_unreachable_server_is_one_line(tiny: Callable[[str], None]) -> None:
    with serve(answer()) as url:
        pass
    tiny(url)
    with pytest.raises(CorpusError, match="check the network, or give a text of your own") as error:
        load_corpus("tiny-shakespeare")
    assert one_line(error).startswith(f"cannot download {url}: ")


def test_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    done = threading.Event()
    with serve(lambda request: done.wait(10) and None) as url:
        with pytest.raises(CorpusError, match="timed out; check the network"):
            download.fetch_url(url, size=10, timeout=0.1)
        done.set()


def test_dripping_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")

    def drip(request: http.server.BaseHTTPRequestHandler) -> None:
        answer(content=b"", length=1000)(request)
        for _ in range(1000):
            request.wfile.write(b"x")
            time.sleep(0.01)

    with serve(drip) as url, pytest.raises(CorpusError, match=r"not complete after 0\.5 s; check the network"):
        download.fetch_url(url, size=1000, timeout=0.05)


def make_splits(text: bytes = b"to be or not to be") -> download.Splits:
    """Splits as a build gives them."""
    return corpora._cut(text, {"source": "test"})


def test_damaged_cache_is_built_again(tmp_path: Path) -> None:
    kept = tmp_path / "corpus-1"
    splits = make_splits()
    assert download.cached(kept, make_splits) == splits
    for damage in (
        lambda: (kept / "train.bin").write_bytes(b"to bE or not to "),
        lambda: (kept / "validation.bin").unlink(),
        lambda: (kept / "info.json").write_text("{"),
        lambda: (kept / "info.json").write_text("[]"),
    ):
        damage()
        messages: list[str] = []
        assert download.cached(kept, make_splits, progress=messages.append) == splits
        assert messages == [f"{kept} is damaged and will be built again"]
        assert download.cached(kept, lambda: pytest.fail("built although it was there")) == splits
    assert list(tmp_path.iterdir()) == [kept]


def test_damaged_cache_stays_when_it_cannot_be_built_again(tmp_path: Path) -> None:
    kept = tmp_path / "corpus-1"
    download.cached(kept, make_splits)
    (kept / "train.bin").write_bytes(b"")

    def fail() -> download.Splits:
        raise CorpusError("no network")

    with pytest.raises(CorpusError, match="no network"):
        download.cached(kept, fail)
    assert list(tmp_path.iterdir()) == [kept]


def test_build_that_another_process_overtakes_uses_its_files(tmp_path: Path) -> None:
    kept = tmp_path / "corpus-1"

    def build() -> download.Splits:
        download.cached(kept, lambda: make_splits(b"theirs, which came first"))
        return make_splits(b"ours, which came second")

    assert download.cached(kept, build) == make_splits(b"theirs, which came first")
    assert list(tmp_path.iterdir()) == [kept]


def test_two_processes_fill_the_same_cache(tmp_path: Path) -> None:
    # the module alone, without torch, so that both are at it in the same moment
    program = """
import importlib.util, json, pathlib, sys, time
spec = importlib.util.spec_from_file_location("download", sys.argv[1])
download = importlib.util.module_from_spec(spec)
spec.loader.exec_module(download)
start, train = pathlib.Path(sys.argv[2]), b"x" * 100_000
info = {s: {"bytes": len(train), "sha256": download.sha256(train)} for s in ("train", "validation")}
for i in range(30):
    while not (start / str(i)).exists():
        time.sleep(0.0005)
    assert download.cached(start / f"corpus-{i}", lambda: (train, train, info)) == (train, train, info)
"""
    command = [sys.executable, "-c", program, str(download.__file__), str(tmp_path)]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for i in range(30):
        (tmp_path / str(i)).touch()
        time.sleep(0.01)
    errors = [process.communicate(timeout=30)[1] for process in processes]
    assert errors == ["", ""]
    assert not list(tmp_path.glob(".*"))


def test_interrupted_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.os, "fsync", fail)
    with pytest.raises(
        CorpusError, match=r"cannot write the cache .*: No space left on device; set BDH_CACHE"
    ) as error:
        download.cached(tmp_path / "corpus-1", make_splits)
    one_line(error)
    assert not list(tmp_path.iterdir())


def test_cache_in_the_way_of_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CorpusError, match=r"cannot write the cache .*; set BDH_CACHE to a directory") as error:
        download.cached(tmp_path / "file" / "corpus-1", make_splits)
    one_line(error)
