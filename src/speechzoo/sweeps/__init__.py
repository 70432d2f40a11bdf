"""Sweeps on one machine, from the files that `wandb sweep` takes."""

from speechzoo.sweeps.file import SweepFile, load_sweep
from speechzoo.sweeps.runner import Runner
from speechzoo.sweeps.state import SweepState, Trial

__all__ = ["Runner", "SweepFile", "SweepState", "Trial", "load_sweep"]
