"""Which setting a sweep tries next: drawn at random, or found by Optuna's search for `bayes`; a grid has a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from speechzoo.sweeps.file import SweepFile, Values
from speechzoo.sweeps.space import leaves, nest
from speechzoo.sweeps.state import Trial


def drawn(sweep: SweepFile, seed: int, number: int) -> Values:
    """An independent draw; trial n of a seed is the same whatever ran before it."""
    rng = np.random.default_rng([seed, number])
    return nest([(path, parameter.draw(rng)) for path, parameter in leaves(sweep.parameters)])


def searched(sweep: SweepFile, seed: int, trials: Sequence[Trial]) -> Values:
    """What Optuna's tree-structured Parzen estimator proposes after the trials so far; W&B's server fits a Gaussian
    process instead."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {"/".join(path): parameter.optuna() for path, parameter in leaves(sweep.parameters)}
    # A fresh study each time, from what is on disk: a sweep that was killed proposes what it would have proposed.
    sampler = optuna.samplers.TPESampler(seed=seed * 100_003 + len(trials), constant_liar=True)
    study = optuna.create_study(direction=sweep.goal, sampler=sampler)
    for trial in trials:
        params = {name: _at(trial.values, name.split("/")) for name in space}
        done = trial.state == "finished" and trial.metric is not None
        state = optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.RUNNING
        if trial.state == "failed" or (trial.state == "finished" and not done):
            state = optuna.trial.TrialState.FAIL
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=params, distributions=space, value=trial.metric if done else None
            )
        )
    asked = study.ask(space)
    return nest([(tuple(name.split("/")), asked.params[name]) for name in space])


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
