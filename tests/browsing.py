"""Read a page as a parser does, and as a browser does."""

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "br", "hr", "link", "img", "input"}


class Page(HTMLParser):
    """Checks that tags balance, and collects them with their attributes and the text of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)


def check_self_contained(html: str) -> Page:
    """Assert that a page asks the network for nothing, holds no code in attributes, and has a strict policy."""
    page = Page(html)
    data = page.scripts[0]  # base64 there may spell anything; the policy lets nothing of it be fetched
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"// .*", "", html.replace(data, "")))
    for tag, attributes in page.tags:
        assert not {"src", "style", "onclick", "onerror"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
        assert tag not in {"link", "iframe", "img", "object", "base"}
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    return page


def browse(page: Path, profile: Path, *options: str, address: str = "") -> str:
    """The page after its script ran, as Chromium sees it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    still = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command = [
        browser,
        *still,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=4000",
        *options,
        "--dump-dom",
        page.as_uri() + address,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8").stdout


def framed(page: Path, width: int) -> Path:
    """A page that shows another in a frame so wide: windows of Chromium are never narrower than 500 pixels.

    What the inner page posts to its parent becomes the attribute data-said.
    """
    outer = page.with_name(f"framed-{width}.html")
    outer.write_text(
        f'<!doctype html><iframe src="{escape(page.name)}" width="{width}" height="900"></iframe><script>'
        "onmessage = (event) => { document.documentElement.dataset.said = event.data; };</script>"
    )
    return outer
