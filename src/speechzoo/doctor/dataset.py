"""The training data as a whole: padding, what is left out, units that answers are too short for, ranks in step."""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from torch import distributed as dist

from speechzoo.audio import MAX_SECONDS
from speechzoo.data import ConversationDataset, TokenBudgetSampler
from speechzoo.doctor.findings import Finding, error, note, ok, warning
from speechzoo.doctor.supervision import same_text
from speechzoo.system.ranks import world_size
from speechzoo.text import flatten
from speechzoo.units import UnitDecoder

SAMPLED = 200
"""Conversations whose units are looked at."""

COMPARED = 2000
"""Conversations whose supervised text is compared with their answers, whatever they hold."""


def first_epoch(sampler: TokenBudgetSampler) -> list[list[int]]:
    """The batches of the first epoch; the sampler itself stays where it is."""
    fresh = copy(sampler)
    fresh.start = 0
    return list(fresh)


def check_padding(sampler: TokenBudgetSampler, positions: list[int], most: float = 0.2) -> list[Finding]:
    """Share of positions that are padding in this epoch's batches of this rank.

    Args:
        positions: LLM positions of each conversation.
        most: share from which it is a warning.
    """
    lengths = np.asarray(positions)
    real = padded = 0
    for batch in first_epoch(sampler):
        real += int(lengths[batch].sum())
        padded += int(lengths[batch].max()) * len(batch)
    waste = 1 - real / max(padded, 1)
    text = f"{waste:.1%} of {padded:,} positions an epoch are padding ({len(sampler)} batches a rank)"
    if waste > most:
        return [warning("padding", text, "smaller batches, or data.bucket_by: positions")]
    return [note("padding", text)]


def check_left_out(dataset: ConversationDataset, longest_context: int | None) -> list[Finding]:
    """Exchanges that do not fit, and rows longer than the LLM can read; answers and clips are never cut."""
    prompt, examples, found = dataset.examples.prompt, dataset.examples, []
    dropped = int(np.count_nonzero(examples.dropped))
    if dropped:
        text = (
            f"{dropped} of {len(examples)} conversations lose {int(examples.dropped.sum())} of their oldest exchanges "
            f"to prompt.max_length={prompt.max_length}"
        )
        found.append(warning("left_out", text, "raise prompt.max_length if memory allows"))
    else:
        found.append(ok("left_out", f"{len(examples)} conversations fit whole"))
    if longest_context is not None and max(dataset.lengths) > longest_context:
        text = f"the longest conversation takes {max(dataset.lengths)} positions, the LLM reads {longest_context}"
        found.append(error("context", text, f"prompt.max_length: {longest_context}"))
    return found


def check_answers(dataset: ConversationDataset) -> list[Finding]:
    """Whether answers that spell special tokens, and the first `COMPARED` others, are supervised whole.

    All conversations are looked at: one that teaches the model to stop in the middle is enough to do so.
    """
    prompt, spelled = dataset.examples.prompt, 0
    found: list[Finding] = []
    for number in range(len(dataset.examples)):
        texts = answers_of(dataset, number)
        special = any(prompt.spelled(text) for text in texts)
        spelled += special
        if special or number < COMPARED:
            example = dataset.examples[number]
            for turn, expected in enumerate(texts, start=1):
                got = prompt.decode(example.ids[example.turns == turn].tolist())
                found += same_text(got, expected, f"{example.id}, answer {turn}")
    if found:
        more = f" ({len(found)} answers in all)" if len(found) > 1 else ""
        return [Finding(found[0].level, found[0].name, found[0].text + more, found[0].advice)]
    if spelled:
        return [note("special_text", f"{spelled} conversations spell special tokens in answers: learned as text")]
    return []


def check_clips(max_seconds: float, longest_seconds: float) -> list[Finding]:
    """Clips that Whisper's window would cut.

    Args:
        max_seconds: the limit of the data module.
        longest_seconds: of the longest clip in the data.
    """
    if longest_seconds <= MAX_SECONDS:
        return []
    text = f"the longest clip lasts {longest_seconds:.1f} s, the encoder hears {MAX_SECONDS:g} s of it"
    return [error("clip_cut", text, f"data.max_seconds: {MAX_SECONDS:g} (it is {max_seconds:g}), or cut the clips")]


def check_room_for_units(dataset: ConversationDataset, decoder: UnitDecoder | None) -> list[Finding]:
    """Answers that the unit decoder could learn from, but not speak whole (see `UnitDecoder.unspoken`)."""
    spoken = np.flatnonzero(dataset.examples.spoken)
    if decoder is None or not len(spoken):
        return []
    numbers = spoken[np.linspace(0, len(spoken) - 1, min(len(spoken), SAMPLED)).astype(int)]
    short = total = 0
    for number in numbers:
        example = dataset.examples[int(number)]
        for turn, units in example.units.items():
            row = torch.from_numpy(units.astype(np.int64))[None]
            tokens = torch.tensor([int((example.turns == turn).sum())])
            short += int(decoder.unspoken(tokens, row, torch.tensor([row.shape[1]])))
            total += 1
    told, advice = decoder.unspoken_reason
    text = f"{short} of {total} answers {told}"
    return [warning("unit_room", text, advice)] if short > total / 20 else [ok("unit_room", text)]


def check_steps(batches: int, device: torch.device) -> list[Finding]:
    """Every process has the same number of batches, else the longer ones wait for ever."""
    if world_size() == 1:
        return []
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[dist.get_rank()] = batches
    dist.all_reduce(counts)
    return uneven(counts.tolist())


def uneven(batches: list[int]) -> list[Finding]:
    """What the numbers of batches of all ranks say."""
    if len(set(batches)) == 1:
        return [ok("steps", f"{len(batches)} ranks, {batches[0]} batches each")]
    text = "ranks have different numbers of batches: " + ", ".join(f"rank {r} {n}" for r, n in enumerate(batches))
    return [error("steps", text, "use SpeechDataModule, whose sampler deals them out evenly")]


def answers_of(dataset: ConversationDataset, number: int) -> list[str]:
    """Texts of the assistant turns that a conversation keeps, from its record."""
    messages = list(dataset.examples.records[number].messages)
    first = int(messages[0]["role"] == "system")
    del messages[first : first + 2 * int(dataset.examples.dropped[number])]
    return [flatten(message["content"]).strip() for message in messages if message["role"] == "assistant"]
