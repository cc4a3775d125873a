"""The commands, each with the place where it is found and what it is for: none is imported before it is chosen."""

from __future__ import annotations

from bdh.parsing import Command, Group

LENS = Group(
    "Look into a model: neurons, concepts, synapses, memory, wiring.",
    {
        "attention": Command(
            "bdh.cli.lens_logits:attention", "Show how much each byte reads of each byte before it, with its sign."
        ),
        "edit": Command(
            "bdh.cli.lens_state:edit",
            "Take bytes out of a memory, or scale its synapses, and save it: bdh generate --state goes on from there.",
        ),
        "export": Command(
            "bdh.cli.lens_index:export",
            "Write neurons of an index in the form of another program: a JSON file for each.",
        ),
        "find": Command(
            "bdh.cli.lens_labels:find",
            "Find neurons that fire for a word, told apart from other words like it, and say what else they fire for.",
        ),
        "index": Command(
            "bdh.cli.lens_index:index",
            "Read a text once and write down what every neuron does in it; the same command goes on after a stop.",
        ),
        "label": Command(
            "bdh.cli.lens_labels:label",
            'Say in words what neurons fire for, with scores on text that the words were not made from, or "no label".',
        ),
        "ledger": Command(
            "bdh.cli.lens_state:ledger",
            "Say which past bytes a byte read from the memory, exactly, and what they did to a gate.",
        ),
        "logits": Command(
            "bdh.cli.lens_logits:logits",
            "Show what each level would predict after each byte, or which neurons made a logit.",
        ),
        "neuron": Command(
            "bdh.cli.lens_index:neuron",
            "Show what an index knows of a neuron, and with its model also what to call it.",
        ),
        "report": Command(
            "bdh.cli.lens_report:report",
            "Write all that is known of a model and of a text into one page that needs no network.",
        ),
        "state": Command(
            "bdh.cli.lens_state:state",
            "Show what the memory holds while a text is read and how far back it is read, or where two states differ.",
        ),
        "surprise": Command(
            "bdh.cli.lens_logits:surprise",
            "Measure whether levels are quieter where the text is predictable: on repeated random words, or on a text.",
        ),
        "synapses": Command(
            "bdh.cli.lens_state:synapses",
            "Find the synapses that a span of a text strengthened most, or follow one over the text.",
        ),
        "topology": Command(
            "bdh.cli.lens_topology:topology",
            "Show how the neurons are wired: degrees, communities and hubs, beside random graphs of as many edges.",
        ),
    },
)

COMMANDS: dict[str, Command | Group] = {
    "train": Command(
        "bdh.cli.training:train",
        "Train a model on a text and keep everything about the run in one directory.",
        defaults="bdh.arguments:train_defaults",
    ),
    "pretrain": Command(
        "bdh.cli.training:pretrain",
        "Train as the paper does: documents in order, their memory carried on, linear decay, adaptive clipping.",
        defaults="bdh.arguments:pretrain_defaults",
    ),
    "finetune": Command(
        "bdh.cli.tuning:finetune",
        "Teach a trained model to answer instructions: only answers are learned, each example from an empty memory.",
    ),
    "sft": Command("bdh.cli.tuning:sft", "Fine-tune on a few examples, for a first impression."),
    "generate": Command("bdh.cli.speaking:generate", "Continue a text, token by token as it is made."),
    "chat": Command(
        "bdh.cli.speaking:chat",
        "Talk with a model: each line of standard input is a turn, and what was said before is in its memory.",
    ),
    "inspect": Command(
        "bdh.cli.looking:inspect",
        "Show which neurons fire for a text, and what else in the validation text drives them.",
    ),
    "probe": Command(
        "bdh.cli.probing:probe",
        "Find the neurons, or synapses, that stand for a concept, and try to refute each of them.",
    ),
    "lens": LENS,
    "eval": Command(
        "bdh.cli.evaluating:run_eval",
        "Score a model: bits per byte of a text, by position too, recall of facts, multiple choice.",
    ),
    "prepare": Command(
        "bdh.cli.texts:prepare", "Make a data set ready for training: tokens on disk, in shards that need no memory."
    ),
    "plan": Command(
        "bdh.cli.training:plan",
        "Say what a training will take before it is begun: parameters, memory, work, time.",
        defaults="bdh.arguments:plan_defaults",
    ),
    "bench": Command(
        "bdh.cli.measuring:run_bench",
        "Measure this machine: this package beside the released way and beside GPT-2 of equal size.",
    ),
    "compare": Command(
        "bdh.cli.measuring:run_compare",
        "Train variants with several seeds on the same text and tell which are better, by how much, and how surely.",
    ),
    "convert": Command(
        "bdh.cli.speaking:convert",
        "Make a model directory of a .pt file, a sharded checkpoint, or a model and an adapter; no code in them runs.",
    ),
    "doctor": Command("bdh.cli.speaking:doctor", "Show what this machine has and which paths run on it."),
}
