"""Other people's .pt files: equal numbers, clear refusals, and no code run from a file."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import bdh
from bdh.checkpoint import CheckpointError
from tolerances import CONTROL, GOLDEN_LOGITS, GOLDEN_LOSS, error

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = load_file(GOLDEN / "community_checkpoint.expected.safetensors")


def test_community_checkpoint() -> None:
    model = bdh.import_checkpoint(GOLDEN / "community_checkpoint.pt")
    assert model.config.n_layer == 2
    assert error(model(EXPECTED["idx"])[0], EXPECTED["logits"]) <= GOLDEN_LOGITS


def test_official_state_dict() -> None:
    model = bdh.import_checkpoint(GOLDEN / "official_state_dict.pt", n_layer=2)
    assert error(model(EXPECTED["idx"])[0], EXPECTED["logits"]) <= GOLDEN_LOGITS


def test_depth_that_nobody_states_is_the_released_one_and_said_aloud() -> None:
    with pytest.warns(UserWarning, match="6 assumed"):
        model = bdh.import_checkpoint(GOLDEN / "official_state_dict.pt")
    assert model.config.n_layer == 6
    # control: a wrong depth does not pass for the right one
    assert error(model(EXPECTED["idx"])[0], EXPECTED["logits"]) > CONTROL


def test_an_import_saves_as_our_own(tmp_path: Path) -> None:
    model = bdh.import_checkpoint(GOLDEN / "community_checkpoint.pt")
    back = bdh.load(bdh.save(model, tmp_path / "model"))
    assert torch.equal(back(EXPECTED["idx"])[0], model(EXPECTED["idx"])[0])


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "was here"

    class Evil:
        def __reduce__(self):
            return Path.touch, (trace,)

    for name, write in (("torch.pt", torch.save), ("plain.pt", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        write({"model": Evil()}, tmp_path / name)
        with pytest.raises(CheckpointError, match="nothing in it was run"):
            bdh.import_checkpoint(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -1000])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes((GOLDEN / "community_checkpoint.pt").read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"broken\.pt was refused"):
        bdh.import_checkpoint(broken)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"decoder": torch.zeros(7, 16)}, r"decoder expected \(128, 16\), got \(7, 16\)"),
        ({"encoder": torch.zeros(2, 16)}, "is not .heads, width, neurons per head."),
        ({"lm_head": None}, "no weights named lm_head"),
        ({"surprise": torch.zeros(1)}, "surprise expected not to exist"),
        ({"encoder": torch.zeros(2, 16, 64, dtype=torch.int64)}, "floating-point"),
    ],
)
def test_wrong_contents_are_named(tmp_path: Path, change: dict, says: str) -> None:
    state = torch.load(GOLDEN / "official_state_dict.pt", weights_only=True) | change
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=says):
        bdh.import_checkpoint(tmp_path / "odd.pt", n_layer=2)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": {}}])
def test_other_things_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"other\.pt"):
        bdh.import_checkpoint(tmp_path / "other.pt")


def test_a_windowed_model_is_refused(tmp_path: Path) -> None:
    content = torch.load(GOLDEN / "community_checkpoint.pt", weights_only=True)
    content["config"]["attn_window"] = 64
    torch.save(content, tmp_path / "windowed.pt")
    with pytest.raises(CheckpointError, match="attn_window=64 is not supported"):
        bdh.import_checkpoint(tmp_path / "windowed.pt")


def golden_loss() -> torch.Tensor:
    """Nats per byte that the released code's own logits give for the golden text."""
    return F.cross_entropy(EXPECTED["logits"][:, :-1].flatten(0, 1).double(), EXPECTED["idx"][:, 1:].flatten())


def as_written_by(style: str) -> Any:
    """The same weights, as different training code saves them."""
    state = torch.load(GOLDEN / "official_state_dict.pt", weights_only=True)
    shape = {
        "n_layer": 2,
        "n_embd": 16,
        "dropout": 0.1,
        "n_head": 2,
        "mlp_internal_dim_multiplier": 8,
        "vocab_size": 256,
    }
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in state.items()}
    moments = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}
    return {
        "first release": {**state, "lm_gate": torch.ones(16, 1)},
        "data parallel": {f"module.{name}": tensor for name, tensor in state.items()},
        "in half precision": {n: t.bfloat16() if n == "attn.freqs" else t for n, t in state.items()},
        "tasmay": {
            "model_state": compiled,
            "optimizer_state": moments,
            "config": {**shape, "attn_window": None, "latent_token_id": None},
            "step": 250,
        },
        "small dragon": {"model": compiled, "optimizer": moments, "step": 9, "config": shape, "arch": "bdh"},
        "small dragon, tuned": {"model": state, "config": shape, "step": 9, "examples": "curriculum.pkl"},
    }[style]


STYLES = ["first release", "data parallel", "in half precision", "tasmay", "small dragon", "small dragon, tuned"]


@pytest.mark.parametrize("style", STYLES)
def test_every_style_gives_the_loss_of_the_released_code(style: str, tmp_path: Path) -> None:
    content = as_written_by(style)
    torch.save(content, tmp_path / "theirs.pt")
    model = bdh.import_checkpoint(tmp_path / "theirs.pt", n_layer=2)
    _, loss = model(EXPECTED["idx"][:, :-1], EXPECTED["idx"][:, 1:])
    assert error(loss, golden_loss()) <= GOLDEN_LOSS
    # control: one weight
    weights = content.get("model_state", content.get("model", content))
    (name,) = (name for name in weights if name.endswith("embed.weight"))
    weights[name][EXPECTED["idx"][0, 0], 0] += 1.0
    torch.save(content, tmp_path / "changed.pt")
    _, changed = bdh.import_checkpoint(tmp_path / "changed.pt", n_layer=2)(
        EXPECTED["idx"][:, :-1], EXPECTED["idx"][:, 1:]
    )
    assert error(changed, golden_loss()) > CONTROL


def test_another_gate_is_not_the_one_that_nothing_reads(tmp_path: Path) -> None:
    torch.save(as_written_by("first release") | {"lm_gate": torch.ones(16, 3)}, tmp_path / "gated.pt")
    with pytest.raises(CheckpointError, match=r"lm_gate expected not to exist, got \(16, 3\)"):
        bdh.import_checkpoint(tmp_path / "gated.pt", n_layer=2)


@pytest.mark.parametrize("change", [{"attn.freqs": torch.ones(1, 1, 1, 64)}, {"attn.freqs": torch.ones(32)}])
def test_a_model_that_rotates_otherwise_is_refused(change: dict, tmp_path: Path) -> None:
    torch.save(as_written_by("first release") | change, tmp_path / "turned.pt")
    with pytest.raises(CheckpointError, match="its rotary frequencies are not those of the released model"):
        bdh.import_checkpoint(tmp_path / "turned.pt", n_layer=2)


def test_settings_that_may_change_the_model_are_named(tmp_path: Path) -> None:
    content = as_written_by("tasmay")
    content["config"]["rope_theta"] = 1e4
    torch.save(content, tmp_path / "odd.pt")
    with pytest.warns(UserWarning, match="settings not known here are left out: rope_theta"):
        bdh.import_checkpoint(tmp_path / "odd.pt")


def test_a_transformer_is_not_taken_for_a_dragon(tmp_path: Path) -> None:
    torch.save({"model": {"wte.weight": torch.zeros(4, 4)}, "config": {}, "arch": "gpt"}, tmp_path / "gpt.pt")
    with pytest.raises(CheckpointError, match="it is not a BDH checkpoint"):
        bdh.import_checkpoint(tmp_path / "gpt.pt")
