"""The command line as a user meets it: what works, and one clear line for what does not."""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import bdh
from bdh import TrainConfig
from bdh.arguments import pretrain_defaults
from bdh.cli import main
from bdh.data import train_bpe

GOLDEN = Path(__file__).parent / "golden"
SHAPE = ("--n-layer", "2", "--n-embd", "16", "--n-head", "2", "--mlp-mult", "8")
LOOP = ("--block-size", "16", "--batch-size", "4", "--warmup-steps", "2", "--eval-interval", "5")
SMALL = [*SHAPE, *LOOP, "--save-every", "5", "--eval-windows", "4", "--max-steps", "10"]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "cats.txt"
    file.write_text("the cat sat on the mat. " * 60)
    return file


@pytest.fixture
def trained(text: Path, tmp_path: Path) -> Path:
    assert run("train", "--data", text, "--out-dir", tmp_path / "run", *SMALL) == 0
    return tmp_path / "run"


def test_train_says_what_it_does(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--data", text, "--out-dir", tmp_path / "run", *SMALL) == 0
    out = capsys.readouterr().out
    assert "14,336 parameters, 128 neurons, 2 levels; 1,296 bytes of cats" in out
    assert "step 10 of 10 done: best validation" in out
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["model"]["n_embd"] == 16
    assert facts["train"]["max_steps"] == 10
    (first,) = facts["commands"]
    assert first["environment"]["packages"]["torch"] == torch.__version__
    assert first["command"][0]


def test_train_json_is_the_last_line_of_stdout(text: Path, tmp_path: Path, capsys) -> None:
    assert run("train", "--data", text, "--out-dir", tmp_path / "r", "--json", *SMALL) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == 10
    assert result["best_val_loss"] < 5.6


def test_resuming_takes_settings_from_the_run_and_flags_override(trained: Path, capsys) -> None:
    assert run("train", "--resume-from", trained, "--max-steps", 15) == 0
    assert "step 15 of 15 done" in capsys.readouterr().out
    facts = json.loads((trained / "run.json").read_text())
    assert facts["model"]["n_embd"] == 16
    assert facts["train"]["block_size"] == 16


def test_auto_resume_starts_or_goes_on(text: Path, tmp_path: Path, capsys) -> None:
    words = ("train", "--data", text, "--out-dir", tmp_path / "r", "--resume-from", "auto")
    assert run(*words, *SMALL) == 0
    assert run(*words) == 0
    assert capsys.readouterr().out.count("step 10 of 10 done") == 2


def test_what_does_not_fit_a_run_is_told(trained: Path, capsys) -> None:
    for flags, said in (
        (("--n-embd", 32, "--lif.tau", 2.0), "n_embd was 16, not 32, lif.tau was None, not 2.0; keep these to resume"),
        (("--max-steps", 5), "is beyond max_steps=5: expected more than 10 to go on"),
    ):
        assert run("train", "--resume-from", trained, *flags) == 2
        assert said in capsys.readouterr().err


def test_pretrain_goes_on_with_a_run_of_train_as_it_began(text: Path, tmp_path: Path, capsys) -> None:
    words = ("--data", text, "--out-dir", tmp_path / "r", *SHAPE)
    assert run("train", *words, "--max-steps", 3) == 0  # else with the settings of its size
    facts = json.loads((tmp_path / "r" / "run.json").read_text())
    facts["train"] |= {"max_steps": TrainConfig().max_steps}  # as if it had been stopped
    (tmp_path / "r" / "run.json").write_text(json.dumps(facts))
    assert pretrain_defaults(["pretrain", "--resume-from", str(tmp_path / "r")]).train.batches == "windows"
    assert pretrain_defaults(["pretrain", "--data", str(text)]).train.batches == "streams"


def test_a_short_training_shortens_its_warm_up_and_says_so(text: Path, tmp_path: Path, capsys) -> None:
    assert run("train", "--data", text, "--out-dir", tmp_path / "r", *SHAPE, "--block-size", 16, "--max-steps", 4) == 0
    assert "warm-up of 100 steps shortened to 2, half of the training" in capsys.readouterr().out


def test_a_run_on_a_relative_path_resumes_from_anywhere(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", "--data", text.name, "--out-dir", "r", *SMALL) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("train", "--resume-from", "../r", "--max-steps", 12) == 0


def test_a_refused_resume_leaves_the_run_as_it_was(trained: Path, capsys) -> None:
    before = (trained / "run.json").read_text()
    for wrong in (("--batch-size", 8), ("--n-layer", 3), ("--block-size", 100_000), ("--out-dir", trained / "x")):
        assert run("train", "--resume-from", trained, *wrong) == 2
    assert (trained / "run.json").read_text() == before
    assert run("train", "--resume-from", trained, "--max-steps", 12) == 0
    assert len(json.loads((trained / "run.json").read_text())["commands"]) == 2


def test_nothing_is_made_for_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (("--resume-from", "typo"), ("--dataset", "shakespear"), ("--data", text, "--block-size", 10**6)):
        assert run("train", *words) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats.txt"]


def test_a_run_inside_a_run_is_its_own(trained: Path, text: Path) -> None:
    words = ("train", "--data", text, "--out-dir", trained / "sub", "--resume-from", "auto", "--max-steps", 1)
    assert run(*words, "--warmup-steps", 0, "--eval-windows", 1) == 0
    assert bdh.load(trained / "sub").config == bdh.preset("nano")


def test_a_model_replaces_a_model_and_nothing_else(tmp_path: Path, trained: Path) -> None:
    source = GOLDEN / "community_checkpoint.pt"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    for target in (tmp_path / "thesis", trained, tmp_path / "cats.txt"):
        assert run("convert", source, target) == 2
    assert (tmp_path / "thesis" / "thesis.txt").read_text() == "years of work"
    assert (trained / "run.json").exists()
    for _ in range(2):
        assert run("convert", source, tmp_path / "model") == 0


def test_a_state_of_other_weights_is_refused(tmp_path: Path, capsys) -> None:
    config = bdh.BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8)
    for seed in (1, 2):
        bdh.save(bdh.BDH.from_seed(config, seed), tmp_path / str(seed))
    memory = tmp_path / "memory"
    assert run("generate", "--model", tmp_path / "1", "--save-state", memory, "--max-new-tokens", 1) == 0
    assert run("generate", "--model", tmp_path / "1", "--state", memory, "--max-new-tokens", 1) == 0
    assert run("generate", "--model", tmp_path / "2", "--state", memory, "--max-new-tokens", 1) == 2
    assert "state of another model" in capsys.readouterr().err


def test_the_copied_command_is_quoted(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["inspect", "--model", str(trained), "--text", "$(touch X)'", "--html", str(tmp_path / "r.html")]
    monkeypatch.setattr(sys, "argv", ["bdh", *words])
    assert run(*words) == 0
    import html
    import shlex

    page = html.unescape((tmp_path / "r.html").read_text())
    assert shlex.join(["bdh", *words]) in page


def test_the_version_is_told(capsys) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"bdh {bdh.__version__}\n"


def test_epochs_are_turned_into_steps(text: Path, tmp_path: Path, capsys) -> None:
    assert run("train", "--data", text, "--out-dir", tmp_path / "r", *SMALL[:-2], "--max-epochs", 0.5) == 0
    # 1,296 training bytes, 64 per step
    assert "step 10 of 10 done" in capsys.readouterr().out


def test_generate_continues_the_prompt(trained: Path, capsys) -> None:
    capsys.readouterr()
    words = ("generate", "--model", trained, "--prompt", "the", "--max-new-tokens", 20, "--seed", 1)
    assert run(*words) == 0
    first = capsys.readouterr().out
    assert first.startswith("the")
    assert run(*words, "--json") == 0
    assert "the" + json.loads(capsys.readouterr().out)["text"] + "\n" == first


def test_generate_ends_where_a_document_ends(trained: Path, tmp_path: Path, capsys) -> None:
    model = bdh.load(trained)
    likely = bytes(model.generate(torch.tensor([list(b"the cat")]), 12, temperature=0)[0, 7:].tolist())
    last = likely[-1]
    with torch.no_grad():  # say the separator instead of it
        model.lm_head[:, [0, last]] = model.lm_head[:, [last, 0]]
    bdh.save(model, tmp_path / "ending")
    assert run("generate", "--model", tmp_path / "ending", "--prompt", "the cat", "--temperature", 0) == 0
    assert capsys.readouterr().out.removesuffix("\n") == "the cat" + likely.partition(bytes([last]))[0].decode()


def test_a_saved_state_stands_for_its_text(trained: Path, tmp_path: Path, capsys) -> None:
    memory = tmp_path / "memory.safetensors"
    greedy = ("--max-new-tokens", 20, "--temperature", 0)
    assert run("generate", "--model", trained, "--prompt", "the cat", "--save-state", memory, *greedy) == 0
    capsys.readouterr()
    assert run("generate", "--model", trained, "--prompt", " sat", "--state", memory, *greedy) == 0
    continued = capsys.readouterr().out
    assert run("generate", "--model", trained, "--prompt", "the cat sat", *greedy) == 0
    assert "the cat" + continued == capsys.readouterr().out


def test_inspect_prints_and_writes_a_report(trained: Path, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    report = tmp_path / "report.html"
    assert run("inspect", "--model", trained, "--text", "the mat", "--html", report) == 0
    assert str(report) in capsys.readouterr().out
    assert "<!doctype html>" in report.read_text().lower()[:100]
    assert run("inspect", "--model", trained, "--text", "the mat", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) > 3


def test_probe_lists_prints_and_writes(trained: Path, tmp_path: Path, capsys) -> None:
    assert run("probe", "--list") == 0
    assert "love " in capsys.readouterr().out
    words = ("probe", "love", "kinship", "--model", trained, "--neurons", 3, 100)
    assert run(*words, "--out", tmp_path / "found") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "love: none passes. The nearest of the 4 tested neurons, neuron" in out
    assert "false discovery rates over 8 tests" in out
    assert {file.name for file in (tmp_path / "found").iterdir()} >= {"concept-love-neurons-1.svg", "probe.json"}
    assert run(*words, "--json") == 0
    probes = json.loads(capsys.readouterr().out)["probes"]
    assert [one["concept"] for one in probes] == ["love", "kinship"]
    assert probes == json.loads((tmp_path / "found" / "probe.json").read_text())["probes"]


def test_a_report_has_the_model_the_text_and_files(trained: Path, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    out, files = tmp_path / "report.html", tmp_path / "figures"
    words = ("lens", "report", "--model", trained, "--text", "the mat", "--out", out)
    assert run(*words, "--files", files, "--json") == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["report"] == str(out)
    assert sorted(told["files"]) == sorted(str(path) for path in files.iterdir())
    assert {"overview-1.png", "raster-1.svg", "telling-1.parquet", "words-1.csv"} <= {p.name for p in files.iterdir()}
    assert "done" in captured.err
    page = out.read_text(encoding="utf-8")
    assert 'id="overview"' in page
    assert "sha256" in page


def test_convert_and_use_a_community_checkpoint(tmp_path: Path, capsys) -> None:
    assert run("convert", GOLDEN / "community_checkpoint.pt", tmp_path / "m") == 0
    assert bdh.load(tmp_path / "m").config.n_layer == 2
    assert run("generate", "--model", GOLDEN / "community_checkpoint.pt", "--max-new-tokens", 3) == 0


def test_eval_scores_what_was_held_out(trained: Path, text: Path, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    assert run("eval", "--model", trained, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["text"]["part"], found["bits"]["bytes"]) == ("validation split", 143)
    assert (found["bits"]["block_size"], found["bits"]["stride"], found["tokenizer"]) == (16, 16, "bytes")
    # the run's own validation scores windows too, all but what is left at the end
    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["bits"]["bits_per_byte"]["mean"] == pytest.approx(last["val_bits_per_byte"], abs=0.3)
    (tmp_path / "other.txt").write_text("a dog lay by the door. " * 20)
    (tmp_path / "q.jsonl").write_text('{"prompt": "the cat", "choices": [" sat", "qqqq"], "answer": 0}\n')
    words = ("--data", tmp_path / "other.txt", "--block-size", 4, "--stride", 2, "--by-position", "--device", "cpu")
    words += ("--needle", "--needle-distances", 0, 30, "--needle-count", 3, "--needle-facts", 1)
    assert run("eval", "--model", trained, *words, "--choices", tmp_path / "q.jsonl") == 0
    out = capsys.readouterr().out
    for said in (
        "windows of 4 bytes, stride 2",
        "whole text",
        "tokens: bytes",
        "of a training window",
        "1 fact, a filler",
        "guesses",
    ):
        assert said in out


def test_questions_alone_need_no_text(trained: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "q.jsonl").write_text('{"prompt": "the cat", "choices": [" sat", "qqqq"], "answer": 0}\n')
    capsys.readouterr()
    assert run("eval", "--model", trained, "--choices", tmp_path / "q.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"model", "tokenizer", "choices", "seconds"}
    assert found["choices"]["chance"] == 0.5


def test_a_model_of_other_tokens_is_converted_with_them(tmp_path: Path, text: Path, capsys) -> None:
    words = train_bpe(iter([text.read_bytes()]), 270)
    config = bdh.BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, vocab_size=words.vocab_size)
    weights = {f"_orig_mod.{name}": tensor for name, tensor in bdh.BDH.from_seed(config, 0).state_dict().items()}
    torch.save({"model": weights, "config": {"n_layer": 1}, "arch": "bdh"}, tmp_path / "theirs.pt")
    (tmp_path / "theirs.json").write_text(words.definition())
    assert run("convert", tmp_path / "theirs.pt", tmp_path / "m", "--tokenizer", tmp_path / "theirs.json") == 0
    capsys.readouterr()
    assert run("eval", "--model", tmp_path / "m", "--data", text, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokenizer"] == "tokenizer.json"
    assert found["bits"]["tokens"] < found["bits"]["bytes"] <= 1440
    assert run("eval", "--model", tmp_path / "theirs.pt", "--data", text, "--max-bytes", 50) == 0
    assert "does not say what its" in capsys.readouterr().err
    assert (
        run("convert", GOLDEN / "community_checkpoint.pt", tmp_path / "n", "--tokenizer", tmp_path / "theirs.json") == 2
    )
    assert "give the tokenizer that it was trained with" in capsys.readouterr().err


def test_doctor_tells_versions(capsys) -> None:
    assert run("doctor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["packages"]["torch"] == torch.__version__


MISTAKES = [
    ("", "Expected one of {train, pretrain, finetune, sft, generate, chat, inspect, probe, lens, eval, prepare, plan,"),
    ("fly", "unknown command 'fly'"),
    ("trian", "did you mean train?"),
    ("train --learnin-rate 3", "did you mean --learning-rate"),
    ("train --learning-rate fast", "--learning-rate 'fast': expected a number (see bdh train --help)"),
    ("train --n-layer 1.5", "--n-layer '1.5': expected an integer (see"),
    ("train --schedule round", "--schedule 'round': expected one of constant, cosine, linear (see"),
    ("train twice", "bdh train has no place for 'twice' (see"),
    ("finetune --model MODEL --n-layer 3", "bdh finetune has no --n-layer (see bdh finetune --help)"),
    ("finetune --model MODEL --rebuild-data", "bdh finetune has no --rebuild-data (see bdh finetune --help)"),
    (
        "eval --model MODEL --by-positio",
        "bdh eval has no --by-positio (did you mean --by-position? see bdh eval --help)",
    ),
    ("prepare x --max-documents x", "--max-documents 'x': expected an integer (see bdh prepare --help)"),
    ("probe love --neurons a", "--neurons 'a': expected integers (see"),
    ("train --data TEXT --dataset nope", "--data, --dataset: expected one of them; leave the other away"),
    ("plan --data TEXT --dataset shakespeare", "--data, --dataset: expected one of them"),
    ("compare --data TEXT --dataset tiny-shakespeare", "--data, --dataset: expected one of them"),
    ("eval --model MODEL --data TEXT --dataset nope", "--data, --dataset: expected one of them"),
    ("inspect --model MODEL --data TEXT --dataset nope", "--data, --dataset: expected one of them"),
    ("finetune --model MODEL --data TEXT --replay-share 0.9", "--replay-share: expected --replay beside it"),
    ("finetune --model MODEL --data TEXT --lora-alpha 8", "--lora-alpha: expected --lora-rank beside it"),
    ("chat --model MODEL --max-new-tokens -1", "max_new_tokens=-1: expected an integer >= 0"),
    ("train --learning-rate -1", "learning_rate=-1.0: expected a number > 0"),
    ("train --n-embd 10 --n-head 4 --mlp-mult 3", "divisible by 2 * n_head = 8"),
    ("train --sparsity 2", "sparsity=2.0"),
    ("train --variant swan", "variant"),
    ("train --model-size 25M", "did you mean '25m'"),
    ("train --dataset shakespear --out-dir OUT", "shakespeare"),
    ("train --data NOWHERE --out-dir OUT", "NOWHERE"),
    ("train --data EMPTY --out-dir OUT", "EMPTY"),
    ("train --device abacus --data TEXT --out-dir OUT", "abacus"),
    ("train --dtype float16 --device cpu --data TEXT --out-dir OUT", "float16 needs a GPU"),
    ("train --backend native --compile --data TEXT --out-dir OUT", "backend='native': expected auto or composed"),
    ("train --backend tiled --compile", "backend='tiled': expected auto or composed, since compile is on"),
    ("train --block-size 100000 --data TEXT --out-dir OUT", "100000"),
    ("train --resume-from NOWHERE", "no checkpoint there"),
    ("train --out-dir /proc/nowhere --data TEXT", "choose another"),
    ("train --data TEXT --out-dir OUT --max-epochs inf", "--max-epochs inf: expected a number > 0"),
    ("train --data TEXT --out-dir OUT --max-epochs -3", "expected a number > 0"),
    ("train --data TEXT --out-dir OUT --wandb-mode offline", "--wandb-mode: expected a --wandb-project beside it"),
    ("train --data TEXT --out-dir OUT --device cpu:foo", "is not present"),
    ("train --data /dev/null --out-dir OUT", "a device or a pipe"),
    ("train --mlp-mult=0", "mlp_internal_dim_multiplier=0"),
    ("train --resume-from DAMAGED", "the run directory is damaged"),
    ("train --resume-from POINTLESS", "none of 1 checkpoints is whole"),
    ("generate --model MODEL --save-state OUTDIR", "is a directory"),
    ("inspect --model MODEL --data TEXT --html OUTDIR", "expected the name of a file"),
    ("inspect --model MODEL --data TEXT --top 0", "--top 0"),
    ("generate", "--model"),
    ("generate --model NOWHERE", "no checkpoint at"),
    ("generate --model TEXT", "expected a complete .pt file"),
    ("generate --model MODEL --temperature -1", "temperature=-1.0"),
    ("generate --model MODEL --top-p 2", "top_p=2.0"),
    ("generate --model MODEL --prompt=", "prompt is empty"),
    ("generate --model MODEL --state TEXT", "not a saved state"),
    ("inspect --model MODEL --data EMPTY", "EMPTY"),
    ("inspect --model MODEL --data TEXT --text=", "the text is empty"),
    ("probe", "CONCEPT: expected a TOML file, or one or more of body, country"),
    ("probe love", "--model: expected a run directory"),
    ("probe lvoe --model MODEL", "did you mean love?"),
    ("probe TEXT --model MODEL", "not a TOML file"),
    ("probe EMPTY --model MODEL", "half a: missing"),
    ("probe love --model NOWHERE", "no checkpoint at"),
    ("probe love --model MODEL --neurons 4521", "neurons: expected global neuron ids 0..127"),
    ("probe love --model MODEL --levels 7", "levels: expected 0..0, got 7"),
    ("probe love --model MODEL --out TEXT", "expected a directory"),
    ("probe love --model MODEL --synapses --neurons 3", "and kind 'neurons'"),
    ("train --data TEXT --variant swan", "variant='swan': expected one of bdh, hatching, advanced"),
    ("train --data TEXT --lif.tau 0", "lif.tau=0.0: expected a number > 0"),
    ("train --data TEXT --lif.reset hard", "lif.reset='hard': expected lif to be on; set lif.tau (10 is usual)"),
    ("train --data TEXT --lif.tau 10 --lif.rate 1.5", "lif.rate=1.5: expected a number > 0 and < 1"),
    ("train --data TEXT --scale-free.gamma 1", "scale_free.gamma=1.0: expected a number > 1"),
    ("train --data TEXT --dendrites.branches 0", "dendrites.branches=0: expected an integer >= 1"),
    ("train --data TEXT --bcm.kappa 1 --bcm.tau 0.5", "bcm.tau=0.5: expected a number >= 1"),
    ("train --data TEXT --lif.tua 10", "did you mean --lif.tau"),
    ("train --data TEXT --lif.tau 10 --sparsity 0.9", "both decide who fires"),
    ("train --data TEXT --variant hatching --backend native", "expected auto, composed or reference"),
    ("train --data TEXT --rate-weight 1", "expected a model whose neurons spike"),
    ("train --data TEXT --criticality.target 0.98 --block-size 16", "block_size=16: expected more than"),
    ("eval --model NOWHERE", "no checkpoint at"),
    ("eval --model MODEL --data NOWHERE", "found nothing"),
    ("eval --model MODEL --data EMPTY", "at least two bytes"),
    ("eval --model MODEL --data TEXT --stride 0", "--stride 0: expected an integer >= 1"),
    ("eval --model MODEL --data TEXT --block-size 8 --stride 9", "expected 1 .. block_size=8"),
    ("eval --model MODEL --data TEXT --stream --stride 9", "--stream has no windows"),
    ("eval --model MODEL --data TEXT --by-position", "so that a text of 1,440 tokens has 8 blocks"),
    ("eval --model MODEL --choices TEXT", "line 1: not JSON"),
    ("eval --model MODEL --data TEXT --needle --needle-distances -1", "--needle-distances -1: expected integers >= 0"),
    ("eval --model MODEL --data TEXT --needle --needle-count 0", "--needle-count 0: expected an integer >= 1"),
    ("eval --model MODEL --data TEXT --needle --needle-facts 9", "--needle-facts 9: expected 1 .. 8"),
    ("eval --model MODEL --data TEXT --needle-facts 1", "are of needles: add --needle"),
    ("eval --model MODEL --data TEXT --device abacus", "device 'abacus' is not present"),
    ("eval --model TEXT --data TEXT", "nothing in it was run"),
    ("lens fly", "unknown command 'fly'"),
    ("lens report --model MODEL --data TEXT --out OUTDIR", "expected the name of a file"),
    ("lens report --model MODEL --data TEXT --files TEXT", "expected a directory, this is a file"),
    ("lens report --model MODEL --data TEXT --text=", "the text is empty"),
    ("lens report --model NOWHERE", "no checkpoint at"),
    ("convert NOWHERE OUT", "no file at"),
    ("convert GOLDEN OUT --tokenizer NOWHERE", "No such file"),
    ("convert TEXT OUT", "nothing in it was run"),
]


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize(("words", "says"), MISTAKES, ids=[words or "(nothing)" for words, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_exit_code_2(words: str, says: str, tmp_path: Path, text: Path, capsys) -> None:
    (tmp_path / "EMPTY").write_text("")
    (tmp_path / "DAMAGED" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "DAMAGED" / "checkpoints" / "last").write_text("step-1")
    (tmp_path / "DAMAGED" / "run.json").write_text("[]")
    (tmp_path / "POINTLESS" / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "OUTDIR").mkdir()
    named = {name: tmp_path / name for name in ("DAMAGED", "POINTLESS", "OUTDIR")}
    named |= {"GOLDEN": GOLDEN / "community_checkpoint.pt"}
    named |= {"TEXT": text, "EMPTY": tmp_path / "EMPTY", "OUT": tmp_path / "out", "NOWHERE": tmp_path / "NOWHERE"}
    if "MODEL" in words.split():
        config = bdh.BDHConfig(n_layer=1, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8)
        named["MODEL"] = bdh.save(bdh.BDH(config), tmp_path / "MODEL")
    assert run(*(named.get(word, word) for word in words.split())) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("bdh: ")


LOCKED = [
    "generate --model MODEL --save-state LOCKED/s",
    "chat --model MODEL --memory LOCKED/m",
    "inspect --model MODEL --data TEXT --html LOCKED/r.html",
    "lens report --model MODEL --data TEXT --out LOCKED/r.html",
    "lens report --model MODEL --data TEXT --out FREE --files LOCKED/new",
    "lens index --model MODEL --data TEXT --out LOCKED/new",
    "probe love --model MODEL --out LOCKED/new/er",
    "convert GOLDEN LOCKED/new",
]


@pytest.mark.parametrize("words", LOCKED)
def test_a_place_without_rights_is_told_before_the_work(
    words: str, tmp_path: Path, text: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr("bdh.checkpoint.load", work)
    monkeypatch.setattr("bdh.foreign.import_checkpoint", work)
    named = {"MODEL": "model", "TEXT": text, "GOLDEN": GOLDEN / "community_checkpoint.pt"}
    named |= {"FREE": Path(tempfile.gettempdir()) / "bdh-report.html"}
    with locked_directory() as locked:
        assert run(*(named.get(word, word.replace("LOCKED", str(locked))) for word in words.split())) == 2
    err = capsys.readouterr().err
    assert f"{locked}/" in err
    assert "cannot be written (Permission denied): give rights, or choose another place" in err
    assert err.count("\n") == 1


@contextmanager
def locked_directory() -> Iterator[Path]:
    """Give a directory that this process may not write to; where it is root, it is another user meanwhile."""
    mighty = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as above:
        locked = Path(above) / "locked"
        locked.mkdir()
        Path(above).chmod(0o755)
        locked.chmod(0o555)
        if mighty:
            os.seteuid(65534)
        try:
            yield locked
        finally:
            if mighty:
                os.seteuid(0)


@pytest.mark.parametrize("words", ["convert GOLDEN OUT", "generate --model GOLDEN --save-state OUT"])
def test_what_has_no_room_is_told(words: str, tmp_path: Path) -> None:
    """A true failure of the system's write, in a process of its own."""
    named = {"GOLDEN": GOLDEN / "community_checkpoint.pt", "OUT": tmp_path / "out"}
    done = subprocess.run(
        [sys.executable, "-m", "bdh", *(named.get(word, word) for word in words.split())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    why = "cannot be written (File too large): make room or give rights, and try again"
    assert (done.returncode, done.stderr) == (1, f"bdh: {tmp_path / 'out'} {why}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("always:.*is damaged")
def test_a_damaged_checkpoint_is_told_once_and_the_one_before_speaks(trained: Path, capsys) -> None:
    before, newest = sorted((trained / "checkpoints").glob("step-*"))[-2:]
    words = ("--prompt", "the cat", "--max-new-tokens", 8, "--seed", 1)
    assert run("generate", "--model", before, *words) == 0
    expected = capsys.readouterr().out
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert run("generate", "--model", trained, *words) == 0
    captured = capsys.readouterr()
    assert captured.out == expected
    says = "model.safetensors does not have the sum it was written with"
    assert captured.err == f"bdh: warning: {newest} is damaged: {says}; {before.name} is tried\n"
    assert run("generate", "--model", newest, *words) == 2
    assert f"bdh: {newest} is damaged: {says}; use another checkpoint\n" == capsys.readouterr().err


def test_a_run_is_not_overwritten(trained: Path, text: Path, capsys) -> None:
    capsys.readouterr()
    assert run("train", "--data", text, "--out-dir", trained, *SMALL) == 2
    assert "holds a run already: add --resume-from auto" in capsys.readouterr().err


def test_a_loss_that_explodes_is_one_line_and_exit_code_1(text: Path, tmp_path: Path, capsys) -> None:
    words = [*SMALL, "--learning-rate", "1e38", "--grad-clip", "0"]
    assert run("train", "--data", text, "--out-dir", tmp_path / "r", *words) == 1
    err = capsys.readouterr().err
    assert "expected finite numbers" in err or "validation loss" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    ["", *["train", "generate", "inspect", "probe", "lens", "lens report", "eval", "bench", "convert", "doctor"]],
)
def test_help_is_there(command: str, capsys) -> None:
    assert run(*command.split(), "--help") == 0
    assert "bdh" in capsys.readouterr().out


def test_help_shows_the_defaults_of_the_size(capsys) -> None:
    assert run("train", "--model-size", "25m", "--help") == 0
    assert "(default: 256)" in " ".join(capsys.readouterr().out.split())


def test_ctrl_c_saves_and_says_how_to_go_on(text: Path, tmp_path: Path) -> None:
    import signal

    command = [sys.executable, "-m", "bdh", "train", "--data", text, "--out-dir", tmp_path / "r", *SMALL[:-2]]
    process = subprocess.Popen(
        [str(word) for word in (*command, "--max-steps", 100_000)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 5:"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "saved; go on with: bdh train --resume-from" in " ".join(out.split())
    assert "Traceback" not in err
    assert bdh.load(tmp_path / "r").config.n_embd == 16


def test_a_reader_that_leaves_is_no_error(trained: Path) -> None:
    command = f"{sys.executable} -m bdh generate --model {trained} --max-new-tokens 3000 | head -c 10 | wc -c"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
