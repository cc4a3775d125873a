"""`bdh bench` as a user meets it: tables, the document, the chart."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import bdh
from bdh.bench import Column, Learning, Memory, Point, Settings, Table, Timing, plot, terminal
from bdh.cli import main


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = bdh.BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8)
    return bdh.save(bdh.BDH.from_seed(config, 0), tmp_path / "hatchling")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "cats.txt").write_text("the cat sat on the mat. " * 60)
    return tmp_path / "cats.txt"


def test_measures_and_tells_everything(model: Path, text: Path, tmp_path: Path, capsys) -> None:
    chart = tmp_path / "chart.svg"
    words = ("--density", model, "--data", text, "--block-size", 8, "--repeats", 2, "--plot", chart, "--json")
    asked = ("--contenders", "reference", "composed", "gpt2")
    assert run("bench", "train", "decode", *words, *asked) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["settings"]["seed"] == 1337
    assert found["command"].split()[0] == "bdh"
    assert found["machine"]["packages"]["bdh"] == bdh.__version__
    train, decode = found["tables"]
    (point,) = train["points"]
    reference, composed, peer = point["rows"]
    for row in (reference, composed, peer):
        assert len(row["seconds"]) == 2
        assert row["ratio"] == pytest.approx(reference["median_seconds"] / row["median_seconds"])
        assert row["tokens_per_second"] == pytest.approx(8 * 8 / row["median_seconds"])
    assert 0.95 < train["contenders"]["gpt2"]["parameters"] / train["contenders"]["reference"]["parameters"] < 1.05
    assert 0.4 < point["density"]["x"] < 0.6  # the saved model is a random one
    assert [point["position"] for point in decode["points"]] == [None, None, 1000, 100_000]
    far = {row["contender"]: row for row in decode["points"][-1]["rows"]}
    assert "skipped" in far["reference"]
    assert "its window ends" in far["gpt2"]["skipped"]
    assert far["composed"]["median_seconds"] > 0
    assert "hatchling, train, B=8 T=8" in captured.err
    assert "its window ends at 1,024 tokens (at 100,000)" in captured.err
    assert "its window ends at 1,024 tokens" in chart.read_text()


def test_length_and_memory_of_a_model(model: Path, text: Path, capsys) -> None:
    words = ("--density", model, "--data", text, "--block-size", 8, "--repeats", 1, "--contenders", "composed")
    assert run("bench", "length", "memory", *words, "--json") == 0
    training, prompt, memory = json.loads(capsys.readouterr().out)["tables"]
    for table, work in ((training, "train"), (prompt, "prefill")):
        assert [point["tokens"] for point in table["points"]] == [8, 16, 32, 128, 512]
        assert {point["work"] for point in table["points"]} == {work}
    (row,) = memory["points"][0]["rows"]
    # 64 tokens; at least x, rotated x, y and xy of 2 levels with 128 neurons
    assert row["peak_bytes"] > row["kept_bytes"] > 64 * 2 * 4 * 128 * 4


def test_time_to_a_loss(text: Path, capsys) -> None:
    words = ("--data", text, "--batch-size", 2, "--block-size", 16, "--contenders", "reference-kept")
    assert run("bench", "loss", *words, "--target-loss", 4.5, "--json") == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    (row,) = table["points"][0]["rows"]
    (_, first), (seconds, last) = row["curve"]
    assert first > 5 > 4.5 > last
    assert row["steps"] == 50
    assert row["seconds_to_target"] == seconds > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("fly", "invalid choice 'fly' for cases"),
        ("--contenders fly", "--contenders 'fly': expected one of reference,"),
        ("--contenders native-lean", "expected one or more of reference,"),
        ("--model-size 25M", "did you mean 25m?"),
        ("--density plantd", "--density plantd: expected planted, init, or the directory of a trained model"),
        ("--density . --model-size nano", "leave --model-size away"),
        ("--density .", "holds no checkpoint"),
        ("loss --density .", "loss trains from random weights"),
        ("loss --data nowhere.txt", "--data nowhere.txt"),
        ("--repeats 0", "--repeats 0: expected an integer >= 1"),
        ("--batch-size 0", "--batch-size 0: expected an integer >= 1"),
        ("--max-seconds inf", "expected a number > 0"),
        ("--plot chart.jpg", "expected a name that ends with .png, .svg, .pdf"),
        ("--plot nowhere/chart.png", "its folder does not exist"),
    ],
)
def test_a_mistake_gets_one_line_before_anything_is_measured(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("bench", *words.split()) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_chart_without_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run("bench", "--plot", tmp_path / "chart.png") == 2
    assert 'pip install "bdh[bench]"' in capsys.readouterr().err


def test_ctrl_c_ends_the_workers(model: Path, text: Path) -> None:
    words = ["bench", "train", "--density", str(model), "--data", str(text), "--repeats", "100000"]
    # where the tests themselves run in the background, interrupts are ignored, and a child would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, "-m", "bdh", *words, "--contenders", "composed"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("the system does not list the children of a process")
    try:
        deadline = time.monotonic() + 120  # long: a busy machine takes its time to load torch twice
        while not (workers := children.read_text().split()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()  # else a failure here would show in another test
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert workers
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


POINTS = [Point("decode", 1, 64), Point("decode", 1, 512, 100_000)]
DECODE = Table(
    "decode",
    "decode",
    "nano",
    (
        Column(POINTS[0], {"x": 0.2, "xy": 0.05}, {"reference": Timing((0.1,), 2**21), "gpt2": Timing((0.02,), 2**22)}),
        Column(POINTS[1], {"x": 0.2, "xy": 0.05}, {"reference": "reads all", "gpt2": "its window ends"}),
    ),
    {"gpt2": {"parameters": 12_345, "about": "3 layers x 96 wide"}},
)
MEMORY = Table(
    "memory",
    "memory",
    "25m",
    (Column(Point("train", 2, 512), None, {"reference": Memory(2**30, 2**28, 2**29, 1.5), "native": "out of memory"}),),
    {},
)
LOSS = Table(
    "loss",
    "loss",
    "nano",
    (Column(Point("train", 8, 128), None, {"native": Learning(((9.0, 1.89),), 1.9, 50, {"x": 0.2, "xy": 0.04})}),),
    {},
)


def shown(table: Table) -> str:
    console = Console(width=100, file=io.StringIO(), record=True)
    terminal.print_table(table, console)
    return console.export_text()


def test_tables_show_figures_ratios_and_reasons() -> None:
    decode = shown(DECODE)
    assert "100  1.00x" in " ".join(decode.split(" "))
    assert "5.00x" in decode
    assert "12,345 parameters, 3 layers x 96 wide" in decode
    assert "gpt2: its window ends (at 100,000)" in decode
    memory = shown(MEMORY)
    assert "1,024" in memory  # MiB
    assert "512" in memory  # KiB per token: 2^29 bytes over 1,024 tokens
    assert "native: out of memory" in memory
    loss = shown(LOSS)
    assert "9.0" in loss
    assert "20%, 4.0%" in loss


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_chart_is_written(suffix: str, tmp_path: Path) -> None:
    chart = tmp_path / f"chart{suffix}"
    plot.write_plot([DECODE, MEMORY, LOSS], chart, "some machine")
    content = chart.read_bytes()
    if suffix == ".png":
        assert content.startswith(b"\x89PNG")
        assert len(content) > 20_000
    else:
        for words in ("some machine", "decode", "out of memory", "50.0  5.00x", "9.0 s"):
            assert words in content.decode()
    assert [file.name for file in tmp_path.iterdir()] == [chart.name]


def test_settings_are_what_the_flags_are() -> None:
    assert Settings().cases == ("train", "prefill", "decode")
