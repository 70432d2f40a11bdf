"""`speechzoo sweep FILE`: arguments of a sweep on this machine."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from speechzoo.system.terminal import tell_error

if TYPE_CHECKING:
    from speechzoo.sweeps import Runner


def main(argv: Sequence[str]) -> int:
    """Run a sweep; 0 if every trial finished, 1 if some failed or the sweep could not run."""
    args = _parse(argv)
    from speechzoo.sweeps import Runner, load_sweep
    from speechzoo.system.locks import claim

    console = Console()
    try:
        sweep = load_sweep(args.file)
        folder = args.out or Path("checkpoints") / "sweeps" / sweep.name
        if args.dry_run:
            runner = Runner(sweep, folder, args.count, args.seed, args.devices, args.per_trial, args.retry_failed)
            for command in runner.plan():
                print(shlex.join(command))
            return 0
        # Two sweeps in one folder would train into the same checkpoints.
        held = claim(folder, "speechzoo sweep")
        try:
            runner = Runner(sweep, folder, args.count, args.seed, args.devices, args.per_trial, args.retry_failed)
            return _run(runner, console)
        finally:
            held.release()
    except (ValueError, OSError) as error:
        tell_error(error, "speechzoo sweep")
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from here")
        return 130
    return 1


def _run(runner: Runner, console: Console) -> int:
    from speechzoo.sweeps.show import trial_table, watching

    def stop(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with watching(runner, console) as changed:
            trials = runner.run(changed)
    finally:
        signal.signal(signal.SIGTERM, before)
    if not console.is_terminal:
        console.print(trial_table(runner))
    failed = [trial for trial in trials if trial.state == "failed"]
    for trial in failed:
        console.print(f"\n[red]{trial.name} failed with exit code {trial.exit_code}:[/]")
        console.print(trial.error, highlight=False, markup=False)
    console.print(
        f"\n{len(trials) - len(failed)} of {len(trials)} trials finished. Next: speechzoo compare {runner.folder}"
    )
    return 1 if failed else 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="speechzoo sweep",
        description="Run a W&B sweep file on this machine, without W&B's server. What is done is not repeated.",
        allow_abbrev=False,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="the file that `wandb sweep` would take")
    parser.add_argument(
        "--count", type=int, help="most trials in all; random and bayes need it, or run_cap in the file"
    )
    parser.add_argument("--out", type=Path, help="folder of the sweep (checkpoints/sweeps/NAME)")
    parser.add_argument("--seed", type=int, default=0, help="of random and bayes")
    told = "GPU ids to share out to trials, e.g. 0,1,2,3"
    parser.add_argument("--devices", type=lambda text: [i.strip() for i in text.split(",")], default=[], help=told)
    parser.add_argument("--per-trial", type=int, default=1, help="GPUs of one trial; needs --devices")
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again")
    parser.add_argument("--dry-run", action="store_true", help="print the command lines and run nothing")
    return parser.parse_args(argv)
