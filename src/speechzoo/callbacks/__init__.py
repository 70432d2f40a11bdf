"""Lightning callbacks: progress with remaining time, answers to fixed questions, throughput and cost of a stage."""

from speechzoo.callbacks.progress import StageProgress
from speechzoo.callbacks.samples import SampleTable
from speechzoo.callbacks.throughput import ThroughputMonitor

__all__ = ["SampleTable", "StageProgress", "ThroughputMonitor"]
