"""The figures of the documentation are those that the package draws now."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from bdh.sections import SECTIONS

DOCS = Path(__file__).parents[1] / "docs"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_figures", DOCS / "figures" / "mechanisms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parts(svg: str) -> tuple[list[str], list[float]]:
    """Words between numbers, and the numbers."""
    number = r"-?\d+(?:\.\d+)?"
    return re.split(number, svg), [float(n) for n in re.findall(number, svg)]


# random numbers may change between versions of torch; these figures have none
@pytest.mark.parametrize("name", ["lif", "stdp", "hippo", "bcm", "dendrites", "neuromodulation"])
def test_a_figure_is_up_to_date(name: str) -> None:
    words, numbers = parts(str(script().FIGURES[name]()))
    kept_words, kept = parts((DOCS / "figures" / f"{name}.svg").read_text(encoding="utf-8"))
    assert words == kept_words, "draw it again: python docs/figures/mechanisms.py"
    assert numbers == pytest.approx(kept, abs=0.2)


def test_every_mechanism_has_its_words_and_a_small_figure() -> None:
    page = (DOCS / "mechanisms.md").read_text(encoding="utf-8")
    assert set(script().FIGURES) == set(SECTIONS)
    for name in SECTIONS:
        assert f"(figures/{name}.svg)" in page
        assert f"`{name}." in page
        drawn = (DOCS / "figures" / f"{name}.svg").read_bytes()
        assert len(drawn) < 60_000
        ET.fromstring(drawn)


def test_links_lead_to_headings() -> None:
    page = (DOCS / "mechanisms.md").read_text(encoding="utf-8")
    headings = {}
    for file in ("mechanisms.md", "math.md"):
        titles = re.findall(r"^#+ (.*)$", (DOCS / file).read_text(encoding="utf-8"), re.MULTILINE)
        headings[file] = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
    links = re.findall(r"\]\((\w*\.?m?d?)#([\w-]+)\)", page)
    assert len(links) >= 18
    for file, anchor in links:
        assert anchor in headings[file or "mechanisms.md"]
