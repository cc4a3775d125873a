"""Training on prepared text: from the shards, with the bits per byte of the text alone, and on tokens of any kind."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bdh
from bdh.checkpoint import load_tokenizer
from bdh.cli import main
from bdh.data import Corpus, CorpusError, TextDecoder, fixed_windows, load_corpus, random_windows, shards
from bdh.data.prepare import Settings, prepare

SHAPE = ("--n-layer", "2", "--n-embd", "16", "--n-head", "2", "--mlp-mult", "8")
LOOP = ("--block-size", "16", "--batch-size", "4", "--warmup-steps", "2", "--eval-interval", "5")
SMALL = [*SHAPE, *LOOP, "--save-every", "5", "--eval-windows", "4", "--max-steps", "10"]
TEXTS = [f"the cat number {number} sat on the mat." for number in range(400)]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def evaluations(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "val_loss" in line]


@pytest.fixture
def cats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return prepare("cats.jsonl", Settings(validation_share=0.1, shard_tokens=3000))


def test_shards_are_mapped_and_give_the_batches_of_their_text(cats: Path) -> None:
    corpus = load_corpus(data=cats)
    assert isinstance(corpus.train, shards.TokenShards)
    assert all(isinstance(part, np.memmap) for part in corpus.train.parts)
    assert isinstance(corpus.validation, np.memmap)
    whole = np.frombuffer(corpus.train.tobytes(), np.uint8)
    for step in range(5):
        of_shards, of_array = (
            random_windows(tokens, seed=0, step=step, batch_size=50, block_size=300) for tokens in (corpus.train, whole)
        )
        assert torch.equal(of_shards[0], of_array[0])
        assert torch.equal(of_shards[1], of_array[1])


def test_training_on_prepared_text(cats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--dataset", "cats", "--out-dir", "by-name", *SMALL) == 0
    assert "bytes of cats to learn" in capsys.readouterr().out
    assert run("train", "--data", cats, "--out-dir", "by-path", *SMALL) == 0
    assert [found["val_loss"] for found in evaluations(tmp_path / "by-name")] == [
        found["val_loss"] for found in evaluations(tmp_path / "by-path")
    ]
    facts = json.loads((tmp_path / "by-name" / "run.json").read_text())
    assert facts["data"]["manifest_sha256"] == shards.read_manifest(cats)[1]
    assert facts["data"]["prepared"] == str(cats.resolve())


def test_a_run_resumes_from_anywhere_and_refuses_other_text(
    cats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "--dataset", "cats", "--out-dir", "run", *SMALL) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("train", "--resume-from", "../run", "--max-steps", 12) == 0
    monkeypatch.chdir(tmp_path)
    prepare("cats.jsonl", Settings(validation_share=0.2, rebuild_data=True))
    assert run("train", "--resume-from", "run", "--max-steps", 14) == 2
    assert "was trained on other text" in capsys.readouterr().err


def test_separators_are_not_scored(tiny: bdh.BDH) -> None:
    text = np.frombuffer(b"\0".join([b"abc", b"defgh", b"ij", b"klmnopqrst", b"u"] * 8), np.uint8)
    plain, prepared = (Corpus("text", text, text, separator=separator) for separator in (None, 0))
    idx, targets = prepared.validation_windows(10, None)
    with torch.no_grad():
        logits, _ = tiny(idx)
        _, loss = tiny(idx, targets)
        _, of_all = tiny(*plain.validation_windows(10, None))
    each = F.cross_entropy(logits.flatten(0, 1), fixed_windows(text, block_size=10)[1].flatten(), reduction="none")
    is_text = fixed_windows(text, block_size=10)[1].flatten() != 0
    assert int((~is_text).sum()) > 0
    torch.testing.assert_close(loss, each[is_text].mean())
    # negative control: with separators the mean is another
    assert abs(float(of_all - loss)) > 1e-3


def test_bits_per_byte_do_not_depend_on_what_a_token_is(cats: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    out = prepare("cats.jsonl", Settings(validation_share=0.1, tokenizer="bpe:300", out_dir=tmp_path / "bpe"))
    corpus = load_corpus(data=out)
    held_out = "".join(text for text in TEXTS if text.encode() in load_corpus(data=cats).validation.tobytes())
    text_tokens = int((np.asarray(corpus.validation) != corpus.separator).sum())
    assert corpus.bytes_per_token == pytest.approx(len(held_out) / text_tokens, rel=1e-12)
    assert run("train", "--data", out, "--out-dir", "run", *SMALL) == 0
    for found in evaluations(tmp_path / "run"):
        bits = found["val_loss"] / math.log(2) / corpus.bytes_per_token
        assert found["val_bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    # before it has learned anything, a model says that all tokens are about as likely
    assert evaluations(tmp_path / "run")[0]["val_loss"] == pytest.approx(math.log(corpus.tokenizer.vocab_size), abs=0.1)


def test_a_model_of_other_tokens_brings_its_tokenizer(
    cats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    out = prepare("cats.jsonl", Settings(validation_share=0.1, tokenizer="bpe:300", out_dir=tmp_path / "bpe"))
    assert run("train", "--data", out, "--out-dir", "run", *SMALL) == 0
    said = capsys.readouterr().out
    assert "tokens of cats to learn" in said
    assert "nats/token" in said
    assert "bits/byte" in said
    vocabulary = load_corpus(data=out).tokenizer.vocab_size
    assert bdh.load("run").config.vocab_size == vocabulary
    config = json.loads((bdh.checkpoint.resolve("run") / "config.json").read_text())
    assert config["tokenizer"] == "tokenizer.json"
    tokenizer = load_tokenizer("run")
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
    assert run("generate", "--model", "run", "--prompt", "the cat", "--max-new-tokens", 8, "--seed", 1, "--json") == 0
    text = json.loads(capsys.readouterr().out)["text"]
    ids = torch.as_tensor(tokenizer.encode("the cat"))[None]
    made = bdh.load("run").generate(ids, 8, temperature=0.8, seed=1)[0, ids.shape[1] :]
    assert text == tokenizer.decode(made)
    assert text != TextDecoder().push(made)
    assert run("train", "--resume-from", "run", "--max-steps", 12) == 0
    assert run("inspect", "--model", "run") == 2
    assert "expected a byte model" in capsys.readouterr().err
    copy = bdh.save(bdh.load("run"), tmp_path / "copy", tokenizer)
    assert load_tokenizer(copy).encode("the cat").tolist() == ids[0].tolist()


def test_a_vocabulary_that_does_not_fit_is_one_line(cats: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("tokenizers")
    out = prepare("cats.jsonl", Settings(validation_share=0.1, tokenizer="bpe:300", out_dir=tmp_path / "bpe"))
    assert run("train", "--data", out, "--out-dir", "run", "--vocab-size", 256, *SMALL) == 2
    error = capsys.readouterr().err
    assert "tokens, the model 256: add --vocab-size" in error
    assert error.count("\n") == 1


def test_what_is_not_prepared_or_damaged_is_one_line(cats: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"tinystories is not prepared in data.tinystories: run bdh prepare tinystories"
    ):
        load_corpus("tinystories")
    with pytest.raises(CorpusError, match="did you mean tinystories"):
        load_corpus("tinystorys")
    file = cats / "train-00001.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorpusError, match=r"train-00001.bin: expected [\d,]+ bytes, found .*--rebuild-data"):
        load_corpus("cats")
    file.unlink()
    with pytest.raises(CorpusError, match="found nothing"):
        load_corpus("cats")
    (cats / "manifest.json").write_text("{}")
    with pytest.raises(CorpusError, match="is not a manifest of format 1"):
        load_corpus("cats")
