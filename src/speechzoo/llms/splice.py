"""Puts the frames of clips where their placeholders stand, for a whole batch at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from speechzoo.types import AUDIO


class Spliced(NamedTuple):
    """A spliced batch; S is the longest row."""

    embeds: Tensor  # [B, S, H], 0 where masked
    mask: Tensor  # [B, S]
    ids: Tensor  # [B, S], AUDIO at speech frames, 0 where masked
    turns: Tensor  # [B, S]
    position_ids: Tensor  # [B, S], counted over real positions only


def splice(
    text: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    turns: Tensor,
    speech: Tensor,
    speech_lens: Tensor,
    padding_side: str = "right",
) -> Spliced:
    """Replace the n-th placeholder of the batch by the frames of clip n.

    Padding may stand on either side of a row, or between its tokens; it is squeezed out and set anew on `padding_side`,
    so that a row's real positions do not depend on its neighbours. One synchronisation with the device (the width S).

    Args:
        text: `[B, L, H]` embeddings of `input_ids` (any value at placeholders).
        speech, speech_lens: `[N, A, H]`, `[N]`.

    Raises:
        ValueError: if there are not as many placeholders as clips.
    """
    b, _, h = text.shape
    is_clip = (input_ids == AUDIO) & attention_mask
    if int(is_clip.sum()) != speech.shape[0]:
        raise ValueError(f"{int(is_clip.sum())} audio placeholders in the batch, but {speech.shape[0]} clips")
    widths = attention_mask.long()
    if speech.shape[0]:
        widths = widths.masked_scatter(is_clip, speech_lens.to(widths))
    ends = widths.cumsum(dim=1)
    lens, starts = ends[:, -1], ends - widths
    size = int(lens.max())
    if padding_side == "left":
        starts = starts + (size - lens)[:, None]
    rows = torch.arange(b, device=text.device)[:, None].expand_as(input_ids)

    embeds = text.new_zeros(b, size, h)
    ids = input_ids.new_zeros(b, size)
    new_turns = turns.new_zeros(b, size)
    is_text = attention_mask & ~is_clip
    where = (rows[is_text], starts[is_text])
    embeds = embeds.index_put(where, text[is_text])
    ids[where], new_turns[where] = input_ids[is_text], turns[is_text]
    if speech.shape[0]:
        steps = torch.arange(speech.shape[1], device=text.device)
        inside = steps < speech_lens[:, None]
        frame_rows = rows[is_clip][:, None].expand_as(inside)[inside]
        frame_positions = (starts[is_clip][:, None] + steps)[inside]
        embeds = embeds.index_put((frame_rows, frame_positions), speech[inside].to(embeds.dtype))
        ids[frame_rows, frame_positions] = AUDIO
    elif speech.requires_grad:
        # Nothing to add, but all processes have to go back through the LLM where it is cut over them.
        embeds = embeds + speech.sum().to(embeds.dtype)
    positions = torch.arange(size, device=text.device)
    first = (size - lens)[:, None] if padding_side == "left" else torch.zeros_like(lens)[:, None]
    mask = (positions >= first) & (positions < first + lens[:, None])
    return Spliced(embeds, mask, ids, new_turns, (positions - first).clamp(min=0) * mask)
