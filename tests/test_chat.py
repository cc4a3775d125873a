"""Conversations: a memory that is the one of reading everything at once, in a file that does not grow."""

import contextlib
import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bdh
from bdh import BDH, BDHConfig
from bdh.chat import Conversation
from bdh.cli import main
from bdh.data import Prompting, fill
from bdh.generate import Sampling, prefill
from tolerances import CONTROL, SAME, error

END = 0
SHORT = Prompting("short", END)
SHAPE = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0)


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return bdh.save(BDH.from_seed(SHAPE, 0), tmp_path / "model", asked=Prompting("newline", END))


def said(turns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(turns))
    assert run("chat", "--max-new-tokens", 8, "--seed", 3, "--json", *words) == 0
    return [json.loads(line)["answer"] for line in capsys.readouterr().out.splitlines()]


class Noted(Sampling):
    """Keeps what was chosen."""

    def choose(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        token = super().choose(logits, generator)
        CHOSEN.append(token.item())
        return token


CHOSEN: list[float] = []


@pytest.mark.parametrize("config", [SHAPE, replace(SHAPE, variant="hatching")], ids=["bdh", "hatching"])
def test_what_is_remembered_is_one_long_reading(config: BDHConfig) -> None:
    model = BDH.from_seed(config, 0)
    talk = Conversation(model, SHORT, sampling=Noted(seed=1))
    text = b"\0"
    for turn in ("Who are you?", "And I?"):
        CHOSEN.clear()
        list(talk.reply(turn, max_new_tokens=12))
        text += fill("short", turn).encode() + bytes(int(token) for token in CHOSEN if token != END) + b"\0"
    whole = prefill(model, torch.tensor([list(text)]))[1]
    assert talk.state.position == whole.position == len(text)
    for mine, expected in zip(talk.state.rho, whole.rho, strict=True):
        assert error(mine, expected) < SAME[torch.float32]
    other = prefill(model, torch.tensor([list(text.replace(b"And", b"Ant"))]))[1]
    assert error(talk.state.rho[0], other.rho[0]) > CONTROL


def test_an_answer_ends_at_the_end_token_which_is_not_said() -> None:
    model = BDH.from_seed(SHAPE, 0)
    with torch.no_grad():
        model.lm_head.zero_()
        model.lm_head[:, END] = 0
    talk = Conversation(model, SHORT, sampling=Sampling(temperature=0))  # of equal logits the first: token 0
    before = talk.state.position
    assert list(talk.reply("Hello", max_new_tokens=50)) == []
    assert talk.state.position == before + len(fill("short", "Hello")) + 1


def test_an_answer_that_is_broken_off_is_remembered_and_an_error_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Conversation(BDH.from_seed(SHAPE, 0), SHORT, sampling=Sampling(seed=0))
    with contextlib.closing(talk.reply("Hello", max_new_tokens=50)) as pieces:
        next(pieces)
    assert talk.state.position > 1 + len(fill("short", "Hello")) + 1
    before = talk.state

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampling, "choose", fail)
    with pytest.raises(KeyboardInterrupt):
        list(talk.reply("Hello again"))
    assert talk.state is before


def test_a_conversation_continues_tomorrow(model: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Two sittings with a memory file say what one sitting says; without the file they do not."""
    greedy = ("--model", model, "--temperature", 0)
    whole = said("My name is Ann.\n\nWho am I?\n", monkeypatch, capsys, *greedy)
    memory = tmp_path / "memory.safetensors"
    first = said("My name is Ann.\n", monkeypatch, capsys, *greedy, "--memory", memory)
    size = memory.stat().st_size
    loaded = bdh.load(model)
    kept = bdh.load_state(memory, loaded)
    assert kept.position == 1 + len(fill("newline", "My name is Ann.")) + 8 + 1, "the stored template is used"
    second = said("Who am I?\n", monkeypatch, capsys, *greedy, "--memory", memory)
    assert first + second == whole
    later = bdh.load_state(memory, loaded)
    assert later.position > kept.position
    assert later.nbytes == kept.nbytes
    assert abs(memory.stat().st_size - size) <= 8, "more than a longer number in the header"
    assert not torch.equal(later.rho[0], kept.rho[0])


@pytest.mark.parametrize(
    ("when", "number", "code"),
    [("waiting", signal.SIGINT, 130), ("waiting", signal.SIGTERM, 0), ("answering", signal.SIGTERM, 0)],
)
def test_a_signal_keeps_the_memory(model: Path, tmp_path: Path, when: str, number: signal.Signals, code: int) -> None:
    memory = tmp_path / "memory"
    most = 5 if when == "waiting" else 1_000_000
    words = ["chat", "--model", model, "--memory", memory, "--max-new-tokens", most, "--seed", 0]
    with subprocess.Popen(
        [sys.executable, "-m", "bdh", *map(str, words), *["--json"] * (when == "waiting")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"Hello\n")
        process.stdin.flush()
        if when == "waiting":
            assert json.loads(process.stdout.readline())["turn"] == "Hello"
            time.sleep(0.1)  # until it is in the middle of a read
        else:
            assert process.stdout.read(1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in errors
    position = bdh.load_state(memory, bdh.load(model)).position
    assert f"{position:,} tokens remembered".encode() in errors
    assert len(fill("newline", "Hello")) + 2 < position < 1_000_000


def test_memory_of_another_model_and_impossible_files_are_refused(
    model: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    said("Hello\n", monkeypatch, capsys, "--model", model, "--memory", tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    other = bdh.save(BDH.from_seed(SHAPE, 1), tmp_path / "other")
    for words, says in (
        (("--model", other, "--memory", tmp_path / "m"), "is the state of another model"),
        (("--model", model, "--memory", tmp_path), "expected the name of a file"),
        (("--model", model, "--memory", tmp_path / "no" / "m"), "expected the name of a file"),
        (("--model", model, "--temperature", -1), "temperature=-1.0"),
    ):
        capsys.readouterr()
        assert run("chat", *words) == 2
        error_text = capsys.readouterr().err.splitlines()
        assert says in error_text[-1]
        assert sum(not line.startswith("bdh: /") for line in error_text) <= 1
    assert (tmp_path / "m").read_bytes() == content


def test_a_model_that_was_not_tuned_is_told_about_and_asked_shortly(tmp_path: Path, capsys, monkeypatch) -> None:
    plain = bdh.save(BDH.from_seed(SHAPE, 0), tmp_path / "plain")
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    assert run("chat", "--model", plain, "--max-new-tokens", 3, "--memory", tmp_path / "m") == 0
    assert "was not fine-tuned" in capsys.readouterr().err
    assert bdh.load_state(tmp_path / "m").position == 1 + len(fill("short", "Hello")) + 3 + 1
    assert run("generate", "--model", plain, "--prompt", "Hello", "--instruct") == 2
    assert "--instruct" in capsys.readouterr().err


def test_generate_puts_an_instruction_into_the_stored_words(model: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (answer,) = said("Sing!\n", monkeypatch, capsys, "--model", model)
    words = ("generate", "--model", model, "--prompt", "Sing!", "--max-new-tokens", 8, "--seed", 3, "--instruct")
    assert run(*words, "--json", "--save-state", tmp_path / "s") == 0
    assert json.loads(capsys.readouterr().out) == {"prompt": "Sing!", "text": answer}
    assert bdh.load_state(tmp_path / "s").position == 1 + len(fill("newline", "Sing!"))
    config = json.loads((model / "config.json").read_text())
    assert (config["template"], config["end_token"]) == ("newline", 0)
    (model / "config.json").write_text(json.dumps(config | {"template": "chatml"}))
    assert run(*words) == 2
    assert "template 'chatml': expected one of" in capsys.readouterr().err
