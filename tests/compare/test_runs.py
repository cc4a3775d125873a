"""A comparison of a few steps: what is equal, what goes on, and what the report says."""

import io
import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

import bdh
from bdh.cli import main
from bdh.compare import Comparison, Settings, compare, plan, print_comparison, runs, write_report
from bdh.compare.chart import Line, chart, ticks
from bdh.data import Corpus
from bdh.train import NonFiniteError

TEXT = b"the cat sat on the mat. a dog ran to it. " * 60
BATCH = {"batch_size": 2, "block_size": 16, "eval_windows": 4}


def corpus(text: bytes = TEXT) -> Corpus:
    tokens = np.frombuffer(text, dtype=np.uint8)
    cut = int(0.8 * len(tokens))
    return Corpus("cats", tokens[:cut], tokens[cut:], {"source": "test"})


def asked(path: Path, **values: object) -> Settings:
    standard = {"variants": "bdh,gpt", "seeds": "7", "max_steps": 4, "out_dir": path / "out"}
    return Settings(**(standard | BATCH | values))  # type: ignore[arg-type]


def quiet(settings: Settings, **more: object) -> Comparison:
    return compare(settings, Console(quiet=True), corpus=corpus(), **more)  # type: ignore[arg-type]


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_equal_seeds_see_equal_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[tuple[int, bytes]]] = {}
    where = ["timing"]
    for module in (sys.modules["bdh.data.order"], sys.modules["bdh.compare.peer"]):
        draw = module.random_windows

        def watched(tokens, *, seed, step, draw=draw, **shape):
            idx, targets = draw(tokens, seed=seed, step=step, **shape)
            seen.setdefault(where[0], []).append((step, idx.numpy().tobytes() + targets.numpy().tobytes()))
            return idx, targets

        monkeypatch.setattr(module, "random_windows", watched)
    train = runs._train

    def named(entry, seed, *rest):
        where[0] = f"{entry.variant.name} {seed}"
        train(entry, seed, *rest)

    monkeypatch.setattr(runs, "_train", named)
    quiet(asked(tmp_path, variants="bdh,bdh+lif.tau=10,gpt", seeds="7,8"))
    del seen["timing"]
    # the first batch also calibrates the thresholds of spiking neurons, and is drawn for that by all
    drawn = {name: dict(batches) for name, batches in seen.items()}
    assert drawn["bdh 7"] == drawn["bdh+lif.tau=10 7"] == drawn["gpt 7"]
    assert drawn["bdh 8"] == drawn["gpt 8"]
    assert sorted(drawn["gpt 7"]) == [0, 1, 2, 3]
    assert drawn["gpt 7"] != drawn["gpt 8"]
    order = list(seen)
    assert order == [f"{name} {seed}" for seed in (7, 8) for name in ("bdh", "bdh+lif.tau=10", "gpt")]


def test_a_killed_comparison_goes_on_and_leaves_finished_runs_alone(tmp_path: Path) -> None:
    def kill(found: Comparison) -> None:
        if sum(len(c.runs) for c in found.contenders) == 2:
            raise KeyboardInterrupt

    settings = asked(tmp_path, seeds="7,8")
    with pytest.raises(KeyboardInterrupt):
        quiet(settings, after=kill)
    assert not (settings.out_dir / "bdh" / "seed-8").exists()
    done = [settings.out_dir / name / "seed-7" for name in ("bdh", "gpt")]
    before = [content(path) for path in done]
    assert all(before)
    found = quiet(settings)
    assert [content(path) for path in done] == before
    assert [sorted(c.losses) for c in found.contenders] == [[7, 8], [7, 8]]
    again = quiet(settings, after=lambda _: pytest.fail("nothing was left to do"))
    assert again.contenders == found.contenders
    more = quiet(asked(tmp_path, seeds="7,8", variants="gpt"))
    assert more.contenders[0].losses == found.contenders[1].losses


def test_other_terms_need_another_directory(tmp_path: Path) -> None:
    quiet(asked(tmp_path, variants="bdh"))
    before = content(tmp_path)
    for values, words in (
        ({"max_steps": 5}, "max_steps"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"model_size": "2m"}, "model_size"),
        ({"max_steps": None, "minutes": 1.0}, "minutes"),
    ):
        with pytest.raises(ValueError, match=words):
            quiet(asked(tmp_path, **{"variants": "bdh"} | values))
    with pytest.raises(ValueError, match="another text"):
        compare(asked(tmp_path, variants="bdh"), Console(quiet=True), corpus=corpus(TEXT[::-1]))
    assert content(tmp_path) == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        quiet(asked(tmp_path, out_dir=tmp_path / "thesis"))


def test_minutes_become_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = {"bdh": 0.5, "gpt": 1.0}
    monkeypatch.setattr(plan, "_seconds_per_step", lambda variant, *_: pace[variant.name])
    settings = asked(tmp_path, max_steps=None, minutes=0.1)
    found = quiet(settings)
    assert [c.train["max_steps"] for c in found.contenders] == [12, 6]
    assert found.equality == "equal time: about 0.1 min of training per run"
    pace.update(bdh=9.0, gpt=9.0)
    again = quiet(asked(tmp_path, max_steps=None, minutes=0.1, seeds="7,8"))
    assert [c.train["max_steps"] for c in again.contenders] == [12, 6]
    assert [e.step for e in again.contenders[0].runs[1].evaluations] == [0, 10, 12]


def test_a_run_that_diverges_is_told_and_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = runs.fit_peer

    def failing(peer, text, config, *rest):
        result = train(peer, text, config, *rest)
        if config.seed == 8:
            raise NonFiniteError("step 3: loss nan")
        return result

    monkeypatch.setattr(runs, "fit_peer", failing)
    found = quiet(asked(tmp_path, seeds="7,8,9"))
    ours, peer = found.contenders
    assert sorted(peer.losses) == [7, 9]
    assert found.difference(peer).n == 2
    assert found.notes[0] == "gpt, seed 8: step 3: loss nan"
    assert "failed" in write_report(found, tmp_path / "r.html").read_text()
    assert ours.best.n == 3


def test_figures_are_those_of_the_runs(tmp_path: Path) -> None:
    settings = asked(tmp_path, variants="bdh,hatching+n_layer=2,gpt", seeds="7,8", block_size=32)
    found = quiet(settings, command="bdh compare <b>")
    ours, spiking, peer = found.contenders
    assert ours.parameters == bdh.preset("nano").n_parameters
    assert 0.95 < peer.parameters / ours.parameters < 1.05
    assert (ours.train["learning_rate"], peer.train["learning_rate"]) == (4e-3, 1e-3)
    lines = (settings.out_dir / "bdh" / "seed-7" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    losses = [r["val_loss"] for r in records if "val_loss" in r]
    assert ours.losses[7] == min(losses)
    assert [p.step for p in ours.curve()] == [0, 4]
    both = [run.evaluations[-1].loss for run in ours.runs]
    last = ours.curve()[-1]
    assert (last.mean, last.low, last.high) == (pytest.approx(sum(both) / 2), min(both), max(both))
    assert peer.curve("x") == []
    assert spiking.mean("x") < 0.5 * ours.mean("x")
    saved = bdh.load(settings.out_dir / "hatching+n_layer=2" / "seed-8")
    assert saved.config == bdh.preset("nano", variant="hatching", n_layer=2)
    difference = found.difference(spiking)
    assert difference.mean == pytest.approx(spiking.best.mean - ours.best.mean)

    page = write_report(found, tmp_path / "report.html").read_text()
    assert f"{ours.best.mean:.4f} ± {ours.best.half_width:.4f}" in page
    assert f"{abs(difference.mean):.4f} ± {difference.half_width:.4f}" in page
    assert f"{peer.parameters:,}" in page
    assert "equal tokens: 4 steps, 256 tokens per run" in page
    assert "bdh compare &lt;b&gt;" in page
    assert not re.search(r"<script|https?:|\{\{", page)
    drawings = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]
    assert [len(d.findall(".//polyline")) for d in drawings] == [3, 3, 0, 2, 2]
    assert len(drawings[2].findall("circle")) == 6

    out = io.StringIO()
    print_comparison(found, Console(width=80, file=out))
    table = out.getvalue()
    assert "…" not in table
    assert f"{ours.best.mean:.4f} ± {ours.best.half_width:.4f}" in table
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["contenders"][0]["best_val_loss"]["n"] == 2


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    found = quiet(asked(tmp_path, variants="bdh"))
    assert found.contenders[0].best.half_width is None
    page = write_report(found, tmp_path / "r.html").read_text()
    assert f'<td class="num">{found.contenders[0].best.mean:.4f}</td>' in page


def test_curves_stay_inside_and_ticks_are_round() -> None:
    assert ticks(1.52, 1.71) == [1.55, 1.6, 1.65, 1.7]
    points = [(0.0, 5.5, 5.5, 5.5), (10.0, 2.0, 1.9, 2.1), (20.0, 1.5, 1.4, 1.6)]
    picture = chart([Line("a<b", 3, points)], title="loss", x_label="steps", late=True)
    line = ElementTree.fromstring(re.search(r"<svg.*</svg>", picture, re.S)[0]).find(".//polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert places[0][1] < 0 < places[1][1] < places[2][1] < 260  # the start lies above, the rest inside
    assert [x for x, _ in places] == [52, 300, 548]
    assert "nothing to draw" in chart([Line("a", 0, [])], title="loss", x_label="steps")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_a_mistake_is_one_line_and_makes_nothing(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("--variants", "hatchling"), ("--seeds", "x"), ("--minutes", 0), ("--variants", "bdh+lif.tua=1")):
        assert run("compare", *words) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_and_writes_everything(tmp_path: Path, capsys) -> None:
    (tmp_path / "cats.txt").write_bytes(TEXT)
    words = ("compare", "--variants", "bdh", "--data", tmp_path / "cats.txt", "--seeds", "3", "--max-steps", 2)
    batch = ("--batch-size", 2, "--block-size", 16, "--eval-windows", 2)
    assert run(*words, *batch, "--out-dir", tmp_path / "out", "--json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["contenders"][0]["runs"][0]["seed"] == 3
    assert found["command"].startswith("bdh")
    assert "report: " in printed.err
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
