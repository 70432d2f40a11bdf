"""Lightning callbacks: progress with remaining time, answers to fixed questions, throughput and cost of a stage."""

from speechzoo.callbacks.cost import StageCost
from speechzoo.callbacks.progress import StageProgress
from speechzoo.callbacks.samples import SampleTable

__all__ = ["SampleTable", "StageProgress", "StageCost"]
