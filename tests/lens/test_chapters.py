"""Chapters are made of the model that is shown, say what they are compared with, and how to get them again."""

import dataclasses

import pytest

from bdh import BDH, BDHConfig
from bdh.lens import chapters, inspect_text

TEXT = b"the lazy dog; the quick brown fox, "
SMALL = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4)


def made_of(config: BDHConfig, text: bytes = b"The dragon") -> list[str]:
    model = BDH.from_seed(config, seed=0)
    found = inspect_text(model, text, TEXT * 8, min_fires=2, window=64)
    return [chapter.words[1] for chapter in chapters(model, found, TEXT * 8, window=64)]


def test_each_chapter_that_needs_no_null_is_made() -> None:
    model = BDH.from_seed(SMALL, seed=0)
    found = inspect_text(model, b"The dragon", TEXT * 8, min_fires=2, telling=2, window=64)
    keys = []
    for chapter in chapters(model, found, TEXT * 8, window=64):
        if chapter.words[0] == "probe" or chapter.words[1] in (
            "label",
            "topology",
        ):  # they train or draw nulls: their own tests make them
            continue
        panel = chapter.make()
        assert panel.baseline
        assert panel.python
        keys.append(panel.key)
    assert keys == ["logit-lens", "attention-1", "memory-energy", "memory-span", "synapses", "ledger"]


def test_what_cannot_be_measured_is_no_chapter() -> None:
    assert made_of(SMALL).count("state") == 2
    assert made_of(SMALL, b"a").count("state") == 1  # one token reads nothing
    assert "topology" in made_of(SMALL)
    wide = dataclasses.replace(SMALL, mlp_internal_dim_multiplier=4096 // 16 * 2)
    assert "topology" not in made_of(wide)


@pytest.mark.parametrize("variant", ["hatching", "advanced"])
def test_every_variant_has_chapters(variant: str) -> None:
    assert "ledger" in made_of(dataclasses.replace(SMALL, variant=variant))
