"""From items to a `SpeechBatch`: padding on either side, nothing cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechzoo.types import IGNORE, SpeechBatch, Written

Side = Literal["left", "right"]


@dataclass
class Item:
    """One conversation, ready to be batched.

    A conversation holds its clips either as `audio` or as cached `features`, in the order of its placeholders; with
    cached `states` of a frozen LLM it needs neither to train.
    """

    id: str
    input_ids: Tensor  # [L] long
    turns: Tensor  # [L] long
    audio: list[Tensor] | None = None  # clips [T]
    features: list[Tensor] | None = None  # clips [F, D]
    units: dict[int, Tensor] = field(default_factory=dict)  # [U] by assistant turn (1, 2, ...)
    states: dict[int, Tensor] | None = None  # [M, H] for each turn in `units`
    positions: int = 0  # length once the clips are spliced in; needed with `states`
    written: tuple[Tensor, Tensor] | None = None  # ids and turns [L'] with transcripts for clips
    read: Tensor | None = None  # [P, H] states that predict the supervised tokens of `written`


def collate(items: Sequence[Item], pad_id: int, padding_side: Side = "right") -> SpeechBatch:
    """Items as one batch.

    Args:
        pad_id: id that fills rows; `attention_mask` and `turns` say where, never the id.
        padding_side: where rows are filled: "right" to train, "left" to generate.

    A batch of text alone has neither `audio` nor `features`; one without units has no `units`, and its cached
    `answer_states`, where items have any, are `[0, 0, 0]`.
    """
    masks = [torch.ones(len(item.input_ids), dtype=torch.bool) for item in items]
    audio, audio_lens = _pad([clip for item in items for clip in item.audio or []], 0.0)
    features, feature_lens = _pad([clip for item in items for clip in item.features or []], 0.0)
    spoken = [(row, turn, units) for row, item in enumerate(items) for turn, units in sorted(item.units.items())]
    units, unit_lens = _pad([units for _, _, units in spoken], IGNORE)
    states, state_lens = _pad([item.states[turn] for item in items if item.states for turn in sorted(item.units)], 0.0)
    cached = any(item.states is not None for item in items)
    if cached and states is None:
        states, state_lens = torch.zeros(0, 0, 0), torch.zeros(0, dtype=torch.long)
    return SpeechBatch(
        input_ids=_rows([item.input_ids for item in items], pad_id, padding_side),
        attention_mask=_rows(masks, False, padding_side),
        turns=_rows([item.turns for item in items], 0, padding_side),
        audio=audio,
        audio_lens=audio_lens,
        features=features,
        feature_lens=feature_lens,
        units=units,
        unit_lens=unit_lens,
        unit_turns=torch.tensor([(row, turn) for row, turn, _ in spoken]) if spoken else None,
        answer_states=states,
        answer_state_lens=state_lens,
        positions=torch.tensor([item.positions for item in items]) if cached else None,
        ids=[item.id for item in items],
        written=_written(items, pad_id),
    )


def _written(items: Sequence[Item], pad_id: int) -> Written | None:
    rows = [item.written for item in items if item.written is not None]
    if not rows:
        return None
    read = [item.read for item in items if item.read is not None]
    masks = [torch.ones(len(ids), dtype=torch.bool) for ids, _ in rows]
    ids, turns = (list(column) for column in zip(*rows, strict=True))
    filled = _rows(ids, pad_id, "right"), _rows(masks, False, "right"), _rows(turns, 0, "right")
    return Written(*filled, torch.cat(read) if read else None)


def _rows(rows: list[Tensor], value: float, side: Side) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)


def _pad(clips: list[Tensor], value: float) -> tuple[Tensor | None, Tensor | None]:
    """Clips one below the other and their lengths; `(None, None)` where there are none."""
    if not clips:
        return None, None
    return pad_sequence(clips, batch_first=True, padding_value=value), torch.tensor([len(clip) for clip in clips])
