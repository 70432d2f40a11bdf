"""`speechzoo doctor --config ...`: examines a training run without training."""

from __future__ import annotations

from collections.abc import Sequence

from speechzoo.callbacks import Doctor, Preflight
from speechzoo.callbacks.doctor import Examined
from speechzoo.callbacks.of_trainer import callbacks_of, set_callbacks
from speechzoo.commands.training import ZooCLI, run


class WithoutRunning(ZooCLI):
    """Makes model, data and trainer of `fit`, and leaves them alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def examine(arguments: Sequence[str], json: str | None) -> bool:
    """Look at the run that arguments of `fit` describe; returns whether there is an error in it.

    Args:
        json: file for the findings.
    """
    cli = run(["fit", *arguments], WithoutRunning)
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
