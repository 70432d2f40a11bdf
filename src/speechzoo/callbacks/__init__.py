"""Lightning callbacks: answers, progress with remaining time, fixed questions, cost and memory of a stage."""

from speechzoo.callbacks.alarms import AllBlank, DeadPart, ExplodingNorms
from speechzoo.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from speechzoo.callbacks.cost import StageCost
from speechzoo.callbacks.doctor import Doctor
from speechzoo.callbacks.exact_resume import ExactResume
from speechzoo.callbacks.free_frozen import FreeFrozen
from speechzoo.callbacks.guards import NonFiniteGuard
from speechzoo.callbacks.predictions import AnswerWriter
from speechzoo.callbacks.preemption import Preemption
from speechzoo.callbacks.preflight import Preflight
from speechzoo.callbacks.progress import StageProgress
from speechzoo.callbacks.samples import SampleTable
from speechzoo.callbacks.watchdog import Watchdog

__all__ = [
    "AllBlank",
    "AnswerWriter",
    "BestCheckpoint",
    "DeadPart",
    "Doctor",
    "ExactResume",
    "ExplodingNorms",
    "FreeFrozen",
    "LastCheckpoint",
    "NonFiniteGuard",
    "Preemption",
    "Preflight",
    "SampleTable",
    "StageCost",
    "StageProgress",
    "Watchdog",
]
