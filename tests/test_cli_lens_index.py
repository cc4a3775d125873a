"""`bdh lens index`, `neuron` and `export` as a user meets them."""

import json
from pathlib import Path

import pytest

import bdh
from bdh.cli import main
from bdh.lens.index import tally


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def words(tmp_path: Path, tiny: bdh.BDH) -> list[object]:
    """A command that indexes a small model on a small text."""
    text = tmp_path / "cats.txt"
    text.write_text("the cat sat on the mat. " * 60)
    return ["lens", "index", "--model", bdh.save(tiny, tmp_path / "model"), "--data", text]


def test_an_index_answers_for_a_neuron(words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words) == 0
    index = tmp_path / "model-index"
    assert "128 neurons on 1,440 bytes" in capsys.readouterr().out  # all of the text, no tenth left for validation
    assert run("lens", "neuron", "h1:3", "--index", index) == 0
    out = capsys.readouterr().out
    assert out.startswith("h1:3 (#67)  x_sparse on 1,440 bytes, in windows of 256\n")
    assert "at random initialisation" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 100
    assert "label: not looked for" in out
    text = tmp_path / "long.txt"
    text.write_text("the cat sat on the mat. " * 900)
    assert run("lens", "neuron", "h1:3", "--index", index, "--model", tmp_path / "model", "--data", text) == 0
    assert "of 1 neurons get a label" in " ".join(capsys.readouterr().out.split())
    assert run("lens", "neuron", 67, "--index", index, "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert (page["neuron"], page["head"], page["index"], len(page["levels"])) == (67, 1, 3, 3)
    assert run("lens", "export", "--index", index, "--out", tmp_path / "pages", "--neurons", "h1:3", "5") == 0
    assert sorted(file.name for file in (tmp_path / "pages").iterdir()) == ["5.json", "67.json"]
    assert run(*words, "--json") == 0  # is there already
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["n_bytes"] == 1440


def test_mistakes_are_one_line(words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*words, "--out", tmp_path / "index") == 0
    other = bdh.save(bdh.BDH.from_seed(bdh.load(tmp_path / "model").config, 1), tmp_path / "other")
    capsys.readouterr()
    for wrong, said in (
        (("neuron", "128", "--index", tmp_path / "index"), "expected 0..127, or h0:0 .. h1:63"),
        (("neuron", "1", "--index", tmp_path), "is no index of neurons"),
        (("neuron", "1", "--index", tmp_path / "index", "--model", other), "is the index of another model"),
        (("export", "--index", tmp_path / "index", "--out", tmp_path), "exists"),
        ((*words[1:], "--out", tmp_path / "index", "--signal", "xy_sparse"), "is an index of another signal"),
        ((*words[1:], "--out", tmp_path / "new", "--window", 0), "window=0"),
    ):
        assert run("lens", *wrong) == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.count("\n") == 1
        assert said in told.err


def test_a_stop_says_how_to_go_on(
    words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tally.Tally, "finish", stop)
        assert run(*words) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on\n"
    assert run(*words) == 0
    assert (tmp_path / "model-index" / "index.json").exists()
