"""Data sets of the hub, from a server on 127.0.0.1 that answers as the hub does."""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdh.data import hub, prepare, shards
from bdh.data.download import CorpusError
from bdh.data.prepare import Settings


class Server:
    """Files by path; what was asked for is in `asked`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.break_after: int | None = None
        self.etag = '"one"'
        self.url = ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    told = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            part = self.headers.get("Range")
            told.asked.append((self.path, part))
            content = told.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(part[6:-1]) if part and self.headers.get("If-Range") == told.etag else 0
            if start > len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("ETag", told.etag)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(content[start : None if told.break_after is None else start + told.break_after])

        def log_message(self, format: str, *args: object) -> None:
            pass

    http_server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    told.url = f"http://127.0.0.1:{http_server.server_port}"
    monkeypatch.setenv("BDH_HUB", told.url)
    monkeypatch.setenv("BDH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("BDH_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    try:
        yield told
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join()


DOLLY_FILE = "/datasets/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"
DOLLY = "".join(
    json.dumps({"instruction": f"Say {n}.", "context": "", "response": f"{n}!", "category": "qa"}) + "\n"
    for n in range(2000)
).encode()


def parquet(texts: list[str]) -> bytes:
    pyarrow, table = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

    buffer = pyarrow.BufferOutputStream()
    table.write_table(pyarrow.table({"text": texts}), buffer)
    content: bytes = buffer.getvalue().to_pybytes()
    return content


def test_a_data_set_is_fetched_once(server: Server, tmp_path: Path) -> None:
    server.files[DOLLY_FILE] = DOLLY
    told: list[tuple[str, int, int | None]] = []
    prepare.prepare("dolly", told=lambda *words: told.append(words))
    assert ("fetching databricks-dolly-15k.jsonl", len(DOLLY), len(DOLLY)) in told
    prepare.prepare("dolly", Settings(rebuild_data=True, template="short"))
    assert server.asked == [(DOLLY_FILE, None)]
    kept = tmp_path / "cache/hub/databricks/databricks-dolly-15k/resolve/main"
    assert [file.name for file in kept.iterdir()] == ["databricks-dolly-15k.jsonl"]


@pytest.mark.parametrize("changed", [False, True])
def test_a_broken_download_goes_on_unless_the_file_has_changed(server: Server, tmp_path: Path, changed: bool) -> None:
    server.files[DOLLY_FILE], server.break_after = DOLLY, 5000
    with pytest.raises(
        CorpusError, match=r"databricks-dolly-15k\.jsonl.*5,000 .*bytes.*; try again to go on, or fetch it"
    ) as error:
        prepare.prepare("dolly")
    assert str(tmp_path / "cache/hub/databricks/databricks-dolly-15k/resolve/main") in str(error.value)
    server.break_after = None
    if changed:
        server.etag, server.files[DOLLY_FILE] = '"two"', DOLLY.replace(b"Say", b"Cry")
    out = prepare.prepare("dolly", Settings(validation_share=0.1))
    assert server.asked[-1] == (DOLLY_FILE, "bytes=5000-")
    words = [whole.tobytes() for whole, _ in shards.read_documents(out, "train")]
    assert all((b"Cry " if changed else b"Say ") in word for word in words)
    assert len(words) > 1700


def test_the_hub_is_asked_for_the_files_of_other_data_sets(server: Server) -> None:
    base = "/api/datasets/noanabeshima/TinyStoriesV2/parquet"
    listing = {
        "default": {
            "train": [f"{server.url}{base}/default/train/{n}.parquet" for n in range(2)],
            "validation": [f"{server.url}{base}/default/validation/0.parquet"],
            "test": [f"{server.url}{base}/default/test/0.parquet"],
        }
    }
    server.files[base] = json.dumps(listing).encode()
    for n in range(2):
        server.files[f"{base}/default/train/{n}.parquet"] = parquet([f"Story {n}-{k}." for k in range(300)])
    server.files[f"{base}/default/validation/0.parquet"] = parquet(["An end."])
    out = prepare.prepare("tinystories")
    train = [whole.tobytes().decode() for whole, _ in shards.read_documents(out, "train")]
    assert train == [f"Story {n}-{k}." for n in range(2) for k in range(300)]
    assert [whole.tobytes() for whole, _ in shards.read_documents(out, "validation")] == [b"An end."]
    assert not any("test" in path for path, _ in server.asked)
    assert len(server.asked) == 4
    again = prepare.prepare("noanabeshima/TinyStoriesV2", Settings(max_documents=20, validation_share=0.4))
    assert again == Path("data/TinyStoriesV2")
    assert len(server.asked) == 4


def test_parts_of_a_data_set_are_chosen_by_name(server: Server) -> None:
    base = "/api/datasets/some/body/parquet"
    urls = {part: f"{server.url}/{part}.parquet" for part in ("small", "large")}
    server.files[base] = json.dumps({part: {"train": [url]} for part, url in urls.items()}).encode()
    server.files["/small.parquet"] = parquet([f"{k}" for k in range(300)])
    with pytest.raises(CorpusError, match="some/body: several parts; choose with --config one of large, small"):
        prepare.prepare("some/body")
    with pytest.raises(CorpusError, match="some/body: no part 'tiny'; choose with --config one of large, small"):
        prepare.prepare("some/body", Settings(config="tiny"))
    assert prepare.prepare("some/body", Settings(config="small", validation_share=0.1)) == Path("data/body")


def test_failures_say_what_to_fetch_and_where_to_put_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/api/datasets/bad/listing/parquet"] = b"<html>"
    server.files["/api/datasets/bad/names/parquet"] = json.dumps({"../..": {"train": ["http://x/y"]}}).encode()
    for name, message in {
        "dolly": "cannot fetch .*: HTTP status 404; fetch it by hand and put it at .*cache.hub.databricks",
        "no/body": "cannot read .*: HTTP status 404; check the name, or fetch .*/datasets/no/body into DIR",
        "bad/listing": "no listing of parquet files; try again later",
        "bad/names": "expected plain names",
    }.items():
        with pytest.raises(CorpusError, match=message) as error:
            prepare.prepare(name)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("BDH_HUB", "http://127.0.0.1:9")
    for name in ("dolly", "no/body"):
        with pytest.raises(CorpusError, match=r"refused; (check the network|try again to go on), or fetch"):
            prepare.prepare(name)
    with pytest.raises(
        CorpusError, match=r"no/body: expected \.txt, .* files in nowhere.no.body.resolve.main, found none"
    ):
        prepare.prepare("no/body", Settings(mirror=Path("nowhere")))


def test_a_file_put_there_by_hand_is_taken(server: Server, tmp_path: Path) -> None:
    kept = tmp_path / "cache/hub/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(DOLLY)
    prepare.prepare("dolly")
    assert server.asked == []
    assert hub.fetch(hub.Remote("x", None, kept)) == kept
