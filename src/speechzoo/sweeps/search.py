"""Which setting a sweep tries next: grid, random, or Optuna's search for `bayes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from speechzoo.sweeps.file import SweepFile, Values
from speechzoo.sweeps.space import leaves, nest
from speechzoo.sweeps.state import Trial


class Search(Protocol):
    """Proposes settings."""

    def propose(self, trials: Sequence[Trial]) -> Values:
        """The setting of trial number `len(trials)`."""


class Grid:
    """Every combination once."""

    def __init__(self, sweep: SweepFile) -> None:
        self.combinations = sweep.grid()

    def propose(self, trials: Sequence[Trial]) -> Values:
        return self.combinations[len(trials)]


class Random:
    """Independent draws; trial n of a seed is the same whatever ran before it."""

    def __init__(self, sweep: SweepFile, seed: int) -> None:
        self.parameters, self.seed = leaves(sweep.parameters), seed

    def propose(self, trials: Sequence[Trial]) -> Values:
        rng = np.random.default_rng([self.seed, len(trials)])
        return nest([(path, parameter.draw(rng)) for path, parameter in self.parameters])


class Bayes:
    """Optuna's tree-structured Parzen estimator on the trials so far; W&B's server fits a Gaussian process instead."""

    def __init__(self, sweep: SweepFile, seed: int) -> None:
        self.parameters, self.seed, self.goal = leaves(sweep.parameters), seed, sweep.goal

    def propose(self, trials: Sequence[Trial]) -> Values:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {"/".join(path): parameter.optuna() for path, parameter in self.parameters}
        # A fresh study each time, from what is on disk: a sweep that was killed proposes what it would have proposed.
        sampler = optuna.samplers.TPESampler(seed=self.seed * 100_003 + len(trials), constant_liar=True)
        study = optuna.create_study(direction=self.goal, sampler=sampler)
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


def make_search(sweep: SweepFile, seed: int) -> Search:
    """The search of a sweep's method."""
    if sweep.method == "grid":
        return Grid(sweep)
    return Random(sweep, seed) if sweep.method == "random" else Bayes(sweep, seed)


def _at(tree: Any, path: Sequence[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
