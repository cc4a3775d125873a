"""Commands about text: prepare."""

from __future__ import annotations

import shlex
import sys

import tyro
from rich.console import Console

from bdh.cli.shared import json_text
from bdh.data import prepare as preparation
from bdh.data.shards import read_manifest
from bdh.data.terminal import showing


def prepare(
    name: tyro.conf.Positional[str], settings: tyro.conf.OmitArgPrefixes[preparation.Settings], json: bool = False
) -> int:
    """Make a data set ready for training: tokens on disk, in shards that need no memory.

    Args:
        name: tinystories, alpaca, dolly, europarl, owner/name of a Hugging Face data set, or a txt, jsonl, csv or
            parquet file or a directory of such files.
        settings: how.
        json: print the manifest as one JSON line; progress goes to stderr.
    """
    console = Console(stderr=json, highlight=False)
    with showing(console) as told:
        out = preparation.prepare(name, settings, told)
    manifest, _ = read_manifest(out)
    if json:
        print(json_text({"prepared": str(out), **manifest}))
        return 0
    for split, found in manifest["splits"].items():
        text = f"{split:10} {found['documents']:,} documents, {found['text_bytes']:,} bytes, {found['tokens']:,} tokens"
        console.print(text, markup=False, soft_wrap=True)
    if not manifest["tokenizer"]["lossless"]:
        print("bdh: warning: the tokenizer does not keep the text: bits per byte will be too low", file=sys.stderr)
    if zeros := manifest.get("left_away", {}).get("zero_bytes"):
        print(f"bdh: warning: {zeros:,} zero bytes of the text are left away: they separate documents", file=sys.stderr)
    console.print(f"licence: {manifest['source']['licence']}", markup=False, soft_wrap=True)
    console.print(f"train on it with: bdh train --data {shlex.quote(str(out))}", markup=False, soft_wrap=True)
    return 0
