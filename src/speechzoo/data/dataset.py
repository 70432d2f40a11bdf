"""Checked records as a map-style dataset: tokenised once, sound read when an item is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jinja2 import TemplateError
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from speechzoo.audio import read_audio
from speechzoo.data.collate import Item, Side, collate
from speechzoo.data.features import FeatureCache
from speechzoo.data.manifest import Problem, Record, check_for_model, clip_paths, settle
from speechzoo.text import ChatPrompt, Message
from speechzoo.types import AUDIO, SpeechBatch

Positions = Callable[[Tensor], Tensor]
"""LLM positions for clips of so many samples, `[N] -> [N]`."""


@dataclass(frozen=True)
class Example:
    """A tokenised conversation without its sound; arrays, because millions of lists of numbers do not fit memory."""

    id: str
    ids: np.ndarray  # [L] int32
    turns: np.ndarray  # [L] int16
    clips: list[str]  # paths
    units: dict[int, np.ndarray]  # int32 by assistant turn
    length: int  # positions once the clips are spliced in
    dropped: int = 0  # exchanges left out to make it fit


class ConversationDataset(Dataset[Item]):
    """Conversations for one model.

    A conversation longer than `prompt.max_length` loses its oldest exchanges (the system message stays); answers and
    clips are never cut. One whose last exchange alone is too long is a bad record.

    `dataset[~i]` is conversation i as a filler: no targets, no units and an empty id (see `EvalSampler`).

    Args:
        records: checked conversations.
        prompt: template and tokenizer of the model.
        audio_positions: positions its clips take in the LLM; needed where records hold audio.
        features: cached encoder states, given instead of audio.
        num_units: K of a model that speaks units; None leaves units out.
        answer: False to generate: the last answer is left out, the generation prompt added.
        on_bad, report: what to do with bad records, see `read_manifest`.

    Raises:
        ManifestError: for records the model cannot use, unless they are skipped.
    """

    def __init__(
        self,
        records: Sequence[Record],
        prompt: ChatPrompt,
        audio_positions: Positions | None = None,
        features: FeatureCache | None = None,
        num_units: int | None = None,
        answer: bool = True,
        on_bad: Literal["raise", "skip"] = "raise",
        report: str | Path | None = None,
    ) -> None:
        self.features, self.num_units = features, num_units
        problems = check_for_model(records, num_units, audio_positions)
        examples = {}
        for record in records:
            found = _example(record, prompt, audio_positions, num_units, answer)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                examples[record.file, record.line] = found
        self.records = settle(records, problems, on_bad, report)
        self.examples = [examples[record.file, record.line] for record in self.records]
        dropped = [example.dropped for example in self.examples if example.dropped]
        if dropped:
            rank_zero_info(
                f"{len(dropped)} conversations are longer than prompt.max_length={prompt.max_length}: "
                f"{sum(dropped)} of their oldest exchanges are left out"
            )

    @property
    def lengths(self) -> list[int]:
        """LLM positions of each conversation."""
        return [example.length for example in self.examples]

    @property
    def audio_lengths(self) -> list[int]:
        """LLM positions of the clips of each conversation, at least 1."""
        return [max(1, int(e.length - (e.ids != AUDIO).sum())) for e in self.examples]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        filler, index = index < 0, max(index, ~index)
        example = self.examples[index]
        turns = torch.from_numpy(example.turns.astype(np.int64))
        cached = [self.features.get(path) for path in example.clips] if self.features else None
        return Item(
            id="" if filler else example.id,
            input_ids=torch.from_numpy(example.ids.astype(np.int64)),
            turns=torch.zeros_like(turns) if filler else turns,
            audio=[read_audio(path) for path in example.clips] if cached is None else None,
            features=cached,
            units={} if filler else {t: torch.from_numpy(u.astype(np.int64)) for t, u in example.units.items()},
        )


def _example(
    record: Record, prompt: ChatPrompt, audio_positions: Positions | None, num_units: int | None, answer: bool
) -> Example | Problem:
    """The conversation with as many of its newest exchanges as fit, or why none does."""
    messages, samples = list(record.messages), list(record.clip_samples)
    if not answer and messages[-1]["role"] == "assistant":
        messages.pop()
    positions = []
    if samples:
        if audio_positions is None:
            return record.problem("it holds audio, which this model cannot hear", "use text records or another model")
        positions = audio_positions(torch.tensor(samples)).tolist()
    first = int(messages[0]["role"] == "system")
    dropped = 0
    while True:
        try:
            encoded = prompt.encode(messages, answer)
        except (ValueError, TemplateError) as error:  # the template's fault, so no other record would fare better
            raise ValueError(f"{record.file}:{record.line} ({record.id}): {error}") from error
        length = len(encoded.ids) - encoded.num_audio + sum(positions)
        if length <= prompt.max_length:
            break
        exchange = messages[first : first + 2]
        if len(messages) - first <= 2:
            return record.problem(
                f"its last exchange takes {length} positions, prompt.max_length is {prompt.max_length}",
                "raise prompt.max_length, or shorten the record; nothing is cut silently",
            )
        del messages[first : first + 2]
        del positions[: len(clip_paths(exchange))]
        dropped += 1
    units = _units(messages) if num_units is not None else {}
    return Example(
        id=record.id,
        ids=np.asarray(encoded.ids, dtype=np.int32),
        turns=np.asarray(encoded.turns, dtype=np.int16),
        clips=clip_paths(messages),
        units={turn: np.asarray(values, dtype=np.int32) for turn, values in units.items()},
        length=length,
        dropped=dropped,
    )


def _units(messages: Sequence[Message]) -> dict[int, list[int]]:
    """Units by assistant turn (1, 2, ...), for the turns that have them."""
    answers = [message for message in messages if message["role"] == "assistant"]
    return {turn: message["units"] for turn, message in enumerate(answers, start=1) if message.get("units")}


def encode_batch(
    prompt: ChatPrompt,
    conversations: Sequence[Sequence[Message]],
    answer: bool = False,
    padding_side: Side = "left",
) -> SpeechBatch:
    """A batch from conversations in memory, to ask a model from Python.

    Audio parts are `{"type": "audio", "path": file}` or `{"type": "audio", "array": samples}` (`[T]` at 16 kHz).

    Args:
        answer: True for conversations with answers to learn (give `padding_side="right"`), False to have them answered.
    """
    items = []
    for number, messages in enumerate(conversations):
        encoded = prompt.encode(messages, answer)
        parts: list[Any] = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
        clips = [_clip(part) for part in parts if part["type"] == "audio"]
        units = {turn: torch.tensor(values) for turn, values in _units(messages).items()} if answer else {}
        items.append(
            Item(str(number), torch.tensor(encoded.ids), torch.tensor(encoded.turns), audio=clips, units=units)
        )
    return collate(items, prompt.pad_id, padding_side)


def _clip(part: dict[str, Any]) -> Tensor:
    samples = part.get("array")
    if samples is None:
        return read_audio(part["path"])
    samples = torch.as_tensor(samples, dtype=torch.float32)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"an audio array is [T] samples at 16 kHz, not of shape {list(samples.shape)}")
    return samples
