"""What each loss is divided by: its targets in a batch, whatever loss it is."""

from __future__ import annotations

from collections.abc import Callable

from speechzoo.types import SpeechBatch

Objective = Callable[[SpeechBatch], int]
"""Counts the targets of one loss in a batch, on one process."""


def supervised_tokens(batch: SpeechBatch) -> int:
    """Answer tokens and their end tokens: the targets of next-token cross entropy."""
    return int((batch.turns > 0).sum())


def target_units(batch: SpeechBatch) -> int:
    """Units of all answers that have some: the targets of CTC."""
    return 0 if batch.unit_lens is None else int(batch.unit_lens.sum())
