"""Saving and loading: equal numbers back, clear refusals, and no code run from a file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bdh
from bdh import BDH, checkpoint
from bdh.checkpoint import CheckpointError


@pytest.fixture
def saved(tiny: BDH, tmp_path: Path) -> Path:
    return bdh.save(tiny, tmp_path / "model")


class TestOwnFormat:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_what_is_loaded_is_what_was_saved(self, tiny: BDH, tmp_path: Path, dtype: torch.dtype) -> None:
        back = bdh.load(bdh.save(tiny.to(dtype), tmp_path / "model"))
        assert back.config == tiny.config
        assert not back.training
        for name, parameter in tiny.named_parameters():
            loaded = back.get_parameter(name)
            assert loaded.dtype == dtype
            assert loaded.requires_grad
            assert torch.equal(loaded, parameter)

    def test_only_the_two_files_are_written(self, saved: Path) -> None:
        assert sorted(file.name for file in saved.iterdir()) == ["config.json", "model.safetensors"]
        assert [file.name for file in saved.parent.iterdir()] == ["model"]

    def test_saving_again_replaces(self, tiny: BDH, saved: Path) -> None:
        with torch.no_grad():
            tiny.decoder.zero_()
        bdh.save(tiny, saved)
        assert not bdh.load(saved).decoder.any()
        assert [file.name for file in saved.parent.iterdir()] == ["model"]

    def test_a_failed_save_leaves_the_old_one(self, tiny: BDH, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def disk_full(*_args, **_kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoint, "save_file", disk_full)
        with pytest.raises(OSError, match="No space"):
            bdh.save(tiny, saved)
        monkeypatch.undo()
        assert torch.equal(bdh.load(saved).decoder, tiny.decoder)
        assert [file.name for file in saved.parent.iterdir()] == ["model"]

    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_a_truncated_file_is_refused(self, saved: Path, keep: int) -> None:
        file = saved / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            bdh.load(saved)

    def test_weights_of_another_shape_are_refused_before_allocation(self, saved: Path) -> None:
        content = json.loads((saved / "config.json").read_text())
        content["model"]["n_embd"] = 2**24  # would be petabytes
        (saved / "config.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=r"expected .*16777216.* do not belong to this config"):
            bdh.load(saved)

    @pytest.mark.parametrize("change", ["missing", "extra"])
    def test_missing_and_foreign_tensors_are_named(self, saved: Path, change: str) -> None:
        tensors = load_file(saved / "model.safetensors")
        if change == "missing":
            del tensors["decoder"]
        else:
            tensors["mystery"] = torch.zeros(1)
        save_file(tensors, saved / "model.safetensors")
        with pytest.raises(CheckpointError, match="decoder" if change == "missing" else "mystery"):
            bdh.load(saved)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "[]",
            "{}",
            '{"format": 99, "model": {}}',
            '{"format": 1, "model": {"n_layr": 1}}',
            '{"format": 1, "model": {"n_layer": 0}}',
        ],
    )
    def test_a_bad_config_is_refused(self, saved: Path, content: str) -> None:
        (saved / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            bdh.load(saved)

    def test_wrong_places_say_what_belongs_there(self, tmp_path: Path) -> None:
        (tmp_path / "file.pt").write_bytes(b"")
        with pytest.raises(CheckpointError, match="no checkpoint at"):
            bdh.load(tmp_path / "nowhere")
        with pytest.raises(CheckpointError, match="bdh convert"):
            bdh.load(tmp_path / "file.pt")
        with pytest.raises(CheckpointError, match="holds no checkpoint"):
            bdh.load(tmp_path)

    def test_a_pointer_cannot_lead_out_of_the_run(self, saved: Path, tmp_path: Path) -> None:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "best").write_text("../model")
        assert checkpoint.pointed(tmp_path, "best") is None
