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


def spliced_width(input_ids: Tensor, attention_mask: Tensor, speech_lens: Tensor) -> int:
    """Positions S of the longest row once the clips are in their places; asked of tensors on the host it is free.

    Shape: `[B, L], [B, L], [N]`.

    Raises:
        ValueError: if there are not as many placeholders as clips.
    """
    is_clip = (input_ids == AUDIO) & attention_mask
    if int(is_clip.sum()) != len(speech_lens):
        raise ValueError(f"{int(is_clip.sum())} audio placeholders in the batch, but {len(speech_lens)} clips")
    return int(_widths(is_clip, attention_mask, speech_lens)[0].sum(dim=1).max())


def splice(
    text: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    turns: Tensor,
    speech: Tensor,
    speech_lens: Tensor,
    padding_side: str = "right",
    width: int | None = None,
) -> Spliced:
    """Replace the n-th placeholder of the batch by the frames of clip n.

    Padding may stand on either side of a row, or between its tokens; it is squeezed out and set anew on `padding_side`,
    so that a row's real positions do not depend on its neighbours. Each position of the result looks up where it comes
    from, so that nothing waits for the device where `width` is given.

    Args:
        text: `[B, L, H]` embeddings of `input_ids` (any value at placeholders).
        speech, speech_lens: `[N, A, H]`, `[N]`.
        width: S as `spliced_width` gives it; asked of the device where it is not given.

    Raises:
        ValueError: if there are not as many placeholders as clips, where `width` is not given.
    """
    size = spliced_width(input_ids, attention_mask, speech_lens) if width is None else width
    (b, length, h), frames = text.shape, speech.shape[1]
    is_clip = (input_ids == AUDIO) & attention_mask
    widths, clip = _widths(is_clip, attention_mask, speech_lens)
    ends = widths.cumsum(dim=1)
    lens = ends[:, -1:]
    first = size - lens if padding_side == "left" else torch.zeros_like(lens)
    place = torch.arange(size, device=text.device) - first  # in its row
    mask = (place >= 0) & (place < lens)
    # The token that holds a position: the first one that ends behind it.
    token = torch.searchsorted(ends, place.clamp(min=0), right=True).clamp(max=length - 1)
    ids = torch.where(mask, input_ids.gather(1, token), 0)
    heard = ids == AUDIO
    from_text = token + length * torch.arange(b, device=text.device)[:, None]
    from_clip = b * length + clip.gather(1, token) * frames + place - (ends - widths).gather(1, token)
    table = torch.cat([text.flatten(0, 1), speech.flatten(0, 1).to(text.dtype), text.new_zeros(1, h)])
    source = torch.where(mask, torch.where(heard, from_clip, from_text), len(table) - 1)
    embeds = table.index_select(0, source.flatten()).view(b, size, h)
    new_turns = torch.where(mask & ~heard, turns.gather(1, token), 0)
    return Spliced(embeds, mask, ids, new_turns, place.clamp(min=0) * mask)


def _widths(is_clip: Tensor, attention_mask: Tensor, speech_lens: Tensor) -> tuple[Tensor, Tensor]:
    """Positions that each token takes, and which clip a placeholder stands for. Shape: `[B, L]` twice."""
    clip = (is_clip.flatten().cumsum(0) - 1).clamp(min=0).view_as(is_clip)
    widths = attention_mask.long()
    return (torch.where(is_clip, speech_lens[clip], widths) if len(speech_lens) else widths), clip
