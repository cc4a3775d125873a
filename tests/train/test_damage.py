"""Checkpoints that were damaged after they were written: noticed, told, and the one before is gone on from."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

import bdh
from bdh import BDH, BDHConfig, TrainConfig, manifest
from bdh.checkpoint import CheckpointError
from bdh.data import Corpus
from bdh.train import Reporter, Run, fit

SHAPE = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=4, dropout=0.1)
TRAIN = TrainConfig(
    block_size=16, batch_size=2, batches="streams", max_steps=12, learning_rate=1e-2, warmup_steps=2,
    eval_interval=50, log_interval=1, save_every=4, eval_windows=2, seed=5, dtype="float32",
)  # fmt: skip
TEXT = np.frombuffer(b"\0the cat sat on the mat\0a dog\0she sells sea shells by the sea shore" * 8, np.uint8)
CORPUS = Corpus("cats", TEXT, TEXT[:90], separator=0)
FILES = [
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "progress.json",
    "state-0.safetensors",
]


def train(path: Path) -> BDH:
    model = BDH.from_seed(SHAPE, 5)
    fit(model, CORPUS, TRAIN, Run(path), Reporter(Console(file=io.StringIO())))
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole")
    train(path)
    return path


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def test_every_file_is_in_the_manifest(run: Path) -> None:
    (newest, before) = reversed([path for path in Run(run).kept() if path.name != "step-00000004"])
    assert sorted(file.name for file in newest.iterdir()) == FILES
    listed = json.loads((newest / "manifest.json").read_text())["files"]
    assert sorted([*listed, "manifest.json"]) == FILES
    assert all(listed[name]["bytes"] == (newest / name).stat().st_size for name in listed)
    assert manifest.damage(newest) is manifest.damage(before) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("hurt", [flip, truncate, empty, Path.unlink])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    whole: Path, run: Path, name: str, hurt: Callable[[Path], None]
) -> None:
    newest = Run(run).last
    hurt(newest / name)
    told = "" if hurt is flip and name == "manifest.json" else name  # it then says another number of some file
    with pytest.warns(UserWarning, match=rf"step-00000012 is damaged: .*{told}.*; step-00000008 is tried") as said:
        train(run)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    # it went on from step 8 and came to the same end
    for file in FILES[2:4] + FILES[5:]:
        mine, theirs = (load_file(path / "checkpoints/step-00000012" / file) for path in (run, whole))
        assert mine.keys() == theirs.keys()
        assert all(mine[key].equal(theirs[key]) for key in mine), file
    records = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert records == sorted(records)
    assert (run / "samples.txt").read_text() == (whole / "samples.txt").read_text()
    # what was found damaged is still there to be looked at
    assert (run / "checkpoints" / "damaged-00000012").is_dir()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("hurt", [flip, truncate, empty, Path.unlink])
def test_a_damaged_checkpoint_is_not_loaded(run: Path, name: str, hurt: Callable[[Path], None]) -> None:
    before, newest = Run(run).kept()[-2:]
    hurt(newest / name)
    with pytest.warns(UserWarning, match=rf"step-00000012 is damaged: {name} .*; step-00000008 is tried") as said:
        loaded = bdh.load(run)
    assert len(said) == 1
    assert loaded.decoder.equal(bdh.load(before).decoder)
    with pytest.raises(CheckpointError, match=rf"step-00000012 is damaged: {name} .*; use another checkpoint"):
        bdh.load(newest)


def test_what_a_sum_cannot_see_the_hash_does(run: Path) -> None:
    file = Run(run).last / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-16:-8], content[-8:] = content[-8:], content[-16:-8]
    file.write_bytes(content)
    assert manifest.damage(file.parent, quick=True) is None
    assert manifest.damage(file.parent) == "model.safetensors does not have the hash it was written with"


def test_a_manifest_without_sums_is_compared_by_hash(run: Path) -> None:
    file = Run(run).last / "manifest.json"
    content = json.loads(file.read_text())
    for about in content["files"].values():
        assert about.pop("sum")
    file.write_text(json.dumps(content))
    assert manifest.damage(file.parent, quick=True) is None
    flip(file.parent / "model.safetensors")
    assert manifest.damage(file.parent, quick=True) == "model.safetensors does not have the hash it was written with"


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1000])
def test_a_sum_changes_with_every_bit(tmp_path: Path, length: int) -> None:
    content = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    manifest.write(tmp_path)
    assert manifest.damage(tmp_path, quick=True) is None
    for bit in range(0, 8 * length, 1 if length < 10 else 97):
        changed = content.copy()
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "file").write_bytes(changed.tobytes())
        assert manifest.damage(tmp_path, quick=True) == "file does not have the sum it was written with"


def test_what_a_model_is_not_read_from_is_not_looked_at(run: Path) -> None:
    flip(Run(run).last / "optimizer.safetensors")
    assert bdh.load(run).decoder.equal(bdh.load(Run(run).last).decoder)


def test_a_run_without_a_whole_checkpoint_is_not_loaded(run: Path) -> None:
    for directory in (kept := Run(run).kept()):
        flip(directory / "model.safetensors")
    with (
        pytest.warns(UserWarning, match="is damaged") as said,
        pytest.raises(CheckpointError, match=f"none of {len(kept)} checkpoints is whole"),
    ):
        bdh.load(run)
    assert len(said) == len(kept)


def test_a_flip_is_what_the_hash_is_for(run: Path) -> None:
    """Control: without the manifest nothing notices the changed weight."""
    good = {name: value.clone() for name, value in bdh.load(run).state_dict().items()}  # the file is mapped
    flip(Run(run).last / "model.safetensors")
    (Run(run).last / "manifest.json").unlink()
    assert any(not value.equal(good[name]) for name, value in bdh.load(run).state_dict().items())


def test_where_all_are_damaged_one_line_says_so_and_nothing_is_touched(run: Path) -> None:
    kept = Run(run).kept()
    for directory in kept:
        flip(directory / "model.safetensors")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with (
        pytest.warns(UserWarning, match="is damaged") as said,
        pytest.raises(CheckpointError, match=f"none of {len(kept)} checkpoints is whole: .* another --out-dir"),
    ):
        train(run)
    assert len(said) == len(kept)
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


def test_lost_pointers_are_written_again(run: Path) -> None:
    best = (run / "checkpoints" / "best").read_text()
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).unlink()
    train(run)
    assert (run / "checkpoints" / "last").read_text() == "step-00000012\n"
    assert (run / "checkpoints" / "best").read_text() == best == "step-00000012\n"


def test_what_a_killed_process_left_half_written_goes(run: Path) -> None:
    left = [
        run / "checkpoints" / ".step-00000008.abcd",
        run / ".metrics.jsonl.abcd",
        run / "checkpoints" / ".last.abcd",
    ]
    left[0].mkdir()
    (left[0] / "model.safetensors").write_bytes(b"half")
    for file in left[1:]:
        file.write_bytes(b"half")
    mine = run / ".gitignore"
    mine.write_text("*")
    train(run)
    assert not any(path.exists() for path in left)
    assert mine.exists()


@pytest.mark.parametrize("tail", ["--- step 12\nand th", "--- step 1", "---", "--- step 12\nwhole\n\n"])
def test_samples_after_the_checkpoint_are_dropped(run: Path, tail: str) -> None:
    samples = run / "samples.txt"
    kept = samples.read_text()
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    upto = kept[: kept.index("--- step 12\n")]
    samples.write_text(upto + tail)
    Run(run).rewind(8)
    assert samples.read_text() == upto
