"""`speechzoo bench WHAT`: which measurement runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

BENCHES: dict[str, tuple[str, str]] = {
    "cache": ("speechzoo.bench.cache:main", "what the caches of frozen states save in the steps of a recipe"),
    "data": ("speechzoo.bench.data:main", "loader throughput of each kind of source, padding of batches"),
    "latency": ("speechzoo.bench.latency:main", "time to a model's first text, unit and sound, and the paper's"),
    "parts": ("speechzoo.bench.parts:main", "random weights of the paper's sizes, for recipes and the other benches"),
    "stream": ("speechzoo.bench.stream:main", "CPU time of a streamed answer over that of the same answer offline"),
    "train": ("speechzoo.bench.train:main", "CPU time and memory of a training step, with and without caches"),
}
"""Name -> (`module:function` that takes the arguments after the name and returns an exit code, what it measures)."""


def usage() -> str:
    """The list of measurements."""
    lines = [f"  {name:<10}{what}" for name, (_, what) in BENCHES.items()]
    return "\n".join(["speechzoo bench WHAT [--json FILE]", "", *lines, "", "speechzoo bench WHAT --help tells more"])


def main(argv: Sequence[str]) -> int:
    """Run a measurement; returns the exit code."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] not in BENCHES:
        print(f"speechzoo bench: no measurement {argv[0]!r}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    module, _, function = BENCHES[argv[0]][0].partition(":")
    run: Callable[[Sequence[str]], int] = getattr(import_module(module), function)
    return run(argv[1:])
