"""Lightning callbacks: answers, progress with remaining time, fixed questions, cost of a stage."""

from speechzoo.callbacks.cost import StageCost
from speechzoo.callbacks.predictions import AnswerWriter
from speechzoo.callbacks.progress import StageProgress
from speechzoo.callbacks.samples import SampleTable

__all__ = ["AnswerWriter", "SampleTable", "StageProgress", "StageCost"]
