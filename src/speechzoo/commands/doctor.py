"""`speechzoo doctor --config ...`: examines a training run without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from speechzoo.callbacks import Doctor, Preflight
from speechzoo.callbacks.doctor import Examined
from speechzoo.callbacks.of_trainer import callbacks_of, set_callbacks
from speechzoo.commands.training import ZooCLI, run

USAGE = """speechzoo doctor --config FILE [--key value ...] [--doctor.rows N] [--doctor.ignore [NAME,...]] [--json FILE]

Takes the configs and overrides of `speechzoo fit`. Prints what a few conversations teach, and what would make the run
worthless. Exit code 1 if there is an error."""


class WithoutRunning(ZooCLI):
    """Makes model, data and trainer of `fit`, and leaves them alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def main(argv: Sequence[str]) -> int:
    """Examine the run that the arguments describe; returns 1 if there is an error in it."""
    parser = argparse.ArgumentParser("speechzoo doctor", usage=USAGE, allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--json")
    options, rest = parser.parse_known_args(argv)
    if options.help or not rest:
        print(USAGE)
        return 0 if options.help else 2
    cli = run(["fit", *rest], WithoutRunning)
    return int(_examine(cli, options.json))


def _examine(cli: ZooCLI, json: str | None) -> bool:
    """Whether there is an error."""
    trainer, data = cli.trainer, cli.datamodule
    doctor = next(callback for callback in callbacks_of(trainer) if isinstance(callback, Doctor))
    doctor.enabled = doctor.only = doctor.verbose = True
    doctor.json = json or doctor.json
    # Nothing is written but the findings: no logger, no checkpoint, no config.
    set_callbacks(trainer, [doctor, *(one for one in callbacks_of(trainer) if isinstance(one, Preflight))])
    trainer.loggers, trainer.num_sanity_val_steps = [], 0
    for cache in ("feature_cache", "state_cache"):  # filling them may take hours; the path without is looked at
        if hasattr(data, cache):
            setattr(data, cache, None)
    try:
        trainer.fit(cli.model, data)
    except Examined as done:
        return done.examination.failed
    raise ValueError("trainer.max_steps or max_epochs lets this run do no step: there is nothing to examine")
