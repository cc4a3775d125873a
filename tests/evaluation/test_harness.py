"""A model in lm-evaluation-harness: the same figures as this package's own, on a task of its kind."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

import bdh
from bdh import BDH
from bdh.data import ByteTokenizer
from bdh.evaluation import loglikelihoods, multiple_choice, read_questions
from bdh.evaluation.harness import Answers, register

QUESTIONS = [
    {"prompt": "The cat sat on the", "choices": [" mat", " moon", " 7"], "answer": 0},
    {"prompt": "Snow is", "choices": [" hot", " white"], "answer": 1},
    {"prompt": "One, two,", "choices": [" three", " blue", " ten thousand"], "answer": 0},
]


@pytest.fixture
def saved(tiny: BDH, tmp_path: Path) -> Path:
    return bdh.save(tiny, tmp_path / "model")


def ask(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_scores_are_those_of_the_model(saved: Path, tiny: BDH) -> None:
    answers = Answers(str(saved))
    pairs = [(b"ab", b"c"), (b"ab", b"cde"), (b"x", b"y")]
    got = answers._loglikelihood_tokens([(None, list(a), list(b)) for a, b in pairs])
    assert got == loglikelihoods(tiny, pairs)
    (whole,) = answers.loglikelihood_rolling([ask("hello")])
    assert whole == loglikelihoods(tiny, [([0], b"hello")])[0][0]


def test_generation_stops_and_is_greedy(saved: Path, tiny: BDH) -> None:
    answers = Answers(str(saved))
    (text,) = answers.generate_until([ask("The cat", {"max_gen_toks": 12})])
    ids = tiny.generate(tiny.as_ids("The cat"), 12, temperature=0)[0, 7:]
    assert text == ByteTokenizer().decode(ids)
    stop = text[3:5]
    (cut,) = answers.generate_until([ask("The cat", {"until": [stop], "max_gen_toks": 12})])
    assert cut == text[: text.index(stop)]


def test_without_the_harness_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    register.cache_clear()
    with pytest.raises(ValueError, match=r'pip install "bdh\[eval\]"'):
        register()


def test_a_task_of_the_harness_gives_the_same_figures(saved: Path, tiny: BDH, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="in an environment of its own: make harness")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    register()
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "the cat sat"}) + "\n" + json.dumps({"text": "on the mat and slept"}) + "\n")
    source = "dataset_path: json\ndataset_kwargs: {{data_files: {{test: {}}}}}\ntest_split: test\n"
    (tmp_path / "choices.yaml").write_text(
        "task: own_choices\noutput_type: multiple_choice\n"
        + source.format(questions)
        + 'doc_to_text: "{{prompt}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\n'
        + 'target_delimiter: ""\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n'
    )
    (tmp_path / "texts.yaml").write_text(
        "task: own_texts\noutput_type: loglikelihood_rolling\n"
        + source.format(texts)
        + 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]\n'
    )
    found = simple_evaluate(
        model="bdh",
        model_args={"model": str(saved)},
        tasks=["own_choices", "own_texts"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    ours = multiple_choice(tiny, ByteTokenizer(), read_questions(questions))
    assert found["own_choices"]["acc,none"] == ours.accuracy
    # the harness divides by characters, which are bytes here
    assert found["own_choices"]["acc_norm,none"] == ours.accuracy_per_byte
    pairs = [([0], b"the cat sat"), ([0], b"on the mat and slept")]
    nats = -sum(score for score, _ in loglikelihoods(tiny, pairs))
    assert found["own_texts"]["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / 31, rel=1e-9)
