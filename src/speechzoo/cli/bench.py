"""`speechzoo bench WHAT`: which measurement runs, and its arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from speechzoo.cli.counts import count, whole
from speechzoo.system.files import keep_inputs
from speechzoo.talk.options import MODEL

SIZES = ("8b", "1b", "mid", "tiny")


@dataclass(frozen=True)
class Bench:
    """A measurement: what it is, its arguments, and what is wrong with them."""

    about: str
    arguments: Callable[[argparse.ArgumentParser], object]
    wrong: Callable[[argparse.Namespace], str | None] = lambda _: None


def _cache(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", type=Path, nargs="+", metavar="RECIPE", help="YAML files of `speechzoo fit`")
    parser.add_argument("--steps", type=count, default=10, help="batches that count")
    parser.add_argument("--warm-up", type=whole, default=2, help="batches before them")


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, help="recipe whose data.train, prompt and batches are looked at too")
    parser.add_argument("--manifest", action="append", help="source whose padding is looked at (may be repeated)")
    parser.add_argument("--tokenizer", help="name or folder of the tokenizer for --manifest; default: bytes")
    parser.add_argument("--max-tokens", type=count, default=8192, help="budget of a batch, in positions")
    parser.add_argument("--frames", type=count, default=5, help="encoder frames (20 ms) for one position")
    parser.add_argument("--records", type=count, default=400, help="of the corpus that is made to time the sources")
    parser.add_argument("--workers", type=whole, default=2)


def _latency(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--questions", required=True, metavar="MANIFEST", help="records with spoken questions")
    parser.add_argument("--limit", type=count, default=20, metavar="N", help="the first so many questions")
    parser.add_argument("--vocoder", metavar="DIR")
    parser.add_argument("--max-new-tokens", type=count, default=64, metavar="N")
    parser.add_argument("--static", action="store_true", help="keys and values in a static cache, see `Decoding`")
    parser.add_argument("--compile", action="store_true", help="the same, its step through torch.compile")
    parser.add_argument("--device")
    parser.add_argument("--trust-code", action="store_true", help="import other people's classes that the model names")
    parser.add_argument("--png", type=Path, help="file for a picture of them (needs matplotlib)")


def _parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="new folder")
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--records", type=count, default=64, help="spoken questions with answers")
    parser.add_argument("--device", help="draws the weights (default: a GPU if there is one)")


def _stream(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens", type=count, nargs="+", default=[128], help="lengths of the answer")
    parser.add_argument("--repeats", type=count, default=5, help="of the offline and the streamed answer")
    again = "of the answer decoded anew at each token; 0: none"
    parser.add_argument("--rerun-repeats", type=whole, default=1, help=again)


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="ways of training, of those in bench/train.py; all")
    parser.add_argument("--repeats", type=count, default=3, help="the least of so many steps counts")
    parser.add_argument("--threads", type=count, help="default: as many as torch takes")


def _stream_wrong(args: argparse.Namespace) -> str | None:
    return "--rerun-repeats is 0 ... repeats" if args.rerun_repeats > args.repeats else None


BENCHES = {
    "cache": Bench("what the caches of frozen states save in the steps of a recipe", _cache),
    "data": Bench("loader throughput of each kind of source, padding of batches", _data),
    "latency": Bench("time to a model's first text, unit and sound, and the paper's", _latency),
    "parts": Bench("random weights of the paper's sizes, for recipes and the others", _parts),
    "stream": Bench("CPU time of a streamed answer over that of the same offline", _stream, _stream_wrong),
    "train": Bench("CPU time and memory of a training step, with and without caches", _train),
}
"""Name -> a measurement; `speechzoo.bench.NAME` holds its `main`, which takes its arguments."""


def usage() -> str:
    """The list of measurements."""
    lines = [f"  {name:<10}{bench.about}" for name, bench in BENCHES.items()]
    return "\n".join(["speechzoo bench WHAT [--json FILE]", "", *lines, "", "speechzoo bench WHAT --help tells more"])


def main(argv: Sequence[str]) -> int:
    """Run a measurement; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = argv
    if name not in BENCHES:
        print(f"speechzoo bench: no measurement {name!r}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    bench = BENCHES[name]
    parser = argparse.ArgumentParser(prog=f"speechzoo bench {name}", description=bench.about)
    bench.arguments(parser)
    if name != "parts":
        parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args(rest)
    if (wrong := bench.wrong(args)) is not None:
        parser.error(wrong)
    figures = [file for key in ("json", "png") if (file := getattr(args, key, None))]
    given = [value for key, value in vars(args).items() if key not in ("json", "png") and value]
    keep_inputs(figures, [str(item) for value in given for item in (value if isinstance(value, list) else [value])])
    return int(import_module(f"speechzoo.bench.{name}").main(args))
