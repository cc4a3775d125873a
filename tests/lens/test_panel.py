"""Panels and tables are the same finding in a page, a notebook and files."""

import csv
import re
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdh.lens import Panel, Table, page, write_page
from bdh.lens.svg import Plot, Scale, picture
from browsing import Page, browse, check_self_contained

HOSTILE = '</script><b onclick="x">{{data}} & "quoted"'
cells = st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text())


def panel(key: str = "rates", **more: object) -> Panel:
    drawn = picture(120, 60, "a line", [Plot(Scale(0, 1, 10, 110), Scale(0, 1, 50, 10)).line((0, 1), (0, 1))])
    values = {
        "title": "Rates " + HOSTILE,
        "note": HOSTILE,
        "baseline": "chance, 0.5 " + HOSTILE,
        "pictures": (drawn, drawn),
        "tables": {"Rates " + HOSTILE: Table(("neuron", "level", "rate", HOSTILE), ((12, 1, 0.25, HOSTILE),))},
        "python": 'bdh.load("run")  # ' + HOSTILE,
        "command": "bdh lens report",
    }
    return Panel(key=key, **(values | more))  # type: ignore[arg-type]


def test_a_panel_says_what_it_is_compared_with() -> None:
    with pytest.raises(AssertionError, match="nothing to compare with"):
        panel(baseline="")


def test_the_page_holds_every_panel_and_nothing_breaks_out(tmp_path: Path) -> None:
    panels = [panel(), panel("other", badge="reported by the paper", pictures=(), command="")]
    written = write_page(panels, tmp_path / "page.html", title="All", facts={"Model": HOSTILE}, command="bdh <x>")
    seen = check_self_contained(written.read_text(encoding="utf-8"))
    assert [a["id"] for tag, a in seen.tags if tag == "section"] == ["rates", "other"]
    assert [a["href"] for tag, a in seen.tags if tag == "a"] == ["#rates", "#other"]
    assert [words for words in seen.words if words in ("measured", "reported by the paper")] == [
        "measured",
        "reported by the paper",
    ]
    assert sum(a.get("class") == "panel" for _, a in seen.tags) == 2
    assert [a["data-copy"] for tag, a in seen.tags if tag == "code" and "data-copy" in a] == [
        "Python", "command", "Python",
    ]  # fmt: skip
    assert ("button", {"class": "chip", "data-neuron": "12", "data-level": "1"}) in seen.tags
    assert len(seen.scripts) == 2
    assert not any("onclick" in a for _, a in seen.tags)
    assert HOSTILE in seen.words
    assert "bdh <x>" in seen.words


def test_the_policy_allows_exactly_the_program_and_the_style_of_the_page() -> None:
    html = page.render([panel()], title="All")
    assert f"script-src '{page._hash(page.part('page.js'))}'" in html
    assert f"style-src '{page._hash(page.part('page.css') + page.part('panels.css'))}'" in html
    assert page._hash("a") != page._hash("b")


def test_a_page_too_large_is_refused_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"at most 1,000 bytes, got .* fewer panels"):
        write_page([panel()], tmp_path / "page.html", title="All")
    assert not any(tmp_path.iterdir())


def test_a_notebook_shows_a_panel_in_a_frame_that_reaches_nothing() -> None:
    frame = panel()._repr_html_()
    inside = re.fullmatch(r'<iframe sandbox="allow-scripts" [^>]* srcdoc="([^"]*)"></iframe>', frame)
    assert inside is not None
    check_self_contained(unescape(inside[1]))
    assert unescape(inside[1]) == page.render([panel()], title=panel().title)
    # where a view needs the scripts of a report, the pictures stand for it
    assert "<canvas" not in panel(view="<canvas></canvas>")._repr_html_()
    assert "<canvas" in panel(view="<canvas></canvas>").html()


def test_every_picture_and_table_becomes_files(tmp_path: Path) -> None:
    import pyarrow.parquet

    written = panel().save(tmp_path / "new" / "files")
    names = ["rates-1.csv", "rates-1.parquet", "rates-1.png", "rates-1.svg", "rates-2.png", "rates-2.svg"]
    assert sorted(path.name for path in written) == names
    assert sorted(path.name for path in (tmp_path / "new" / "files").iterdir()) == names
    table = pyarrow.parquet.read_table(tmp_path / "new" / "files" / "rates-1.parquet")
    assert table.to_pylist() == [{"neuron": 12, "level": 1, "rate": 0.25, HOSTILE: HOSTILE}]
    assert [path.name for path in panel().save(tmp_path, pictures=(), tables=(".csv",))] == ["rates-1.csv"]
    with pytest.raises(ValueError, match=r"ends in \.csv or \.parquet"):
        panel().save(tmp_path, tables=(".xlsx",))


@given(st.lists(st.tuples(cells, cells), max_size=5))
def test_a_table_keeps_its_cells(rows: list[tuple[object, object]]) -> None:
    table = Table(("a", "b"), tuple(rows))  # type: ignore[arg-type]
    words = Page(f"<table>{table.html()}</table>").words
    for row in rows:
        for cell in row:
            if isinstance(cell, str) and cell.strip() and "␊" not in cell and "\r" not in cell and "\0" not in cell:
                assert cell in words
            if type(cell) is int:
                assert f"{cell:,}" in words


def test_the_first_table_is_open_where_there_is_no_picture() -> None:
    two = {"One": Table(("n",), ((1,),)), "Two": Table(("n",), ((2,),))}
    assert panel(tables=two, pictures=()).html().count("<details open>") == 1
    assert "<details open>" not in panel(tables=two).html()
    assert "<details open>" not in panel(tables=two, pictures=(), view="<p>x</p>").html()


def test_csv_is_read_back(tmp_path: Path) -> None:
    table = Table(("a", "b"), ((1, "x,\n\"y'"), (None, 0.1)))
    with table.save(tmp_path / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", "x,\n\"y'"], ["", "0.1"]]


def test_a_long_table_says_what_is_left_out() -> None:
    table = Table(("n",), tuple((n,) for n in range(1200)))
    html = table.html(limit=1000)
    assert html.count("<tr>") == 1001
    assert "200 more rows of 1,200 are in the files" in html
    assert "more rows" not in table.html(limit=1200)


ACT = """
addEventListener("load", () => setTimeout(async () => {
  const tell = (name, what) => { document.documentElement.dataset[name] = String(what); };
  tell("buttons", $$(".tools button").map((button) => button.textContent));
  await copy($(".tools button"), $("code[data-copy]"), "copy Python");
  tell("copied", getSelection().toString().startsWith("bdh.load"));
  tell("open", $(".again").open);
  $("button[data-neuron]").click();
  paint();
  tell("hash", location.hash);
  tell("on", $$(".chip.on").length);
  for (const key of "nnnp") document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  tell("next", document.activeElement.closest("section").id);
  $("nav a[href='#other']").click();
  tell("focus", document.activeElement.closest("section").id);
  tell("kept", location.hash);
}, 200));
"""


@pytest.mark.browser
def test_the_page_works_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = page.part
    monkeypatch.setattr(page, "part", lambda name: part(name) + (ACT if name == "page.js" else ""))
    written = write_page([panel(), panel("other")], tmp_path / "page.html", title="All")
    dom = browse(written, tmp_path / "profile", "--blink-settings=preferredColorScheme=0")
    for told in (
        'page="ready"',
        'buttons="copy Python,copy command,copy Python,copy command"',
        'copied="true"',
        'open="true"',
        'hash="#level=1&amp;neuron=12"',
        'on="2"',
        'next="rates"',
        'focus="other"',
        'kept="#level=1&amp;neuron=12"',
    ):
        assert f"data-{told}" in dom
    assert "data-error" not in dom


@pytest.mark.browser
def test_a_notebook_frame_works_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, said = page.part, 'addEventListener("load", () => parent.postMessage($$(".tools button").length, "*"));'
    monkeypatch.setattr(page, "part", lambda name: part(name) + (said if name == "page.js" else ""))
    notebook = tmp_path / "notebook.html"
    notebook.write_text(
        f"<!doctype html>{panel()._repr_html_()}<script>"
        "onmessage = (event) => { document.documentElement.dataset.said = event.data; };</script>",
        encoding="utf-8",
    )
    assert 'data-said="2"' in browse(notebook, tmp_path / "profile")
