"""The batch of a training step that is only counted: shapes of one, with fake numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speechzoo.audio import MAX_SAMPLES
from speechzoo.models import SpeechLLM
from speechzoo.types import AUDIO, SpeechBatch, Written

WORDS = 128
"""Tokens of the transcript of a clip of 30 s, for models that read it: some 90 words, spoken fast."""


@dataclass(frozen=True)
class Work:
    """A batch of one device.

    Attributes:
        rows: conversations.
        positions: of the longest of them, its clip among them.
        answer: tokens of each answer.
        units: target units of each answer, where the model speaks.
        encoded, read, taught: whether the encoder's states, the LLM's, or a teacher's come from a cache.
    """

    rows: int
    positions: int
    answer: int
    units: int
    encoded: bool = False
    read: bool = False
    taught: bool = False


def fake_batch(model: SpeechLLM, work: Work, mode: AbstractContextManager[Any]) -> SpeechBatch:
    """A batch of spoken questions, all but the first row a position shorter, so that there is padding.

    Raises:
        ValueError: if a clip and an answer do not fit into the positions.
    """
    lens = torch.full((work.rows,), MAX_SAMPLES)
    frames = int(model.audio_positions(lens)[0])
    length = work.positions - frames + 1  # ids, one of which stands for the clip
    if length < work.answer + 2:
        raise ValueError(
            f"{work.positions} positions are too few for a clip of {frames}, an answer of {work.answer} and a prompt"
        )
    ids = torch.full((work.rows, length), 1)
    ids[:, 0] = AUDIO
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1:, -1] = False
    turns = torch.zeros_like(ids)
    turns[:, length - work.answer :] = 1
    turns[~mask] = 0
    batch = SpeechBatch(ids, mask, turns)
    llm: Any = model.llm
    with mode:
        sound = torch.empty(work.rows, MAX_SAMPLES)
        features = torch.empty(work.rows, 1500, model.encoder.out_dim)
        states = torch.empty(work.rows, work.answer, llm.dim, dtype=next(iter(llm.parameters())).dtype)
    if model.num_units is not None:
        batch.units = torch.arange(work.units).expand(work.rows, -1) % model.num_units
        batch.unit_lens = torch.full((work.rows,), work.units)
        batch.unit_turns = torch.tensor([(row, 1) for row in range(work.rows)])
    if getattr(model, "reads", False):
        batch.written = _written(ids, mask, turns)
        if work.taught:
            batch.written.states = states.flatten(0, 1)[: int((turns > 0).sum())]
    if work.read:
        batch.answer_states, batch.positions = states, torch.full((work.rows,), work.positions)
        batch.answer_state_lens = torch.full((work.rows,), work.answer)
    elif work.encoded:
        heard = model.encoder.out_lens(lens)
        batch.features, batch.feature_lens = features[:, : int(heard.max())], heard
    else:
        batch.audio, batch.audio_lens = sound, lens
    return batch


def _written(ids: Tensor, mask: Tensor, turns: Tensor) -> Written:
    """The same rows with `WORDS` tokens in the clip's place, the first."""

    def grown(x: Tensor, value: Any) -> Tensor:
        return torch.cat([torch.full((len(x), WORDS), value, dtype=x.dtype), x[:, 1:]], dim=1)

    return Written(grown(ids, 1), grown(mask, True), grown(turns, 0))
