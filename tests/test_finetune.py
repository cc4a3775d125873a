"""Fine-tuning end to end: what it changes, what it keeps, what it says, and what it refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import bdh
from bdh import BDH, BDHConfig, TrainConfig
from bdh.checkpoint import load_prompting, resolve
from bdh.cli import main
from bdh.data import Prompting, Template, load_corpus, load_examples, read_documents
from bdh.data.prepare import Settings, prepare
from bdh.data.shards import SPLITS
from bdh.finetune import answers, base_text, bits_per_byte, padding, prepared_examples
from bdh.train import Run
from bdh.train.reading import Reading
from bdh.train.sharing import Copies
from ranks import command, on_ranks
from small_training import CURVE, curve

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "sky": "blue"}
ASKS = ("Colour of {}?", "Which colour has {}?", "Say how {} looks.", "And {}?", "Please, {}?", "{}?")
BASE = "the cat sat on the mat and saw the dog. " * 40
LOOP = [
    "--block-size",
    "96",
    "--batch-size",
    "8",
    "--warmup-steps",
    "5",
    "--eval-interval",
    "40",
    "--log-interval",
    "40",
]
SHORT = [*LOOP, "--max-steps", "60", "--learning-rate", "1e-2"]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its text, and instructions."""
    monkeypatch.chdir(tmp_path)
    Path("base.txt").write_text(BASE)
    rows = [{"instruction": ask.format(thing), "output": said} for ask in ASKS for thing, said in COLOURS.items()]
    Path("colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare("colours.jsonl", Settings(template="short", validation_share=0.25))
    config = BDHConfig(n_layer=2, n_embd=32, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0)
    bdh.save(BDH.from_seed(config, 0), "model")
    return tmp_path


def test_a_model_learns_to_answer(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (
        "finetune",
        "--model",
        "model",
        "--dataset",
        "colours",
        "--replay",
        "base.txt",
        "--replay-share",
        "0.25",
        "--out-dir",
        "tuned",
        *SHORT,
    )
    assert run(*words, "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["answer_bits_per_byte"][0] > 7
    assert found["answer_bits_per_byte"][1] < 1
    # random before: replay teaches the text itself
    assert found["base_bits_per_byte"][1] < found["base_bits_per_byte"][0]
    assert found["cost"] == pytest.approx(found["base_bits_per_byte"][1] / found["base_bits_per_byte"][0] - 1)
    assert load_prompting("tuned") == Prompting("short", 0)
    assert "template short" in captured.err

    # the figures are those of the checkpoint that was left
    model, corpus = bdh.load("tuned"), load_examples(Path("data/colours"), 96)
    base = load_corpus("base", data="base.txt")
    assert bits_per_byte(model, base, 96, 128) == pytest.approx(found["base_bits_per_byte"][1], rel=1e-6)
    nats = count = size = 0
    for one in corpus.held_out:
        idx = torch.tensor([[0, *one.tokens.tolist(), 0]])
        logits = model(idx[:, :-1])[0]
        nats += F.cross_entropy(logits[0, one.prompt :], idx[0, one.prompt + 1 :], reduction="sum").item()
        count, size = count + len(one.tokens) - one.prompt + 1, size + len(one.tokens) - one.prompt
    assert nats / math.log(2) / size == pytest.approx(found["answer_bits_per_byte"][1], rel=1e-4)
    for one, (prompt, expected, said) in zip(
        corpus.held_out[:3], answers(model, corpus.tokenizer, list(corpus.held_out[:3]), 0, 9), strict=True
    ):
        assert (prompt + expected).encode() == bytes(one.tokens)
        ids = torch.tensor([[0, *prompt.encode()]])
        made = model.generate(ids, 9, temperature=0)[0, ids.shape[1] :].tolist()
        assert said.encode() == bytes(made).partition(b"\0")[0]

    assert run(*words) == 2
    assert "holds a run already: add --resume" in capsys.readouterr().err


@pytest.mark.parametrize("how", [(), ("--lora-rank", 2)], ids=["whole", "low rank"])
def test_stopped_and_gone_on_with_is_as_if_it_had_not_been(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: tuple
) -> None:
    words = ("finetune", "--model", "model", "--data", "data/colours", "--replay", "base.txt", *LOOP, *how, "--json")
    schedule = (
        "--warmup-steps",
        2,
        "--schedule",
        "linear",
        "--min-lr-ratio",
        1,
    )  # the same rate, however far it goes
    assert run(*words, *schedule, "--max-steps", 8, "--save-every", 4, "--out-dir", "whole") == 0
    assert run(*words, *schedule, "--max-steps", 6, "--save-every", 3, "--out-dir", "parts") == 0
    shutil.copytree("parts", "without")
    assert run(*words, *schedule, "--max-steps", 8, "--save-every", 4, "--out-dir", "parts", "--resume") == 0
    assert same("whole", "parts")
    assert run(*words, "--out-dir", "parts", "--resume", "--max-examples", 12, "--max-steps", 9) == 2
    assert "was trained on other text" in capsys.readouterr().err
    if how:  # the control: going on from the base alone is noticed
        monkeypatch.setattr("bdh.train.saving.restore_adapter", lambda *_: True)
        assert run(*words, *schedule, "--max-steps", 8, "--save-every", 4, "--out-dir", "without", "--resume") == 0
        assert not same("whole", "without")


def same(*runs: str) -> bool:
    """Whether the last checkpoints of two runs have the same numbers, those of the optimiser too."""
    last = [Run(name).last for name in runs]
    assert None not in last
    one, other = ({file.name: load_file(file) for file in path.glob("*.safetensors")} for path in last if path)
    assert one.keys() == other.keys()
    return all(torch.equal(one[file][name], other[file][name]) for file in one for name in one[file])


def test_a_run_of_low_rank_goes_on_as_it_began_or_not_at_all(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("finetune", "--data", "data/colours", *LOOP, "--max-steps", 6, "--resume")
    low = ("--model", "model", "--lora-rank", 2)
    assert run(*words, *low, "--out-dir", "low") == 0
    assert run(*words, "--model", "model", "--out-dir", "high") == 0
    bdh.save(BDH.from_seed(bdh.load("model").config, 1), "changed")
    for given, says in (
        (("--model", "model", "--out-dir", "low"), "was trained with changes of low rank: give its --lora-rank"),
        ((*low, "--out-dir", "high"), "was trained without --lora-rank: leave it away"),
        ((*low, "--lora-rank", 3, "--out-dir", "low"), "was trained with lora rank 2, not 3: keep it"),
        ((*low, "--lora-alpha", 3, "--out-dir", "low"), "was trained with lora alpha 16.0, not 3.0: keep it"),
        ((*low, "--model", "changed", "--out-dir", "low"), "expected the model that it was trained on"),
        ((*low, "--model", "gone", "--out-dir", "low"), "no checkpoint at gone"),
    ):
        capsys.readouterr()
        assert run(*words, *given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line


def test_an_adapter_makes_its_base_the_tuned_model(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "model", "--data", "data/colours", *LOOP, "--max-steps", 6, "--learning-rate", "1e-2")
    assert run("finetune", *words, "--lora-rank", 2, "--out-dir", "low") == 0
    adapter = resolve(Path("low")) / "adapter.safetensors"
    assert f"the changes alone: {adapter}" in capsys.readouterr().out
    assert adapter.stat().st_size < 0.1 * (adapter.parent / "model.safetensors").stat().st_size
    assert run("convert", "model", "again", "--adapter", adapter) == 0
    tuned, again, before = (bdh.load(name).state_dict() for name in ("low", "again", "model"))
    assert all(torch.equal(tuned[name], again[name]) for name in tuned)
    assert not torch.equal(before["encoder"], again["encoder"])
    assert load_prompting("again") == load_prompting("low") == Prompting("short", 0)
    for source, file, says in (
        ("again", adapter, "changes weights with the hash"),
        ("model", "base.txt", "base.txt is no adapter"),
        ("model", adapter.parent / "model.safetensors", "model.safetensors is no adapter"),
        ("model", "nowhere", "no adapter at nowhere"),
        ("model", "low", "no adapter at low"),
    ):
        capsys.readouterr()
        assert run("convert", source, "other", "--adapter", file) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert run("convert", "model", "other") == 2
    assert "--adapter" in capsys.readouterr().err
    assert not Path("other").exists()


def test_low_rank_changes_the_maps_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sft", "--model", "model", "--data", "data/colours", "--lora-rank", 2, "--out-dir", "low", *SHORT) == 0
    assert "1,920 of 40,960 parameters learn" in capsys.readouterr().out.replace("\n", " ")
    before, after = bdh.load("model").state_dict(), bdh.load("low").state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"encoder", "encoder_v", "decoder"}


def test_files_of_instructions_are_prepared_by_the_way(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"instruction": f"Add 1 to {n}.", "output": str(n + 1)} for n in range(400)]
    Path("add.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("sft", "--model", "model", "--data", "add.jsonl", "--template", "official", *LOOP, "--max-steps", 6)
    assert run(*words, "--block-size", 256, "--max-examples", 50, "--out-dir", "add") == 0
    out = capsys.readouterr().out
    assert "learn 50 examples" in out
    assert "no text of its training is known" in out
    assert "### Response:" in out
    assert load_prompting("add") == Prompting("official", 0)
    assert run("train", "--resume-from", "add") == 2
    assert "add is a run of bdh finetune: go on with" in capsys.readouterr().err
    facts = json.loads(Path("add/run.json").read_text())
    assert facts["examples"]["examples"]["learned"] == 50
    assert facts["tuned_from"] == str(place / "model")


def test_files_of_one_name_are_kept_apart(place: Path) -> None:
    def answers_of(file: str, template: Template | None = None) -> set[str]:
        directory = prepared_examples(None, Path(file), template, place / "model")
        documents = [d for split in SPLITS for d in read_documents(directory, split)]
        return {tokens[prompt:].tobytes().decode() for tokens, prompt in documents}

    def write(file: str, answer: str) -> None:
        rows = [{"instruction": f"Say {n}.", "output": f"{answer} {n}"} for n in range(3)]
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("one/colours.jsonl", "one")  # data/colours is prepared already, from another file
    write("two/colours.jsonl", "two")
    for _ in range(2):
        assert answers_of("one/colours.jsonl") == {"one 0", "one 1", "one 2"}
        assert answers_of("two/colours.jsonl") == {"two 0", "two 1", "two 2"}
    assert answers_of("two/colours.jsonl", "short") == {"two 0", "two 1", "two 2"}
    write("two/colours.jsonl", "three")
    assert answers_of("two/colours.jsonl", "short") == {"three 0", "three 1", "three 2"}
    assert len(list(Path("data").iterdir())) == 5


def test_padding_is_counted(place: Path) -> None:
    corpus = load_examples(Path("data/colours"), 96)
    config = TrainConfig(block_size=96, batch_size=8, max_steps=1, warmup_steps=0)
    (batch,) = corpus.order(config).passes(0)
    width = batch.idx.shape[1]
    padded = sum(width - len(bytes(row.tolist()).rstrip(b"\0")) for row in batch.idx)
    assert padding(corpus, config) == pytest.approx(padded / (8 * width))
    assert padded


def test_the_loss_of_a_step_is_that_of_answers_and_replay_by_their_shares(place: Path) -> None:
    base = load_corpus("base", data="base.txt")
    corpus = load_examples(Path("data/colours"), 96, replay=base, replay_share=0.25)
    model = bdh.load("model")
    config = TrainConfig(block_size=96, batch_size=8, max_steps=1, warmup_steps=0)
    told, replayed = corpus.order(config).passes(5)
    expected = 0.75 * model(told.idx, told.targets)[1] + 0.25 * model(replayed.idx, replayed.targets)[1]
    reading = Reading(Copies(model, config), corpus, config)
    assert sum(loss * weight for loss, weight in reading.losses(5, {})).item() == pytest.approx(expected.item())
    assert reading.tokens == 8 * told.idx.shape[1]


def test_base_text_is_the_one_that_is_known(place: Path) -> None:
    assert base_text(None, None) is None
    assert base_text(None, {"text": {"dataset": "shakespeare", "data": "gone.txt"}}) is None
    found = base_text(None, {"text": {"dataset": "shakespeare", "data": "base.txt"}})
    assert found is not None
    assert len(found.train) + len(found.validation) == len(BASE)


MISTAKES = [
    ("--dataset colours --template newline", "was prepared with the template short, not newline"),
    ("--dataset colours --template chatml", "--template"),
    ("--dataset colours --data data/colours", "expected one of --dataset"),
    ("", "expected one of --dataset"),
    ("--dataset dollly", "did you mean dolly?"),
    ("--data NOWHERE", "NOWHERE"),
    ("--dataset colours --block-size 9", "below 9 tokens in both splits"),
    ("--dataset colours --batches streams", "batches='streams': expected windows"),
    ("--dataset colours --replay nothing", "unknown corpus 'nothing'"),
    ("--dataset colours --replay base.txt --replay-share 1.5", "--replay-share 1.5: expected a number"),
    ("--dataset colours --replay base.txt --batch-size 1", "beside 1 of replay; got 0"),
    ("--dataset colours --lora-rank 99", "lora_rank=99"),
    ("--dataset colours --max-examples 0", "--max-examples 0: expected an integer >= 1"),
]


@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[words or "(nothing)" for words, _ in MISTAKES])
def test_a_mistake_gets_one_line(words: str, says: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("finetune", "--model", "model", "--out-dir", "out", *words.split()) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert not Path("out").exists()


WAYS = {"answers": (), "replay": ("--replay", "base.txt", "--replay-share", 0.25), "low rank": ("--lora-rank", 2)}


@pytest.mark.parametrize("how", WAYS)
def test_processes_that_share_batches_out_learn_what_one_does(place: Path, how: str, capsys) -> None:
    times = ("--max-steps", 8, "--learning-rate", "1e-2", "--warmup-steps", 2, "--eval-interval", 4)
    words = (
        "finetune",
        "--model",
        place / "model",
        "--data",
        place / "data/colours",
        *LOOP,
        *times,
        "--log-interval",
        1,
    )
    words = (*words, *(place / word if word == "base.txt" else word for word in WAYS[how]), "--json", "--out-dir")
    assert run(*words, place / "one") == 0
    alone = json.loads(capsys.readouterr().out)
    first, second = on_ranks(2, command, [*map(str, words), str(place / "two")])
    assert (first[0], *second) == (0, 0, "", ""), (first, second)
    assert "held-out answers" in first[2]
    one, two = curve(place / "one"), curve(place / "two")
    assert len(one) == 11
    assert two == pytest.approx(one, abs=CURVE, rel=0)
    shared = json.loads(first[1])
    for figure in ("answer_bits_per_byte", "base_bits_per_byte"):
        assert shared[figure] == (alone[figure] and pytest.approx(alone[figure], abs=CURVE))
    # the control: a batch whose rows are not all read gives another curve
    assert run(*words, place / "half", "--batch-size", 4) == 0
    assert max(abs(a - b) for a, b in zip(one, curve(place / "half"), strict=True)) > 100 * CURVE


def test_rows_that_cannot_be_shared_out_are_refused(place: Path) -> None:
    words = ["finetune", "--model", "model", "--data", "data/colours", "--replay", "base.txt", "--out-dir", "out"]
    words = [str(place / word) if (place / word).exists() or word == "out" else word for word in words]
    for code, _, errors in on_ranks(2, command, [*words, *LOOP, "--max-steps", "8", "--batch-size", "6"]):
        assert code == 2
        (line,) = [line for line in errors.splitlines() if line.startswith("bdh: ")]
        assert "batch_size=6: expected examples and replay to have multiples of 2 rows each" in line
    assert not (place / "out").exists()
