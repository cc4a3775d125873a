"""What goes wrong outside of the package: one clear line, an exit code, and the last checkpoint as it was."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import bdh
from bdh import BDH, manifest
from bdh.cli import main
from bdh.train import Reporter, Run, saving

SHAPE = "--n-layer 2 --n-embd 16 --n-head 2 --mlp-mult 8 --block-size 16 --batch-size 4 --warmup-steps 2"
TIMES = "--eval-interval 100 --save-every 4 --eval-windows 4 --log-interval 1 --max-steps"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter, as the one of pytest is not."""
    path = Path(tempfile.mkdtemp(prefix="bdh-test-"))
    path.chmod(0o755)
    (path / "cats.txt").write_text("the cat sat on the mat. " * 60)
    yield path
    shutil.rmtree(path)


def train(place: Path, steps: int) -> int:
    words = f"train --data {place / 'cats.txt'} --out-dir {place / 'run'} --resume-from auto {SHAPE} {TIMES} {steps}"
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    return int(stop.value.code or 0)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bdh: ")
    return line


def assert_whole(place: Path, step: int) -> None:
    run = Run(place / "run")
    assert [manifest.damage(path) for path in run.kept()] == [None] * len(run.kept())
    assert run.newest() == run.last == place / "run" / "checkpoints" / f"step-{step:08d}"
    assert torch.isfinite(bdh.load(run.last).decoder).all()


def full(*_args: object, **_kwargs: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["weights", "moments", "progress", "sync", "pointer"])
def test_a_full_disk_leaves_the_last_checkpoint(place: Path, what: str, monkeypatch, capsys) -> None:
    assert train(place, 8) == 0
    capsys.readouterr()
    place_of = {
        "weights": (saving.checkpoint, "save_file"),
        "moments": (saving, "save_file"),
        "progress": (saving.manifest, "write"),
        "sync": (bdh.files, "sync"),
        "pointer": (Run, "point"),
    }
    with monkeypatch.context() as patch:
        # going on itself writes: only what comes later finds the disk full
        patch.setattr(Reporter, "start", lambda *_: patch.setattr(*place_of[what], full))
        assert train(place, 16) == 1
    line = one_line(capsys)
    assert "step-00000012 cannot be written (No space left on device): make room" in line
    assert f"--resume-from {place / 'run'}" in line
    assert "last good checkpoint" in line
    step = 12 if what == "pointer" else 8
    assert Run(place / "run").newest().name == f"step-{step:08d}"
    assert train(place, 16) == 0  # when there is room again
    assert_whole(place, 16)
    assert not list((place / "run" / "checkpoints").glob(".*"))


def test_a_file_that_may_not_grow_is_told(place: Path, capsys) -> None:
    """A true failure of the system's write, in a process of its own."""
    assert train(place, 8) == 0
    limit = 30_000  # bytes of a file: room for metrics, not for weights
    words = f"-m bdh train --resume-from {place / 'run'} --max-steps 16".split()
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1
    assert "step-00000012 cannot be written" in line
    assert "File too large" in line
    assert "last good checkpoint: " in line
    assert_whole(place, 8)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.txt"])
def test_a_full_disk_under_the_logs_is_told(place: Path, name: str, monkeypatch, capsys) -> None:
    assert train(place, 8) == 0
    capsys.readouterr()
    file = place / "run" / name

    def fill(*_: object) -> None:
        file.rename(place / name)
        file.symlink_to("/dev/full")

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "start", fill)
        assert train(place, 16) == 1
    assert f"{name} cannot be written (No space left on device)" in one_line(capsys)
    file.unlink()
    (place / name).rename(file)
    assert_whole(place, 8)
    assert train(place, 16) == 0


@pytest.mark.skipif(os.geteuid() != 0 and not os.access("/", os.R_OK), reason="needs a user whom rights bind")
@pytest.mark.parametrize("begun", [False, True])
def test_a_directory_that_may_not_be_written_to(place: Path, begun: bool, capsys) -> None:
    if begun:
        assert train(place, 4) == 0
    capsys.readouterr()
    (place / "run").mkdir(exist_ok=True)
    paths = [place / "run", *(path for path in (place / "run").rglob("*") if path.is_dir())]
    for path in paths:
        path.chmod(0o555)
    mighty = os.geteuid() == 0
    if mighty:
        os.seteuid(65534)  # rights do not bind root
    try:
        assert train(place, 8) == 2
    finally:
        if mighty:
            os.seteuid(0)
        for path in paths:
            path.chmod(0o755)
    assert f"--out-dir {place / 'run'} cannot be written to (Permission denied): choose another" in one_line(capsys)
    if begun:
        assert_whole(place, 4)


@pytest.mark.parametrize("where", ["loss", "gradient", "activity"])
def test_a_number_that_is_none_is_one_line(place: Path, where: str, monkeypatch, capsys) -> None:
    assert train(place, 8) == 0
    capsys.readouterr()
    good = bdh.load(place / "run" / "checkpoints" / "step-00000008")
    forward, calls = BDH.forward, []

    def wrong(self: BDH, *args, **kwargs):
        logits, loss = forward(self, *args, **kwargs)
        if self.training:
            calls.append(1)
            if len(calls) == 2:
                if where == "loss":
                    return logits, loss * float("nan")
                if where == "activity":
                    return logits, loss + (logits * float("nan")).sum()
                self.decoder.register_hook(lambda gradient: gradient * float("nan"))
        return logits, loss

    with monkeypatch.context() as patch:
        patch.setattr(BDH, "forward", wrong)
        assert train(place, 16) == 1
    line = one_line(capsys)
    assert "step 9: loss" in line
    assert "expected finite numbers. The step was not taken; last good checkpoint: " in line
    assert "step-00000008" in line
    assert "lower --learning-rate" in line
    assert_whole(place, 8)
    assert torch.equal(bdh.load(place / "run" / "checkpoints" / "step-00000008").decoder, good.decoder)
    assert train(place, 16) == 0


def test_sigterm_saves_and_exits_with_0(place: Path, monkeypatch, capsys) -> None:
    def ask(self: Reporter, record: dict, *_: object) -> None:
        if record["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "step", ask)
        assert train(place, 16) == 0
    assert "stopped after step 6, saved; go on with: bdh train --resume-from" in capsys.readouterr().out.replace(
        "\n", " "
    )
    assert_whole(place, 6)


def test_one_process_at_a_time_trains_in_a_directory(place: Path, capsys) -> None:
    run = place / "run"
    words = f"train --data {place / 'cats.txt'} --out-dir {run} {SHAPE} {TIMES} 1000000"
    other = subprocess.Popen([sys.executable, "-m", "bdh", *words.split()], stdout=subprocess.DEVNULL)
    try:
        while Run(run).last is None:
            assert other.poll() is None
            time.sleep(0.05)
        assert train(place, 16) == 2
        assert (
            one_line(capsys) == f"bdh: {run} is in use by process {other.pid}: wait for it, or give another --out-dir"
        )
        with pytest.raises(SystemExit) as stop:  # to read asks for nothing
            main(["generate", "--model", str(run), "--max-new-tokens", "2"])
        assert stop.value.code == 0
    finally:
        other.kill()
        other.wait()
    assert train(place, max(step_of(path) for path in Run(run).kept()) + 4) == 0


def step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("step-"))
