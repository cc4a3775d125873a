"""The example report of the documentation is small, asks the network for nothing, and can be found."""

import re
from pathlib import Path

import pytest

from browsing import browse, check_self_contained

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = DOCS / "example-report.html"


def test_the_example_is_small_and_self_contained() -> None:
    assert EXAMPLE.stat().st_size < 1_500_000
    seen = check_self_contained(EXAMPLE.read_text(encoding="utf-8"))
    keys = [a["id"] for tag, a in seen.tags if tag == "section"]
    assert keys[:4] == ["overview", "text", "raster", "telling"]
    assert {"labels", "logit-lens", "memory-energy", "synapses", "ledger"} <= set(keys)
    copies = [a["data-copy"] for tag, a in seen.tags if tag == "code" and "data-copy" in a]
    assert copies == ["Python", "command"] * len(keys)
    assert not re.search(r"/(home|tmp|root|Users)/", " ".join(seen.words))


def test_the_example_is_linked_from_the_documentation() -> None:
    page = DOCS / "lens" / "reports.md"
    links = re.findall(r"\]\(([^)]*example-report\.html)\)", page.read_text(encoding="utf-8"))
    assert [(page.parent / link).resolve() for link in links] == [EXAMPLE]


@pytest.mark.browser
def test_the_example_runs_in_a_browser(tmp_path: Path) -> None:
    dom = browse(EXAMPLE, tmp_path / "profile")
    assert 'data-report="ready"' in dom
    assert "data-error" not in dom
