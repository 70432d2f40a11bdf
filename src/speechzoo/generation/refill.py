"""Answers to any number of questions, some at a time: a new question takes the slot of an answer that ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speechzoo.generation.sampling import Chooser, Decoding
from speechzoo.generation.slots import Slots
from speechzoo.generation.tokens import Question, Step, Steps, finished
from speechzoo.generation.units import spoken
from speechzoo.text import ChatPrompt
from speechzoo.types import IGNORE, SpeechReply

if TYPE_CHECKING:
    from speechzoo.llms import LLM
    from speechzoo.units import UnitDecoder


def replies(
    llm: LLM,
    questions: Iterable[Question],
    prompt: ChatPrompt,
    decoder: UnitDecoder | None = None,
    **options: Any,
) -> Iterator[SpeechReply]:
    """Answer batches of questions in their order; a batch's reply comes when the last of its answers has ended.

    Each answer is what it would be alone. No answer waits for the others of its batch: the next batch's questions are
    already being answered meanwhile. Beside `slots` answers on their way there is one batch of encoded questions, and
    finished answers of batches that are not complete.

    Args:
        questions: taken one batch at a time, when there are slots for it.
        decoder: makes units of each answer.
        options: see `Decoding`; `slots` is 8 where it is not given. One seed for all rows, or one each, counted through
            all batches.
    """
    sizes: list[int] = []

    def counted() -> Iterator[Question]:
        for question in questions:
            sizes.append(len(question[0]))
            yield question

    stop = Decoding.of(**options).stop_ids
    read_last = decoder is not None and decoder.reads_last
    done: dict[int, tuple[list[int], Tensor | None]] = {}
    first = told = 0
    with closing(llm.refilled(counted(), read_last, **options)) as steps:
        for answer in finished(steps, read_last):
            units = None
            if decoder is not None:
                lens, ids = (torch.tensor(v, device=answer.states.device) for v in ([len(answer.states)], answer.ids))
                (units,) = spoken(decoder, answer.states[None], lens, [ids])
            done[answer.row] = answer.ids, units
            while told < len(sizes) and all(row in done for row in range(first, first + sizes[told])):
                rows = [done.pop(row) for row in range(first, first + sizes[told])]
                first, told = first + len(rows), told + 1
                yield SpeechReply(
                    [prompt.decode(ids) for ids, _ in rows],
                    units=None if decoder is None else [made for _, made in rows if made is not None],
                    stopped=[ids[-1] in stop for ids, _ in rows],
                )


@torch.no_grad()
def slot_steps(
    slots: Slots, prompts: Iterable[Tensor], decoding: Decoding, rows: int | None = None, read_last: bool = False
) -> Steps:
    """The steps of answers to prompts, numbered as they come; see `token_steps`.

    On a GPU the tokens of a step are read back while the next one runs; a row that has ended meanwhile has then made a
    step too many, of which nobody is told.

    Args:
        prompts: embeddings `[S, H]`, taken when slots are free.
        rows: how many prompts there are, where it is known.
    """
    choose, stop = Chooser(decoding, rows), decoding.stop_ids
    numbered = enumerate(prompts)
    owners: list[int | None] = [None] * slots.rows
    counts: dict[int, int] = {}  # tokens of each answer on its way
    last_token: set[int] = set()  # answers that only read their last token
    flying: deque[tuple[list[int], Callable[[], list[int]], Tensor]] = deque()  # launched, not read back
    indices: dict[tuple[int, ...], Tensor] = {}

    def some(values: Tensor, at: list[int]) -> Tensor:
        """Rows of a tensor; each list of rows goes to the device once, as that waits for it."""
        if len(at) == len(values):
            return values
        if tuple(at) not in indices:
            indices.clear()
            indices[tuple(at)] = torch.tensor(at, device=values.device)
        return values[indices[tuple(at)]]

    def launch(at: list[int], states: Tensor, logits: Tensor) -> None:
        numbers = [row for slot in at if (row := owners[slot]) is not None]
        ids = choose(logits, numbers)
        if len(at) == slots.rows:
            slots.ids.copy_(ids)
        else:
            slots.ids[some(slots.numbers, at)] = ids
        flying.append((numbers, _read_back(ids), states))

    def tell(numbers: list[int], read: Callable[[], list[int]], states: Tensor) -> Step:
        told = Step([], [], states, [])
        tokens = read()
        here = [index for index, row in enumerate(numbers) if row in counts]
        for index in here:
            row = numbers[index]
            closed = row in last_token
            counts[row] += not closed
            last = closed or tokens[index] in stop or counts[row] >= decoding.max_new_tokens
            ended = closed if read_last else last
            told.rows.append(row)
            told.ids.append(IGNORE if closed else tokens[index])
            told.ended.append(ended)
            if ended:
                del counts[row]
                owners[owners.index(row)] = None
            elif last:
                last_token.add(row)
        told.states = some(states, here)
        return told

    while True:
        free = [slot for slot, row in enumerate(owners) if row is None]
        if free and (new := list(islice(numbered, len(free)))):
            free = free[: len(new)]
            for slot, (row, _) in zip(free, new, strict=True):
                owners[slot], counts[row] = row, 0
            states = slots.admit(free, [prompt for _, prompt in new], decoding.max_new_tokens + 2)
            launch(free, states, slots.head(states))
            del new
        elif not counts:
            return
        before = len(counts)
        while counts and len(flying) > slots.late:
            if (step := tell(*flying.popleft())).rows:
                yield step
        if len(counts) < before:
            continue
        at = [slot for slot, row in enumerate(owners) if row is not None]
        states, logits = slots.advance()
        launch(at, some(states, at).clone(), some(logits, at))


def _read_back(ids: Tensor) -> Callable[[], list[int]]:
    """Send ids to the CPU without waiting for them; what is returned waits."""
    if ids.device.type != "cuda":
        return ids.tolist
    host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
    host.copy_(ids, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(ids.device))

    def wait() -> list[int]:
        arrived.synchronize()
        numbers: list[int] = host.tolist()
        return numbers

    return wait
