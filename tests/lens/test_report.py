"""The report is one file, cannot be broken out of, and runs in a browser; the terminal fits 100 columns."""

import base64
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from bdh import BDH, BDHConfig
from bdh.lens import Inspection, Panel, Table, inspect_text, page, print_inspection, write_report
from browsing import Page, browse, check_self_contained, framed

CONFIG = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2)
BASELINE = b"the quick ones ask; <b>no</b> iraq & co\n" * 8
HOSTILE = b'</script><script>alert(1)</script> {{data}} <!-- "quoted" & caf\xc3\xa9\n\xff\xe2\x80\xae'
COMMAND = 'bdh inspect --model "a</script><b>" --text x'


def inspection_of(text: bytes, **options: int) -> Inspection:
    torch.manual_seed(0)
    return inspect_text(BDH(CONFIG), text, BASELINE, min_fires=2, window=64, **options)  # type: ignore[arg-type]


@pytest.fixture
def html_of(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Write a report and read it back."""
    return lambda inspection, command=None: write_report(inspection, tmp_path / "page.html", command=command).read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("text", [b"To be or not to be", HOSTILE, b"a", b" ", bytes(range(256))])
def test_the_page_parses_and_asks_the_network_for_nothing(text: bytes, html_of) -> None:
    check_self_contained(html_of(inspection_of(text), COMMAND))


def test_inspected_text_cannot_break_out(html_of) -> None:
    inspection = inspection_of(HOSTILE)
    seen = Page(html_of(inspection, COMMAND))
    assert len(seen.scripts) == 2  # the data and the program, not the one in the text
    data = json.loads(seen.scripts[0])
    assert "".join(byte["shown"] for byte in data["bytes"]).startswith("</script><script>alert(1)</script>␣{{data}}")
    assert seen.scripts[1] == "".join(map(page.part, ("page.js", "raster.js", "report.js")))
    assert COMMAND in seen.words
    assert any("</script><script>alert(1)</script>" in words for words in seen.words)
    assert not any(
        tag == "b" and attributes for tag, attributes in seen.tags if tag == "b" and "class" not in attributes
    )


@pytest.mark.parametrize("text", [b"To be or not to be", HOSTILE, b"a"])
def test_mechanisms_are_a_section_of_the_page_and_keep_its_rules(text: bytes, html_of) -> None:
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=2, variant="advanced")
    inspection = inspect_text(BDH.from_seed(config, seed=0), text, BASELINE, min_fires=2, window=64)
    seen = check_self_contained(html_of(inspection, COMMAND))
    assert len(seen.scripts) == 2
    words = " ".join(seen.words)
    for title in ("Spikes", "Membranes", "Neuromodulation", "STDP window", "Firing", "Dale's law", "Degrees"):
        assert title in words
    assert "alone proves no criticality" in words
    assert sum(attributes.get("class") == "panel" for _, attributes in seen.tags) == 3 + 7


def test_the_tables_hold_the_figures_without_javascript(html_of) -> None:
    inspection = inspection_of(b"quick thinking")
    seen = Page(html_of(inspection))
    words = " ".join(" ".join(seen.words).split())
    for telling in inspection.telling:
        assert f"#{telling.firing.neuron}" in words
        assert f"{telling.firing.z:.1f}" in words
        for context in telling.contexts:
            assert " ".join(context.left.replace("␊", "↵").split()) in words
    for word in inspection.words:
        assert word.shown in words
    for key in ("x", "y", "xy"):
        for value in (*inspection.density[key], *inspection.density_init[key]):
            assert f"{value:.4g}" in words
    assert "random initialisation" in words
    assert f"{len(inspection.raster.rows)} strongest rows of {inspection.raster.n_pairs}" in words


def test_the_raster_of_the_page_has_every_neuron(html_of) -> None:
    text = b"quick thinking"
    inspection = inspection_of(text)
    sent = json.loads(Page(html_of(inspection)).scripts[0])["raster"]
    torch.manual_seed(0)
    x = BDH(CONFIG).get_sparse_activations(text)
    largest = max(level.to_dense().max().item() for level in x)
    assert sent["largest"] == pytest.approx(largest, rel=1e-5)
    for level, packed in enumerate(sent["levels"]):
        codes = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(CONFIG.n_neurons, len(text))
        exact = x[level].to_dense()[0].T.numpy()  # (N, T)
        assert ((codes > 0) == (exact > 0)).all()
        # a code is rounded up, by less than one shade
        shade = np.sqrt(exact / largest) * sent["steps"]
        assert (codes >= shade - 1e-3).all()
        assert (codes < shade + 1).all()
        assert not (codes[:, ::-1] == codes).all()


def test_panels_stand_before_and_after_and_neurons_of_their_tables_are_links(html_of, tmp_path: Path) -> None:
    more = Panel("more", "More <b>", "A note.", "chance", tables={"Found": Table(("neuron", "level"), ((12, 1),))})
    first = Panel("first", "First", "A note.", "chance", badge="reported by the paper")
    written = write_report(inspection_of(b"be"), tmp_path / "r.html", before=[first], after=[more])
    seen = check_self_contained(written.read_text(encoding="utf-8"))
    keys = [a["id"] for tag, a in seen.tags if tag == "section"]
    assert keys == ["first", "text", "raster", "telling", "words", "density", "more"]
    assert [a["href"] for tag, a in seen.tags if tag == "a"] == [f"#{key}" for key in keys]
    assert ("button", {"class": "chip", "data-neuron": "12", "data-level": "1"}) in seen.tags
    assert "More <b>" in seen.words
    with pytest.raises(ValueError, match="key of its own for each, got more more than once"):
        write_report(inspection_of(b"be"), tmp_path / "r.html", after=[more, more])


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, inspection = tmp_path / "report.html", inspection_of(b"be")
    assert write_report(inspection, path) == path
    before = path.read_bytes()
    monkeypatch.setattr(page, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"at most 1,000 bytes, got .* shorter text"):
        write_report(inspection_of(b"other"), path)
    assert path.read_bytes() == before
    monkeypatch.undo()

    def fail(*_: object) -> None:
        raise OSError("full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="full"):
        write_report(inspection, path)
    assert os.listdir(tmp_path) == ["report.html"]
    with pytest.raises(ValueError, match="does not exist"):
        write_report(inspection, tmp_path / "none" / "report.html")


def test_a_long_text_stays_within_the_limit_and_says_what_is_left_out(html_of) -> None:
    inspection = inspection_of(bytes(range(32, 127)) * 12, top=2, telling=4)
    html = html_of(inspection)
    assert len(html.encode()) < page.MAX_BYTES
    assert "1,780 more rows of 2,280 are in the files" in html
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


ACT = """
addEventListener("load", () => setTimeout(() => {
  const event = (name) => new KeyboardEvent("keydown", { key: name, cancelable: true, bubbles: true });
  const key = (name) => canvas.dispatchEvent(event(name));
  const tell = (name, ...what) => { document.documentElement.dataset[name] = what.join(); };
  const requests = performance.getEntriesByType("resource").length;
  tell("address", state.byte, state.level, state.neuron, state.pinned);
  Object.assign(state, { byte: 0, level: 0, neuron: 0, pinned: false });
  for (const name of ["ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft", "]", "Enter"]) key(name);
  tell("keys", state.byte, state.level, state.neuron, state.mode, state.pinned);
  paint();
  tell("hash", location.hash);
  key("?");
  tell("help", help.open, $$("dt", help).length > 6);
  help.close();
  key("+");
  tell("zoom", view.rows < raster.rows);
  key("0");
  $("#words button[data-neuron]").click();
  tell("click", state.byte, state.level, state.neuron);
  strip[4].click();
  strip[4].dispatchEvent(event("ArrowRight"));
  tell("strip", state.byte, strip.indexOf(document.activeElement));
  // a tile that covers all: one cell of it for all rows and bytes of 256
  const top = tile(0, 8, 8, 0, 0)[0];
  tell("top", top === cells[0].subarray(0, 256 * raster.columns).reduce((a, b) => Math.max(a, b), 0));
  for (const order of Object.keys(orders)) {
    arrange(order);
    tell(order, places.every((rows) => new Set(rows).size === raster.rows));
  }
  arrange("first");
  const first = [...places[0]].map((row) => bytes.findIndex((_, at) => code(0, row, at) > 0)).filter((at) => at >= 0);
  tell("staircase", first.every((at, n) => !n || first[n - 1] <= at), new Set(first).size > 1);
  tell("requests", requests);
  tell("wide", document.documentElement.scrollWidth <= innerWidth);
  tell("copies", $$(".tools button").length);
  const whole = document.documentElement;
  parent.postMessage([innerWidth, whole.scrollWidth <= whole.clientWidth].join(), "*");
}, 300));
"""


def acting(monkeypatch: pytest.MonkeyPatch, change=lambda source: source + ACT) -> None:  # type: ignore[no-untyped-def]
    """Let the program of the page do more when it has run."""
    part = page.part
    monkeypatch.setattr(page, "part", lambda name: change(part(name)) if name == "report.js" else part(name))


@pytest.mark.browser
@pytest.mark.parametrize("text", [b"To be or not to be", HOSTILE, b"a"])
def test_the_page_runs_in_a_browser(text: bytes, tmp_path: Path) -> None:
    dom = browse(write_report(inspection_of(text), tmp_path / "r.html", command=COMMAND), tmp_path / "profile")
    assert 'data-report="ready"' in dom
    assert "data-error" not in dom
    assert dom.count('aria-pressed="true"') == 2  # one byte, one colour


@pytest.mark.browser
def test_keyboard_pointer_address_and_tables_share_one_selection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting(monkeypatch)
    inspection = inspection_of(b"quick thinking")
    written = write_report(inspection, tmp_path / "r.html", command=COMMAND)
    dark = "--blink-settings=preferredColorScheme=0"
    dom = browse(written, tmp_path / "profile", dark, address="#byte=3&level=1&neuron=9")
    found = inspection.words[0].strongest[0]
    for told in (
        'address="3,1,9,true"',
        'keys="1,1,1,neuron,true"',
        'hash="#byte=1&amp;level=1&amp;neuron=1"',
        'help="true,true"',
        'zoom="true"',
        f'click="{found.position},{found.level},{found.neuron}"',
        'strip="5,5"',
        'top="true"',
        *(f'{order}="true"' for order in ("index", "timescale", "first", "mean")),
        'staircase="true,true"',
        'requests="0"',
        'wide="true"',
        'copies="10"',
    ):
        assert f"data-{told}" in dom
    assert "data-error" not in dom


@pytest.mark.browser
def test_a_narrow_window_scrolls_no_page_sideways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acting(monkeypatch)
    written = write_report(inspection_of(b"quick thinking"), tmp_path / "r.html", command=COMMAND)
    assert 'data-said="420,true"' in browse(framed(written, 420), tmp_path / "profile")


@pytest.mark.browser
def test_an_error_in_the_script_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acting(monkeypatch, lambda source: source.replace("bound, drawStrip", "nothing()"))
    dom = browse(write_report(inspection_of(b"be"), tmp_path / "r.html"), tmp_path / "profile")
    assert "nothing is not defined" in dom
    assert 'data-report="ready"' not in dom
