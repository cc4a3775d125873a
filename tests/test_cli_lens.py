"""The commands under `bdh lens` about memory and predictions: what they tell, as words, JSON and files."""

import json
from pathlib import Path

import pytest
import torch

import bdh
from bdh import BDH, BDHConfig
from bdh.cli import main
from bdh.lens import diff_states, erase_tokens, logit_lens, sigma

TEXT = "one euro, two euros"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BDHConfig(n_layer=2, n_embd=16, n_head=2, mlp_internal_dim_multiplier=8, dropout=0.0)
    return Path(bdh.save(BDH.from_seed(config, 0), tmp_path_factory.mktemp("lens") / "model"))


COMMANDS = {
    "synapses": ("synapses", "--text", TEXT, "--span", "4:8", "--level", "1", "--top", "3"),
    "pair": ("synapses", "--text", TEXT, "--pair", "3,5"),
    "ledger": ("ledger", "--text", TEXT, "--position", "12", "--neuron", "7"),
    "state": ("state", "--text", TEXT),
    "surprise": ("surprise", "--words", "4"),
    "logits": ("logits", "--text", TEXT),
    "attribute": ("logits", "--text", TEXT, "--attribute", "5", "--token", "e", "--against", "z"),
    "attention": ("attention", "--text", TEXT, "--level", "1"),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_every_command_tells_what_it_is_compared_with_and_writes_files(
    kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *words = COMMANDS[kind]
    assert run("lens", name, "--model", model, *words, "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "Compared with: " in out
    written = [Path(line.removeprefix("written: ")) for line in out.splitlines() if line.startswith("written: ")]
    assert {file.name for file in written} == {file.name for file in (tmp_path / "out").iterdir()}
    assert any(file.suffix == ".csv" for file in written)
    assert run("lens", name, "--model", model, *words, "--json") == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_json_has_what_the_functions_return(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hatchling = bdh.load(model)
    assert run("lens", "logits", "--model", model, "--text", TEXT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["depths"][1][4]["kl"] == pytest.approx(logit_lens(hatchling, TEXT).depths[1][4].kl, rel=1e-4)
    assert run("lens", "ledger", "--model", model, "--text", TEXT, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["position"] == len(TEXT) - 1
    assert sum(map(sum, found["parts"])) == pytest.approx(found["total"], rel=1e-4)


def test_a_memory_is_edited_compared_and_gone_on_from(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hatchling = bdh.load(model)
    file, edited = tmp_path / "read.safetensors", tmp_path / "edited.safetensors"
    assert run("generate", "--model", model, "--prompt", "My name is ", "--save-state", file, "--seed", 1) == 0
    words = ("--state", file, "--text", "Juliet.", "--erase", "11:17", "--scale", "3,5,0.5", "--levels", "1")
    assert run("lens", "edit", "--model", model, *words, "--save-state", edited) == 0
    out = capsys.readouterr().out
    assert "Taken out, or never written" in out
    assert f"bdh generate --model {model} --state {edited}" in out
    before = bdh.load_state(file, hatchling)
    expected = erase_tokens(hatchling, hatchling.as_ids("Juliet."), range(11, 17), before, layers=[1])
    got = bdh.load_state(edited, hatchling)
    assert torch.allclose(got.rho[0], expected.rho[0])
    assert torch.allclose(sigma(hatchling, got, 1, 3, [4, 5]), 0.5 * sigma(hatchling, expected, 1, 3, [4, 5]))
    assert run("lens", "state", "--model", model, "--state", file, "--other", edited, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    cosine = diff_states(hatchling, before, got).levels[1].cosine
    assert found["levels"][1]["cosine"] == pytest.approx(cosine, rel=1e-4)
    assert run("lens", "state", "--model", model, "--state", file, "--text", "Juliet.") == 0
    assert "After 11 and 18 tokens." in capsys.readouterr().out
    assert run("generate", "--model", model, "--state", edited, "--prompt", "I", "--max-new-tokens", 3) == 0


def test_a_memory_of_pairs_of_tokens_is_shown_without_what_single_tokens_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "mlp_internal_dim_multiplier": 8}
    config = BDHConfig.from_dict({**shape, "stdp": {"form": "trace"}})
    where = bdh.save(BDH.from_seed(config, 0), tmp_path / "model")
    assert run("lens", "state", "--model", where, "--text", TEXT, "--json") == 0
    assert json.loads(capsys.readouterr().out).keys() == {"energy"}
    assert run("lens", "ledger", "--model", where, "--text", TEXT) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "stdp.form='trace'" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("edit", "--save-state", "x", "--erase", "1:2"), "--erase: expected --text too"),
        (("edit", "--save-state", "x", "--scale", "1,2"), "expected --text or --state"),
        (("edit", "--save-state", "x", "--text", "ab"), "nothing to change"),
        (("edit", "--save-state", "x", "--text", "ab", "--erase", "1:9"), "--erase 1:9: expected first:end with 0 <="),
        (("edit", "--save-state", "x", "--text", "ab", "--scale", "1,2,3,4"), "gate,neuron,factor"),
        (("edit", "--save-state", "x", "--text", "ab", "--scale", "1,2,..5"), "gate,neuron,factor"),
        (("state", "--other", "x"), "expected --text, or --state with --other or --text"),
        (("synapses", "--span", "3"), "--span 3: expected first:end with 0 <= first < end <= 18"),
        (("synapses", "--pair", "3"), "--pair 3: expected gate,neuron such as 12,47"),
        (("synapses", "--pair", "3,5", "--span", "1:2"), "expected one of them"),
        (("logits", "--token", "e"), "expected with --attribute POSITION"),
        (("logits", "--attribute", "2", "--token", "é"), "one character of one byte"),
        (("surprise", "--words", "0"), "words=0"),
        (("attention", "--text", ""), "expected one text"),
        (("surprised",), "did you mean surprise?"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *more = words
    assert run("lens", name, "--model", model, *more) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
