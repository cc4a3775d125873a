"""One table of names, in the code and in the documentation, and the names that people bring from elsewhere."""

from pathlib import Path

import pytest
import torch

from bdh import BDH, BDHConfig
from bdh.lens import names_of, record
from bdh.lens.names import PLACES, canonical, places_of, table

TINY = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, dropout=0.0)


def test_the_documentation_lists_what_the_code_knows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "names.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert rows == table().splitlines()
    named = {row.split("`")[1] for row in rows[2:]}
    for variant in ("bdh", "hatching"):
        model = BDH(BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, variant=variant))
        assert {name.replace(".0.", ".{i}.") for name in names_of(model)} <= named


@pytest.mark.parametrize("variant", ["bdh", "hatching"])
def test_the_shapes_are_those_of_the_tensors(variant: str) -> None:
    model = BDH(BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, variant=variant))
    _, trace = record(model, torch.zeros(3, 5, dtype=torch.int64), "*")
    for name, place in places_of(model).items():
        assert trace[name].shape == place.shape(model.config, 3, 5), name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("blocks.0.hook_x_sparse", "layers.0.x_sparse"),
        ("blocks.1.attn.hook_v", "layers.1.value"),
        ("blocks.1.hook_resid_post", "layers.1.v"),
        ("blocks.1.hook_resid_pre", "layers.0.v"),
        ("blocks.0.hook_resid_pre", "embed"),
        ("hook_embed", "embed"),
    ],
)
def test_names_of_another_library_are_understood(alias: str, name: str) -> None:
    model = BDH(TINY)
    _, trace = record(model, torch.tensor([[1, 2, 3]]), alias)
    assert trace.names == (name,)
    assert trace[alias] is trace[name]


def test_every_alias_is_unique_and_leads_to_its_place() -> None:
    assert len({place.alias for place in PLACES}) == len(PLACES)
    for place in PLACES:
        assert canonical(place.alias.format(i=4)) == place.at(4)
    assert canonical("blocks.0.hook_mlp_out") == "blocks.0.hook_mlp_out"


def test_patterns_take_the_other_style_too() -> None:
    model, idx = BDH(TINY), torch.tensor([[1, 2, 3]])
    _, trace = record(model, idx, "blocks.*.hook_x_sparse")
    assert trace.names == ("layers.0.x_sparse", "layers.1.x_sparse")
    # but no pattern of this package's names catches one by accident
    assert record(model, idx, "layers.*v")[1].names == ("layers.0.v", "layers.1.v")
    with pytest.raises(ValueError, match=r"blocks\.0\.hook_resid_post"):
        record(model, idx, "blocks.0.hook_resid_past")
