"""Checked records as a map-style dataset: measured once, sound read when an item is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import Dataset

from speechzoo.audio import SAMPLE_RATE, SoundError, check_question, from_array
from speechzoo.data.collate import Item, Side, collate
from speechzoo.data.examples import Example, Examples, Positions, units_of
from speechzoo.data.features import FeatureCache
from speechzoo.data.manifest import Records, check_for_model, good_ones, settle
from speechzoo.data.parts import plain, shown
from speechzoo.data.parts import written as as_written
from speechzoo.data.schema import check_form
from speechzoo.data.sources import read_clip
from speechzoo.data.states import StateCache, TeacherCache
from speechzoo.text import ChatPrompt, Message
from speechzoo.types import SpeechBatch, present

__all__ = ["ConversationDataset", "Example", "Positions", "encode_batch"]


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
        states: cached states of a frozen LLM, given for the answers that have units.
        speech: False leaves sound and features out, which training on cached `states` does without.
        written: also give each conversation with transcripts for clips (`SpeechBatch.written`).
        teacher: cached states of a frozen LLM that read them so, given with them.

    Raises:
        ManifestError: for records the model cannot use, unless they are skipped.
    """

    def __init__(
        self,
        records: Records,
        prompt: ChatPrompt,
        audio_positions: Positions | None = None,
        features: FeatureCache | None = None,
        num_units: int | None = None,
        answer: bool = True,
        on_bad: Literal["raise", "skip"] = "raise",
        report: str | Path | None = None,
        states: StateCache | None = None,
        speech: bool = True,
        written: bool = False,
        teacher: TeacherCache | None = None,
    ) -> None:
        self.features, self.states, self.speech, self.num_units = features, states, speech, num_units
        self.teacher = teacher
        problems = check_for_model(records, num_units, audio_positions)
        examples, found = Examples.of(records, prompt, audio_positions, num_units, answer, written)
        problems += found
        self.records = settle(records, problems, on_bad, report)
        self.examples = examples.take(good_ones(records, problems))
        dropped = self.examples.dropped
        if dropped.any():
            rank_zero_info(
                f"{np.count_nonzero(dropped)} conversations are longer than prompt.max_length={prompt.max_length}: "
                f"{dropped.sum()} of their oldest exchanges are left out"
            )

    @property
    def lengths(self) -> list[int]:
        """LLM positions of each conversation."""
        lengths: list[int] = self.examples.length.tolist()
        return lengths

    @property
    def audio_lengths(self) -> list[int]:
        """LLM positions of the clips of each conversation, at least 1."""
        lengths: list[int] = self.examples.heard.clip(min=1).tolist()
        return lengths

    @property
    def digest(self) -> str:
        """Of which conversations these are, in their order, and how long (64 hex digits)."""
        return hashlib.sha256(self.records.name.tobytes() + self.examples.length.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        filler, index = index < 0, max(index, ~index)
        example = self.examples[index]
        turns = torch.from_numpy(example.turns.astype(np.int64))
        clips = example.clips if self.speech else []
        cached = [self.features.get(path) for path in clips] if self.features else None
        states = None if self.states is None else {} if filler else self.states.get(example)
        read = None if self.teacher is None else self.teacher.get(example)
        return Item(
            id="" if filler else example.id,
            input_ids=torch.from_numpy(example.ids.astype(np.int64)),
            turns=torch.zeros_like(turns) if filler else turns,
            audio=[read_clip(path) for path in clips] if cached is None else None,
            features=cached,
            units={} if filler else {t: torch.from_numpy(u.astype(np.int64)) for t, u in example.units.items()},
            states=states,
            positions=example.length,
            written=None if example.written is None else _tensors(example.written, filler),
            read=read if read is None or not filler else read[:0],
        )

    def as_text(self, index: int) -> Item:
        """Conversation i with transcripts for its clips, as one of text alone.

        Raises:
            ValueError: if the dataset was made without `written`.
        """
        example = self.examples[index]
        ids, turns = _tensors(present(example.written, "transcripts"), filler=False)
        return Item(example.id, ids, turns)


def _tensors(written: tuple[np.ndarray, np.ndarray], filler: bool) -> tuple[Tensor, Tensor]:
    ids, turns = (torch.from_numpy(values.astype(np.int64)) for values in written)
    return ids, torch.zeros_like(turns) if filler else turns


def encode_batch(
    prompt: ChatPrompt,
    conversations: Sequence[Sequence[Message]],
    answer: bool = False,
    padding_side: Side = "left",
    audio_positions: Positions | None = None,
) -> SpeechBatch:
    """A batch from conversations in memory, to ask a model from Python.

    Audio parts are `{"type": "audio", "path": file}` or `{"type": "audio", "array": samples}` (`[T]` at 16 kHz: floats
    with full scale 1, or integers of 8, 16 or 32 bits), or in the forms that `speechzoo.data.parts.plain` knows. Where
    each has a `transcript` too, conversations to learn come with `SpeechBatch.written`.

    Args:
        audio_positions: positions clips take in the LLM; finds those that are too short.
        answer: True for conversations with answers to learn (give `padding_side="right"`), False to have them answered.

    Raises:
        FileNotFoundError, ValueError: if a conversation has another form, or a sound is not there or is none that a
            manifest may hold (see `speechzoo.audio`).
    """
    items = []
    for number, given in enumerate(conversations):
        messages = [plain(message) for message in given]
        check_form(messages, f"conversation {number}")
        encoded = prompt.encode(messages, answer)
        parts: list[Any] = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
        parts = [part for part in parts if part["type"] == "audio"]
        clips = [_clip(part, f"sound {place} of conversation {number}") for place, part in enumerate(parts, start=1)]
        if audio_positions is not None:
            check_positions(clips, parts, audio_positions)
        units = {turn: torch.tensor(values) for turn, values in units_of(messages).items()} if answer else {}
        item = Item(str(number), torch.tensor(encoded.ids), torch.tensor(encoded.turns), audio=clips, units=units)
        items.append(item)
        if answer and all("transcript" in part for part in parts):
            told = prompt.encode([as_written(message) for message in messages])
            item.written = torch.tensor(told.ids), torch.tensor(told.turns)
    if not all(item.written for item in items):
        items = [replace(item, written=None) for item in items]
    return collate(items, prompt.pad_id, padding_side)


def check_positions(clips: Sequence[Tensor], parts: Sequence[dict[str, Any]], audio_positions: Positions) -> None:
    """Refuse clips that give the LLM nothing to hear.

    Raises:
        SoundError: naming the first.
    """
    if not clips:
        return
    for clip, part, count in zip(clips, parts, audio_positions(torch.tensor([*map(len, clips)])).tolist(), strict=True):
        if count < 1:
            named = shown(part.get("path", "a clip"))
            text = f"{named}: {len(clip) / SAMPLE_RATE * 1000:.0f} ms is too short to give the LLM one position"
            raise SoundError(text, "record it again")


def _clip(part: dict[str, Any], named: str) -> Tensor:
    if part.get("array") is None:
        return check_question(read_clip(part["path"]), shown(part["path"]))
    named = shown(part.get("path") or named)
    if (rate := part.get("sampling_rate", SAMPLE_RATE)) != SAMPLE_RATE:
        raise SoundError(f"{named}: an array at {rate} Hz", f"resample it to {SAMPLE_RATE} Hz, or give the file")
    return check_question(from_array(part["array"], named), named)
