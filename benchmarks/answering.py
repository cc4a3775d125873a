"""Can a small model be taught a skill in minutes, and what does it forget meanwhile?

The skill is to say the opposite of a word. Every question is a word in one of many wordings, made of parts; held out
are whole wordings, and of the others a fifth of the pairs of wording and word. An answer counts if it is exact, end
token included.

    python benchmarks/answering.py --model runs/nano --replay input.txt [--lora-rank 8] [--no-replay]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import tempfile
import time
import zlib
from pathlib import Path

from bdh import checkpoint
from bdh.config import FINETUNING, TrainConfig
from bdh.data import load_corpus, load_examples
from bdh.data.prepare import Settings, prepare
from bdh.finetune import answers, finetune
from bdh.lowrank import add_low_rank
from bdh.train import Reporter, Run

PAIRS = (
    "hot cold,big small,up down,left right,day night,black white,old new,fast slow,high low,rich poor,wet dry,good bad,"
    "open shut,light dark,long short,hard soft,happy sad,early late,near far,full empty,sweet sour,strong weak,"
    "thick thin,wide narrow,love hate,war peace,life death,east west,north south,true false"
)
OPPOSITES = {a: b for pair in PAIRS.split(",") for a, b in (pair.split(), pair.split()[::-1])}
OPENINGS = ("", "Please: ", "Question: ", "Tell me: ", "Well, ", "Now ", "Friend, ")
ASKS = (
    "what is the opposite of {}?",
    "say the opposite of {}.",
    "which word is contrary to {}?",
    "{}: what is its opposite?",
    "give me the word that is not {}.",
    "the opposite of {}?",
)
WORDINGS = tuple(opening + ask for opening in OPENINGS for ask in ASKS)
HELD_OUT = 5
"""One in so many."""


def is_held_out(thing: str) -> bool:
    """Tell by hash, the same at every run."""
    return zlib.crc32(thing.encode()) % HELD_OUT == 0


def questions() -> dict[str, list[dict[str, str]]]:
    """Return instructions with answers: to learn from, of held-out wordings, and other held-out questions."""
    rows: dict[str, list[dict[str, str]]] = {"train": [], "wordings": [], "questions": []}
    for wording, word in itertools.product(WORDINGS, OPPOSITES):
        instruction = wording.format(word)
        kind = "wordings" if is_held_out(wording) else "questions" if is_held_out(instruction) else "train"
        rows[kind].append({"instruction": instruction, "output": OPPOSITES[word]})
    return rows


def main() -> None:
    """Make the questions, teach, ask, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--replay", required=True, help="text that the model was trained on")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--replay-share", type=float, default=0.5)
    parser.add_argument("--no-replay", action="store_true")
    parser.add_argument("--lora-rank", type=int)
    parser.add_argument("--seed", type=int, default=1337)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = questions()
        (folder / "skill").mkdir()
        for split, rows in (("train", made["train"]), ("validation", made["wordings"] + made["questions"])):
            (folder / "skill" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        directory = prepare(str(folder / "skill"), Settings(out_dir=folder / "data", template="short"))
        started = time.perf_counter()
        base = load_corpus("base", data=args.replay)
        load = functools.partial(load_examples, directory, FINETUNING["block_size"])
        corpus = load() if args.no_replay else load(replay=base, replay_share=args.replay_share)
        model = checkpoint.load(args.model)
        if args.lora_rank:
            add_low_rank(model, args.lora_rank, seed=args.seed)
        settings = {
            "max_steps": args.steps,
            "batch_size": args.batch_size,
            "learning_rate": args.learning_rate,
            "eval_interval": 200,
            "seed": args.seed,
        }
        run = Run(folder / "run")
        tuned = finetune(
            model, corpus, TrainConfig(**FINETUNING | settings), run, Reporter(), base=base, base_block=128
        )
        answering = checkpoint.load(run.path)
        asked = list(answers(answering, corpus.tokenizer, list(corpus.held_out), corpus.end, max_new_tokens=20))
        right = [expected == said for _, expected, said in asked]
        of_wordings, of_questions = right[: len(made["wordings"])], right[len(made["wordings"]) :]
        seconds = time.perf_counter() - started
    for prompt, expected, said in asked[::50]:
        print(repr(prompt), "->", repr(said), "expected", repr(expected))
    exact = {name: [sum(found), len(found)] for name, found in (("wordings", of_wordings), ("questions", of_questions))}
    print(json.dumps({"exact": exact, "seconds": round(seconds), **tuned.to_dict()}))


if __name__ == "__main__":
    main()
