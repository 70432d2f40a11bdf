"""Adaptors: from encoder states to positions of the LLM."""

from speechzoo.adaptors.base import Adaptor
from speechzoo.adaptors.layers import ConcatMLP, Conv, Linear

__all__ = ["Adaptor", "ConcatMLP", "Conv", "Linear"]
