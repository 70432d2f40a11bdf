"""Answers as streams of events, from conversations."""

from speechzoo.generation.conversation import answer, collect, stream, text_deltas

__all__ = ["answer", "collect", "stream", "text_deltas"]
