"""The token loop every answer comes from: prompt read once, then a token at a time, with the state that predicts it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from speechzoo.generation.sampling import Chooser, Decoding
from speechzoo.types import IGNORE

if TYPE_CHECKING:
    from speechzoo.llms.splice import Spliced


@dataclass
class Step:
    """One token of each row that is still being answered."""

    rows: list[int]  # which rows of the batch
    ids: list[int]  # the token of each; IGNORE where the row only reads its last token
    states: Tensor  # [b, H] last LLM state, the one that predicts the token
    ended: list[bool]  # nothing follows in this row


Steps = Generator[Step, None, None]
"""The steps of a batch of answers; closing it frees the cache."""

Question = tuple[Tensor, Tensor, Tensor, Tensor]
"""A batch of questions: input ids and attention mask `[B, L]`, speech `[N, A, H]` and its lengths `[N]`."""


class Finished(NamedTuple):
    """An answer that has ended."""

    row: int
    ids: list[int]  # up to and including a stop token
    states: Tensor  # [M, H], one a token: the state that predicts it, or with `read_last` the one that has read it


@dataclass
class Generated:
    """Whole answers and their states."""

    ids: list[Tensor]  # B times [M], up to and including a stop token
    states: Tensor  # [B, M, H], 0 past each length
    lens: Tensor  # [B]


@torch.no_grad()
def token_steps(
    read: Callable[[Tensor, Tensor | None, Tensor, Cache], Tensor],
    head: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    cache: Cache,
    prompt: Spliced,
    decoding: Decoding,
    read_last: bool = False,
) -> Steps:
    """Answer left-padded prompts together.

    Logits are computed for the newest position only and no state but the newest is kept. Rows that end leave batch and
    cache. Closing the iterator frees the cache.

    Args:
        read: `(embeds [b, n, H], mask [b, held + n] or None, position_ids [b, n], cache) -> states [b, n, H]`.
        head: `[b, H] -> [b, V]`.
        embed: `[b, 1] -> [b, 1, H]`.
        read_last: also read each row's last token; its state comes in one more step, without a token.
    """
    size, stop = len(prompt.embeds), decoding.stop_ids
    choose, rows = Chooser(decoding, size), list(range(size))
    closing = [False] * size  # the row has its last token
    mask = None if bool(prompt.mask.all()) else prompt.mask
    position = prompt.position_ids[:, -1:]
    states = read(prompt.embeds, mask, prompt.position_ids, cache)[:, -1].clone()  # a view would keep all of them
    del prompt
    for count in range(1, decoding.max_new_tokens + 2):
        ids = torch.full_like(position[:, 0], IGNORE) if all(closing) else choose(head(states), rows)
        tokens = [IGNORE if closed else token for token, closed in zip(ids.tolist(), closing, strict=True)]
        last = [
            closed or token in stop or count >= decoding.max_new_tokens
            for token, closed in zip(tokens, closing, strict=True)
        ]
        ended = closing if read_last else last
        yield Step(rows, tokens, states, ended)
        going = [index for index, end in enumerate(ended) if not end]
        if not going:
            return
        if len(going) < len(rows):
            index = torch.tensor(going, device=ids.device)
            cache.reorder_cache(index)  # type: ignore[arg-type]  # wants the name LongTensor
            ids, position = ids[index], position[index]
            mask = None if mask is None else mask[index]
        rows, closing = [rows[i] for i in going], [last[i] for i in going]
        position = position + 1
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        states = read(embed(ids[:, None]), mask, position, cache)[:, -1]


def collect_ids(steps: Iterator[Step], rows: int, device: torch.device) -> list[Tensor]:
    """Token ids of each row. `B times [M]`."""
    ids: list[list[int]] = [[] for _ in range(rows)]
    for step in steps:
        for row, token in zip(step.rows, step.ids, strict=True):
            ids[row].append(token)
    return [torch.tensor(row, device=device) for row in ids]


def finished(steps: Iterator[Step], read_last: bool) -> Iterator[Finished]:
    """Answers in the order in which they end."""
    ids: dict[int, list[int]] = {}
    states: dict[int, list[Tensor]] = {}
    for step in steps:
        for row, token, state, end in zip(step.rows, step.ids, step.states, step.ended, strict=True):
            if row in ids or not read_last:  # else the first state, which has read no token
                states.setdefault(row, []).append(state)
            ids.setdefault(row, []).extend([token] if token != IGNORE else [])
            if end:
                yield Finished(row, ids.pop(row), torch.stack(states.pop(row)))


def collect_states(steps: Iterator[Step], read_last: bool) -> Generated:
    """Token ids and states of whole answers, row by row."""
    rows = sorted(finished(steps, read_last), key=lambda answer: answer.row)
    device = rows[0].states.device
    ids = [torch.tensor(answer.ids, device=device) for answer in rows]
    lens = torch.tensor([len(answer.ids) for answer in rows], device=device)
    return Generated(ids, pad_sequence([answer.states for answer in rows], batch_first=True), lens)
