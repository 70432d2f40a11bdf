"""What one GPU does with the papers' sizes: `python benchmarks/gpu.py --budget 600 --out FOLDER`.

The most valuable step comes first. After each a line goes to FOLDER/results.jsonl and a row to FOLDER/table.md, so that
a run that is cut off still tells. A step runs in a process of its own, with what is left of the budget as its limit;
one that fails or runs out of memory is recorded with its last lines, and the next goes on. Weights are random, drawn on
the device; nothing is downloaded. `--size tiny` runs every step on a CPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from gpu_steps import Options, steps


def child(work: Callable[[], dict[str, Any]], file: Path, log: Path) -> None:
    """Run a step in this process, a fork; what it found, or how it failed, goes to a file."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    try:
        found = work()
    except BaseException as error:
        traceback.print_exc()
        memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
        text = (str(error).splitlines() or [""])[0][:300]
        found = {"failed": f"{'out of memory: ' if memory else ''}{type(error).__name__}: {text}"}
    file.write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def run_step(name: str, work: Callable[[], dict[str, Any]], limit: float, out: Path) -> dict[str, Any]:
    """A step's figures, within so many seconds."""
    file, log = out / f"{name}.json", out / f"{name}.log"
    with suppress(FileNotFoundError):
        file.unlink()
    start = time.perf_counter()
    process = multiprocessing.get_context("fork").Process(target=child, args=(work, file, log))
    process.start()
    process.join(limit)
    found: dict[str, Any]
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        found = {"failed": f"ran past {limit:.0f} s"}
    elif file.is_file():
        found = json.loads(file.read_text())
    else:
        found = {"failed": f"ended by itself with {process.exitcode}"}
    if "failed" in found and log.is_file():
        found["last"] = log.read_text(errors="replace").splitlines()[-15:]
    return {"step": name, "wall_seconds": round(time.perf_counter() - start, 1), **found}


def row(found: dict[str, Any]) -> str:
    """A line of the table: the numbers of a step, without nested ones."""
    apart = ("step", "wall_seconds", "last", "report", "profile")
    shown = {key: value for key, value in found.items() if key not in apart}

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key}: {text(inner)}" for key, inner in value.items())
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = "; ".join(f"{key} {text(value)}" for key, value in shown.items() if value is not None)
    return f"| {found['step']} | {found['wall_seconds']} | {cells.replace('|', '/')} |"


def append(file: Path, line: str) -> None:
    """Add a line, and see that it is on the disk."""
    with file.open("a", encoding="utf-8") as stream_:
        stream_.write(line + "\n")
        stream_.flush()
        os.fsync(stream_.fileno())


def machine(size: str) -> dict[str, Any]:
    """Card and versions, asked of other processes: a CUDA context would not survive a fork."""
    import transformers

    card = "cpu"
    if size == "full":
        asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        with suppress(OSError):
            card = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or card
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__}
    versions["processor"] = platform.processor() or platform.machine()
    return {"step": "machine", "wall_seconds": 0, "card": card, **versions}


def main() -> int:
    """Run the steps; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=600, help="seconds in all")
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl, table.md, trace and logs")
    parser.add_argument("--size", choices=("tiny", "full"), default="full")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--official", type=Path, metavar="FOLDER", help="the official code, with a time_generate.py")
    parser.add_argument("--train", nargs="+", default=[], metavar="ARG", help="for every training step")
    options = parser.parse_args()
    began = time.monotonic()
    full = options.size == "full"
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    told = Options(options.size, out, options.official, options.train, 64 if full else 12, 5 if full else 1)
    todo = steps(told)
    if unknown := set(options.only or ()) - set(todo):
        parser.error(f"no step {sorted(unknown)[0]!r}; there are {', '.join(todo)}")
    lines = [machine(options.size)]
    if not (out / "table.md").exists():
        append(out / "table.md", "| step | seconds | figures |\n|---|---:|---|")
    append(out / "table.md", row(lines[0]))
    append(out / "results.jsonl", json.dumps(lines[0]))
    failed = False
    for name, (most, work) in todo.items():
        if options.only and name not in options.only:
            continue
        left = options.budget - (time.monotonic() - began)
        if left < 10:
            found = {"step": name, "wall_seconds": 0.0, "failed": "no time left"}
        else:
            found = run_step(name, work, min(most, left), out)
        failed = failed or "failed" in found or found.get("exit_code", 0) != 0
        append(out / "results.jsonl", json.dumps(found))
        append(out / "table.md", row(found))
        print(row(found), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
