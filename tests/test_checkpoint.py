"""Saving, loading, importing: equal numbers back, clear refusals, and no code run from a file."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bdh
from bdh import BDH, checkpoint
from bdh.checkpoint import CheckpointError
from tolerances import CONTROL, GOLDEN_LOGITS, error

GOLDEN = Path(__file__).parent / "golden"


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


class TestImport:
    expected = load_file(GOLDEN / "community_checkpoint.expected.safetensors")

    def test_community_checkpoint(self) -> None:
        model = bdh.import_checkpoint(GOLDEN / "community_checkpoint.pt")
        assert model.config.n_layer == 2
        assert error(model(self.expected["idx"])[0], self.expected["logits"]) <= GOLDEN_LOGITS

    def test_official_state_dict(self) -> None:
        model = bdh.import_checkpoint(GOLDEN / "official_state_dict.pt", n_layer=2)
        assert error(model(self.expected["idx"])[0], self.expected["logits"]) <= GOLDEN_LOGITS

    def test_depth_that_nobody_states_is_the_released_one_and_said_aloud(self) -> None:
        with pytest.warns(UserWarning, match="6 assumed"):
            model = bdh.import_checkpoint(GOLDEN / "official_state_dict.pt")
        assert model.config.n_layer == 6
        # control: a wrong depth does not pass for the right one
        assert error(model(self.expected["idx"])[0], self.expected["logits"]) > CONTROL

    def test_an_import_saves_as_our_own(self, tmp_path: Path) -> None:
        model = bdh.import_checkpoint(GOLDEN / "community_checkpoint.pt")
        back = bdh.load(bdh.save(model, tmp_path / "model"))
        assert torch.equal(back(self.expected["idx"])[0], model(self.expected["idx"])[0])

    def test_a_malicious_pickle_runs_nothing(self, tmp_path: Path) -> None:
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
    def test_a_truncated_file_is_refused(self, tmp_path: Path, keep: int) -> None:
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
    def test_wrong_contents_are_named(self, tmp_path: Path, change: dict, says: str) -> None:
        state = torch.load(GOLDEN / "official_state_dict.pt", weights_only=True) | change
        torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "odd.pt")
        with pytest.raises(CheckpointError, match=says):
            bdh.import_checkpoint(tmp_path / "odd.pt", n_layer=2)

    @pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"model": {}}])
    def test_other_things_are_refused(self, tmp_path: Path, content: object) -> None:
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=r"other\.pt"):
            bdh.import_checkpoint(tmp_path / "other.pt")

    def test_a_windowed_model_is_refused(self, tmp_path: Path) -> None:
        content = torch.load(GOLDEN / "community_checkpoint.pt", weights_only=True)
        content["config"]["attn_window"] = 64
        torch.save(content, tmp_path / "windowed.pt")
        with pytest.raises(CheckpointError, match="attn_window=64 is not supported"):
            bdh.import_checkpoint(tmp_path / "windowed.pt")
