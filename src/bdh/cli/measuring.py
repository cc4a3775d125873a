"""Commands that measure and compare: bench, compare."""

from __future__ import annotations

import functools
import shlex
import sys
from pathlib import Path

import tyro
from rich.console import Console

from bdh import bench
from bdh import compare as comparing
from bdh.cli.shared import corpus_of, json_text


def run_bench(settings: tyro.conf.OmitArgPrefixes[bench.Settings], json: bool = False, plot: Path | None = None) -> int:
    """Measure this machine: this package beside the released way and beside GPT-2 of equal size.

    Args:
        settings: what to measure.
        json: print all figures with every repetition as one JSON document; tables go to stderr.
        plot: draw a bar chart to this .png, .svg or .pdf file.
    """
    bench.check(settings, plot)
    text = corpus_of(settings.run, None, settings.data).validation.tobytes() if settings.run else None
    command = shlex.join(["bdh", *sys.argv[1:]])
    found = bench.report(settings, text, Console(stderr=json, highlight=False), command=command, plot=plot)
    if json:
        print(json_text(found))
    return 0


def run_compare(settings: tyro.conf.OmitArgPrefixes[comparing.Settings], json: bool = False) -> int:
    """Train variants with several seeds on the same text and tell which are better, by how much, and how surely.

    Args:
        settings: what to compare.
        json: print all figures of every run as one JSON document; all else goes to stderr.
    """
    console = Console(stderr=json, highlight=False)
    report = settings.out_dir / "report.html"
    command = shlex.join(["bdh", *sys.argv[1:]])
    write = functools.partial(comparing.write_report, path=report)
    try:
        found = comparing.compare(settings, console, command=command, after=write)
    except comparing.Stopped as stop:
        console.print("stopped; the same command goes on", markup=False)
        return 0 if stop.args[0] == "SIGTERM" else 130
    write(found)
    comparing.print_comparison(found, console)
    console.print(f"report: {report.resolve()}", markup=False, soft_wrap=True)
    if json:
        print(json_text(found.to_dict()))
    return 0
