"""`speechzoo list`, `show`, `pull` and `publish`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from speechzoo.names.published import CARD, entry, index, published
from speechzoo.parts.registry import PARTS, check_cached, fetch, find_cached

FIRST = ("wer", "exact_match", "unit_error_rate", "asr_wer")  # of the results, in the table's last column


def list_main(argv: Sequence[str]) -> int:
    """`speechzoo list`: every model the zoo knows; returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo list", description=list_main.__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="the whole index, for programs")
    args = parser.parse_args(argv)
    if args.json:
        told = {name: {**about, "shelf": str(about["shelf"])} for name, about in index().items()}
        print(json.dumps(told, indent=2, ensure_ascii=False))
        return 0
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("name", "architecture", "MB"):
        table.add_column(title, no_wrap=True)
    for title in ("what it is", "measured"):
        table.add_column(title)
    for name, about in index().items():
        size = f"{about['megabytes']}" if "files" in about else "–"
        table.add_row(name, about["architecture"], size, escape(about["about"]), _brief(about))
    Console().print(table)
    print("\nspeechzoo show NAME tells all; a name stands wherever a run folder does: speechzoo ask NAME question.wav")
    return 0


def _brief(about: dict[str, Any]) -> str:
    found = {result["metric"]: result["value"] for result in reversed(about.get("results", []))}
    told = [f"{metric.replace('_', ' ')} {found[metric]:.1%}" for metric in FIRST if metric in found]
    return ", ".join(told) or "not run here"


def show_main(argv: Sequence[str]) -> int:
    """`speechzoo show NAME`: what the index holds of a model, and its card; returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo show", description=show_main.__doc__, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME")
    args = parser.parse_args(argv)
    about = entry(args.name)
    rows = {key: value for key, value in about.items() if key not in ("files", "parts", "results", "training")}
    for key, value in {"name": args.name, **rows}.items():
        print(f"{key:<14}{value}")
    for part in about.get("parts", {}):
        state = "here" if find_cached(part) else f"{PARTS[part].megabytes} MB to fetch"
        print(f"{'part':<14}{part}: {PARTS[part].what} ({PARTS[part].licence}; {state})")
    for file, digest in about.get("files", {}).items():
        print(f"{'file':<14}{about['shelf'] / args.name / file}  sha256 {digest}")
    for stage, cost in about.get("training", {}).items():
        rows = {key.replace("_", " "): value if isinstance(value, str) else f"{value:,}" for key, value in cost.items()}
        told = ", ".join(f"{key} {value}" for key, value in rows.items())
        print(f"{'training':<14}{stage}: {told}")
    for result in about.get("results", []):
        between = f" [{result['low']:.4f}, {result['high']:.4f}]" if "low" in result else ""
        print(f"{'result':<14}{result['metric']} {result['value']:.4f}{between} on {result['data']}")
        print(f"{'':<14}  {result['command']}")
    if "files" in about:
        print(f"\n{(published(args.name) / CARD).read_text(encoding='utf-8').split('---', 2)[2].strip()}")
    return 0


def pull_main(argv: Sequence[str]) -> int:
    """`speechzoo pull NAME`: fetch the parts of a model and check all hashes; returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo pull", description=pull_main.__doc__, allow_abbrev=False)
    parser.add_argument("names", nargs="+", metavar="NAME")
    args = parser.parse_args(argv)
    for name in args.names:
        folder, about = published(name), entry(name)
        for part in about["parts"]:
            fetch(part)
            check_cached(part)
        print(f"{name}: {folder}, {len(about['files'])} files as they were published, and {len(about['parts'])} parts")
        if "vocoder" in about:
            pull_main([about["vocoder"]])
    return 0


def publish_main(argv: Sequence[str]) -> int:
    """`speechzoo publish RUN NAME`: write a trained model, its card and its index entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo publish", description=publish_main.__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, help="run folder of the last stage, or of a vocoder")
    parser.add_argument("name", metavar="NAME", help="lower-case letters, digits, '.', '_' and '-'")
    parser.add_argument("--to", type=Path, help="folder with the index (default: $SPEECHZOO_ZOO, else the zoo's own)")
    parser.add_argument("--about", required=True, help="one sentence")
    parser.add_argument("--recipe", required=True, help="the command that trained it")
    told = "results: what the questions were, and answers of `predict`, `test` or the quickstart"
    parser.add_argument("--answers", nargs=2, action="append", default=[], metavar=("DATA", "FILE.jsonl"), help=told)
    parser.add_argument("--command", default="", help="that measured them (default: the recipe)")
    parser.add_argument("--text", type=Path, help="Markdown for the card: sections Data and Limits")
    parser.add_argument("--dataset", action="append", default=[], help="for the card; may be repeated")
    parser.add_argument("--task", default="question-answering", help="the hub's name of what was measured")
    parser.add_argument("--licence", default="apache-2.0")
    parser.add_argument("--vocoder", metavar="NAME", help="published vocoder of the model's units")
    parser.add_argument("--units", type=Path, metavar="FILE", help="of a vocoder: the k-means of its units")
    args = parser.parse_args(argv)
    from speechzoo.zoo.records import publish

    folder = publish(args)
    print(f"{folder}: published; `speechzoo show {args.name}`")
    return 0
