"""Adaptors: from encoder states to positions of the LLM."""

from speechzoo.adaptors.attention import CrossAttention, QFormer
from speechzoo.adaptors.base import Adaptor
from speechzoo.adaptors.layers import ConcatMLP, Conv, Linear
from speechzoo.adaptors.pooled import MeanPool, StackSwiGLU

__all__ = ["Adaptor", "ConcatMLP", "Conv", "CrossAttention", "Linear", "MeanPool", "QFormer", "StackSwiGLU"]
