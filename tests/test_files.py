"""Old content or new, never a part, and nothing left behind."""

import errno
import os
from pathlib import Path

import pytest

from bdh import files


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a"
    files.write_text(target, "old")
    with pytest.raises(FileNotFoundError), files.replacing_file(target) as work:
        work.write_text("half")
        work.with_name("missing").read_text()
    assert target.read_text() == "old"
    files.write_text(target, "new")
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a"]
    assert target.stat().st_mode & 0o044  # readable by others, as far as the umask allows


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "d"
    with files.replacing_directory(target) as work:
        (work / "x").write_text("old")
    # the second rename of a replacement fails: the old directory must come back
    replace, calls = Path.replace, []

    def failing(self: Path, other: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(5, "no")
        return replace(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", failing)
        with pytest.raises(OSError, match="no"), files.replacing_directory(target) as work:
            (work / "x").write_text("new")
    assert (target / "x").read_text() == "old"
    assert names(tmp_path) == ["d"]


def test_everything_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace = files.sync, Path.replace
    monkeypatch.setattr(files, "sync", lambda p: (events.append(f"sync {p.name[:2]}"), sync(p)))
    monkeypatch.setattr(Path, "replace", lambda s, o: (events.append("rename"), replace(s, o))[1])
    with files.replacing_directory(tmp_path / "d") as work:
        (work / "x").write_text("1")
    assert events[:3] == ["sync x", "sync .d", "rename"]
    assert len(events) == 4  # and the folder above afterwards


def test_impossible_targets_are_refused(tmp_path: Path) -> None:
    for target, says in ((tmp_path, "is a directory"), (tmp_path / "no" / "a", "does not exist")):
        with pytest.raises(ValueError, match=says), files.replacing_file(target):
            pass


def test_a_directory_is_written_by_one_at_a_time(tmp_path: Path) -> None:
    with files.alone(tmp_path, "go away"):
        with pytest.raises(ValueError, match=rf"in use by process {os.getpid()}: wait for it, or go away$"):
            files.alone(tmp_path, "go away").__enter__()
        with files.alone(tmp_path.parent, "go away"):  # another is free
            pass
    with files.alone(tmp_path, "go away"):  # and so is this one then
        pass


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), files.alone(tmp_path, "go away"):
        pass
