"""The report is one file, cannot be broken out of, and runs in a browser; the terminal fits 100 columns."""

import io
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bdh import BDH, BDHConfig
from bdh.lens import Inspection, inspect_text, print_inspection, report, write_report

CONFIG = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2)
BASELINE = b"the quick ones ask; <b>no</b> iraq & co\n" * 8
HOSTILE = b'</script><script>alert(1)</script> {{data}} <!-- "quoted" & caf\xc3\xa9\n\xff\xe2\x80\xae'
COMMAND = 'bdh inspect --model "a</script><b>" --text x'
VOID = {"meta", "br", "hr", "link", "img", "input"}


def inspection_of(text: bytes, **options: int) -> Inspection:
    torch.manual_seed(0)
    return inspect_text(BDH(CONFIG), text, BASELINE, min_fires=2, window=64, **options)  # type: ignore[arg-type]


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


@pytest.mark.parametrize("text", [b"To be or not to be", HOSTILE, b"a", b" ", bytes(range(256))])
def test_the_page_parses_and_asks_the_network_for_nothing(text: bytes) -> None:
    html = report.render(inspection_of(text), COMMAND)
    page = Page(html)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"// .*", "", html))
    for tag, attributes in page.tags:
        assert not {"src", "href", "style", "onclick", "onerror"} & attributes.keys()
        assert tag not in {"link", "iframe", "img", "object", "base"}
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_inspected_text_cannot_break_out() -> None:
    inspection = inspection_of(HOSTILE)
    page = Page(report.render(inspection, COMMAND))
    assert len(page.scripts) == 2  # the data and the program, not the one in the text
    data = json.loads(page.scripts[0])
    assert "".join(byte["shown"] for byte in data["bytes"]).startswith("</script><script>alert(1)</script>␣{{data}}")
    assert data["command"] == COMMAND
    assert page.scripts[1] == report._part("report.js")
    assert any("</script><script>alert(1)</script>" in words for words in page.words)
    assert not any(
        tag == "b" and attributes for tag, attributes in page.tags if tag == "b" and "class" not in attributes
    )


@pytest.mark.parametrize("text", [b"To be or not to be", HOSTILE, b"a"])
def test_mechanisms_are_a_section_of_the_page_and_keep_its_rules(text: bytes) -> None:
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2, variant="advanced")
    inspection = inspect_text(BDH.from_seed(config, seed=0), text, BASELINE, min_fires=2, window=64)
    html = report.render(inspection, COMMAND)
    page = Page(html)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"// .*", "", html))
    assert not any({"style", "src", "href"} & attributes.keys() for _, attributes in page.tags)
    assert len(page.scripts) == 2
    words = " ".join(page.words)
    for title in ("Spikes", "Membranes", "Neuromodulation", "STDP window", "Firing", "Dale's law", "Degrees"):
        assert title in words
    assert "alone proves no criticality" in words
    assert sum(attributes.get("class") == "panel" for _, attributes in page.tags) == 7


def test_the_policy_allows_exactly_the_program_and_the_style_of_the_page() -> None:
    html = report.render(inspection_of(b"be"))
    assert f"script-src '{report._hash(report._part('report.js'))}'" in html
    assert f"style-src '{report._hash(report._part('report.css') + report._part('panels.css'))}'" in html
    assert report._hash("a") != report._hash("b")


def test_the_tables_hold_the_figures_without_javascript() -> None:
    inspection = inspection_of(b"quick thinking")
    page = Page(report.render(inspection))
    words = " ".join(" ".join(page.words).split())
    for telling in inspection.telling:
        assert f"#{telling.firing.neuron}" in words
        assert f"{telling.firing.z:.1f}" in words
        for context in telling.contexts:
            assert " ".join(context.left.replace("␊", "↵").split()) in words
    for word in inspection.words:
        assert word.shown in words
    for key in ("x", "y", "xy"):
        for value in (*inspection.density[key], *inspection.density_init[key]):
            assert f"{value:.2%}" in words
    assert "random initialisation" in words
    assert f"{len(inspection.raster.rows)} of {inspection.raster.n_pairs}" in words


def test_the_data_of_the_page_are_those_of_the_inspection() -> None:
    inspection = inspection_of(b"quick thinking")
    data = json.loads(Page(report.render(inspection)).scripts[0])
    assert [tuple(row) for row in data["raster"]["rows"]] == list(inspection.raster.rows)
    for row, values in zip(data["raster"]["values"], inspection.raster.values, strict=True):
        assert row == pytest.approx(values, rel=1e-4)


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, inspection = tmp_path / "report.html", inspection_of(b"be")
    assert write_report(inspection, path) == path
    assert path.read_text(encoding="utf-8") == report.render(inspection)
    monkeypatch.setattr(report, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"at most 1,000 bytes, got .* shorter text"):
        write_report(inspection_of(b"other"), path)
    assert path.read_text(encoding="utf-8") == report.render(inspection)
    monkeypatch.undo()

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="full"):
        write_report(inspection, path)
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(ValueError, match="does not exist"):
        write_report(inspection, tmp_path / "none" / "report.html")


def test_a_long_text_stays_within_the_limit_and_says_what_is_left_out() -> None:
    inspection = inspection_of(bytes(range(32, 127)) * 12, top=2, telling=4)
    html = report.render(inspection)
    assert len(html.encode()) < report.MAX_BYTES
    assert len(inspection.raster.rows) <= 240


@pytest.mark.parametrize("text", [b"To be or not to be", HOSTILE, b"a", b"one [bold]markup[/bold] " * 8])
def test_the_terminal_output_fits_and_reads_without_colour(text: bytes) -> None:
    inspection = inspection_of(text)
    out = io.StringIO()
    print_inspection(inspection, Console(file=out, width=100, no_color=True))
    printed = out.getvalue()
    assert "\x1b" not in printed
    assert all(len(line.rstrip()) <= 100 for line in printed.splitlines())
    assert "random init" in printed
    for telling in inspection.telling:
        assert f"(#{telling.firing.neuron})" in printed
        assert telling.contexts == () or f"[{telling.contexts[0].shown}]" in printed
    if b"markup" in text:
        assert "[bold]markup[/bold]" in printed


def browse(page: Path, profile: Path) -> str:
    """The page after its script ran, as Chromium sees it."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command = [
        browser,
        *options,
        f"--user-data-dir={profile}",
        "--virtual-time-budget=4000",
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, encoding="utf-8").stdout


@pytest.mark.browser
@pytest.mark.parametrize("text", [b"To be or not to be", HOSTILE, b"a"])
def test_the_page_runs_in_a_browser(text: bytes, tmp_path: Path) -> None:
    dom = browse(write_report(inspection_of(text), tmp_path / "r.html", command=COMMAND), tmp_path / "profile")
    assert 'data-report="ready"' in dom
    assert "data-error" not in dom
    assert dom.count('aria-pressed="true"') == 2  # one byte, one colour


@pytest.mark.browser
def test_keyboard_pointer_and_tables_share_one_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = report._part
    act = """
      const key = (name) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: name, cancelable: true }));
      Object.assign(state, { byte: 0, row: 0 });
      key("ArrowRight"); key("ArrowRight"); key("ArrowDown"); key("ArrowLeft"); key("ArrowUp"); key("Enter");
      document.documentElement.dataset.keys = [state.byte, state.row, state.mode, state.pinned].join();
      document.querySelector("#words button").click();
      document.documentElement.dataset.click = [state.byte, ...raster.rows[state.row]].join();
      cells[4].click();
      cells[4].dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true, cancelable: true }));
      document.documentElement.dataset.strip = [state.byte, cells.indexOf(document.activeElement)].join();
    """
    monkeypatch.setattr(report, "_part", lambda name: part(name) + (act if name == "report.js" else ""))
    inspection = inspection_of(b"quick thinking")
    dom = browse(write_report(inspection, tmp_path / "r.html"), tmp_path / "profile")
    first = inspection.words[0].strongest[0]
    assert 'data-keys="1,0,neuron,true"' in dom
    assert f'data-click="{first.position},{first.level},{first.neuron}"' in dom
    assert 'data-strip="5,5"' in dom
    assert "data-error" not in dom


@pytest.mark.browser
def test_an_error_in_the_script_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = report._part
    monkeypatch.setattr(report, "_part", lambda name: part(name).replace("ramp();\ndraw();", "nothing();"))
    dom = browse(write_report(inspection_of(b"be"), tmp_path / "r.html"), tmp_path / "profile")
    assert "nothing is not defined" in dom
    assert 'data-report="ready"' not in dom
