"""Tokenised conversations: all lengths are known; tokens are kept for small corpora, made anew for large ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor
from tqdm.auto import tqdm

from speechzoo.data.audio_check import remember
from speechzoo.data.parts import written as as_written
from speechzoo.data.record import Problem, Record, clip_paths
from speechzoo.data.records import Records
from speechzoo.system.ranks import rank
from speechzoo.text import ChatPrompt, ContentError, Message

Positions = Callable[[Tensor], Tensor]
"""LLM positions for clips of so many samples, `[N] -> [N]`."""

TOP = np.iinfo(np.int32).max
FORMAT = 3  # of what is kept; 2: special tokens in content are text; 3: transcripts
KEPT = 20_000
"""Conversations up to which their tokens stay in memory. Of more only the lengths do, which are then kept on disk."""


@dataclass(frozen=True)
class Example:
    """A tokenised conversation without its sound; arrays, which are smaller than lists."""

    id: str
    ids: np.ndarray  # [L] int32
    turns: np.ndarray  # [L] int16
    clips: list[str]  # paths
    units: dict[int, np.ndarray]  # int32 by assistant turn
    length: int  # positions once the clips are spliced in
    heard: int = 0  # of them, those of the clips
    dropped: int = 0  # exchanges left out to make it fit
    written: tuple[np.ndarray, np.ndarray] | None = None  # ids int32, turns int16 [L'] with transcripts for clips


class Examples(Sequence[Example]):
    """Examples of records, in their order.

    Attributes:
        length: LLM positions of each, `[N]` int32.
        heard: LLM positions of the clips of each, `[N]` int32.
        dropped: exchanges left out of each to make it fit, `[N]` int32.
        spoken: which have units, `[N]` bool.
    """

    def __init__(
        self, records: Records, prompt: ChatPrompt, num_units: int | None, answer: bool, written: bool = False
    ) -> None:
        self.records, self.prompt, self.num_units, self.answer = records, prompt, num_units, answer
        self.written = written
        self.length, self.heard, self.dropped = np.zeros((3, len(records)), np.int32)
        self.spoken = np.zeros(len(records), bool)
        self.kept: list[Example | None] | None = [] if len(records) <= KEPT else None

    @classmethod
    def of(
        cls,
        records: Records,
        prompt: ChatPrompt,
        audio_positions: Positions | None,
        num_units: int | None,
        answer: bool,
        written: bool = False,
    ) -> tuple[Examples, list[Problem]]:
        """Examples of all records, and what is wrong with those that have none (their numbers are 0)."""
        self = cls(records, prompt, num_units, answer, written)
        samples = torch.from_numpy(records.all_samples().astype(np.int64))
        positions = audio_positions(samples).numpy() if audio_positions and len(samples) else None
        file = self._file(positions) if self.kept is None and records.folder is not None else None
        known = _load(file) if file else None
        if known is not None:
            arrays, problems = known
            vars(self).update(arrays)
            return self, problems
        problems, ends = [], np.cumsum(records.clips)
        for index in tqdm(range(len(records)), "tokenising", disable=self.kept is not None or rank() != 0):
            record, first = records[index], ends[index] - records.clips[index]
            heard = [] if positions is None else positions[first : ends[index]].tolist()
            found: Example | Problem
            if len(heard) < records.clips[index]:
                text = "it holds audio, which this model cannot hear"
                found = record.problem(text, "use text records or another model")
            else:
                found = _example(record, prompt, heard, num_units, answer, written=written)
            if isinstance(found, Problem):
                problems.append(found)
            else:
                self.length[index], self.dropped[index] = found.length, found.dropped
                self.heard[index], self.spoken[index] = found.heard, bool(found.units)
            if self.kept is not None:
                self.kept.append(None if isinstance(found, Problem) else found)
        if file:
            _save(file, self, problems)
        return self, problems

    def take(self, mask: np.ndarray) -> Examples:
        """Those of a mask."""
        some = Examples(self.records.take(mask), self.prompt, self.num_units, self.answer, self.written)
        for key in ARRAYS:
            setattr(some, key, getattr(self, key)[mask])
        some.kept = None if self.kept is None else [self.kept[index] for index in np.flatnonzero(mask)]
        return some

    def clips(self) -> Iterator[str]:
        """The clips of all, nothing tokenised."""
        for index in range(len(self)):
            whole = self.kept is None and not self.dropped[index]
            yield from clip_paths(self.records[index].messages) if whole else self[index].clips

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if index >= len(self):
            raise IndexError(index)
        example = self.kept[index] if self.kept is not None else None
        if example is not None:
            return example
        number = int(index) % len(self)
        found = _example(
            self.records[number],
            self.prompt,
            None,
            self.num_units,
            self.answer,
            int(self.dropped[number]),
            self.written,
        )
        assert isinstance(found, Example)
        return replace(found, length=int(self.length[number]), heard=int(self.heard[number]))

    def _file(self, positions: np.ndarray | None) -> Path:
        """Where the lengths are kept: named by all that they follow from."""
        tokenizer, kind = self.prompt.tokenizer, type(self.prompt)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
        given = {key: value for key, value in vars(self.prompt).items() if isinstance(value, (str, int, list))}
        # Not what a prompt has worked out and keeps: it would be another one once it was used.
        settings = {key: value for key, value in given.items() if not hasattr(kind, key)}
        told = [getattr(tokenizer, name, None) for name in ("chat_template", "special_tokens_map")]
        wanted = self.num_units is not None, self.answer, self.written
        known = FORMAT, self.records.fingerprint(), kind.__name__, settings, told, wanted
        digest = hashlib.sha256(repr(known).encode())
        digest.update(words.encode())
        digest.update(b"" if positions is None else positions.astype(np.int64).tobytes())
        assert self.records.folder is not None
        return self.records.folder / f"lengths-{digest.hexdigest()[:32]}.npz"


ARRAYS = ("length", "heard", "dropped", "spoken")


def _example(
    record: Record,
    prompt: ChatPrompt,
    positions: list[int] | None,
    num_units: int | None,
    answer: bool,
    dropped: int = 0,
    written: bool = False,
) -> Example | Problem:
    """The conversation with as many of its newest exchanges as fit, or why none does.

    Args:
        positions: of its clips; None where it is known that it fits without its `dropped` oldest exchanges.
        written: also the tokens with transcripts for clips, which it then has to have.
    """
    messages = list(record.messages)
    if not answer and messages[-1]["role"] == "assistant":
        messages.pop()
    first = int(messages[0]["role"] == "system")
    del messages[first : first + 2 * dropped]
    while True:
        try:
            encoded = prompt.encode(messages, answer)
        except ContentError as error:
            return record.problem(*str(error).rsplit(": ", 1))
        except (ValueError, TemplateError) as error:  # the template's fault, so no other record would fare better
            raise ValueError(f"{record.file}:{record.line} ({record.id}): {error}") from error
        length = len(encoded.ids) - encoded.num_audio + sum(positions or ())
        if positions is None or length <= prompt.max_length:
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
    units = units_of(messages) if num_units is not None else {}
    read = None
    if written:
        try:
            told = prompt.encode([as_written(message) for message in messages], answer)
        except KeyError:
            text = "a clip has no transcript, and this model learns to hear from what the LLM makes of reading it"
            return record.problem(text, 'add "transcript": ... to the audio part')
        read = np.asarray(told.ids, dtype=np.int32), np.asarray(told.turns, dtype=np.int16)
    return Example(
        id=record.id,
        ids=np.asarray(encoded.ids, dtype=np.int32),
        turns=np.asarray(encoded.turns, dtype=np.int16),
        clips=clip_paths(messages),
        # What is beyond the model's units is a problem that is said elsewhere; here it only has to fit.
        units={turn: np.asarray([min(u, TOP) for u in values], np.int32) for turn, values in units.items()},
        length=length,
        heard=sum(positions or ()),
        dropped=dropped,
        written=read,
    )


def units_of(messages: Sequence[Message]) -> dict[int, list[int]]:
    """Units by assistant turn (1, 2, ...), of the turns that have any."""
    answers = [message for message in messages if message["role"] == "assistant"]
    return {turn: message["units"] for turn, message in enumerate(answers, start=1) if message.get("units")}


def _save(file: Path, examples: Examples, problems: list[Problem]) -> None:
    rows = json.dumps([{**asdict(problem), "file": str(problem.file)} for problem in problems])
    stored = BytesIO()
    arrays = {key: getattr(examples, key) for key in ARRAYS}
    np.savez(stored, problems=np.frombuffer(rows.encode(), np.uint8), **arrays)
    remember(file, stored.getvalue())


def _load(file: Path) -> tuple[dict[str, np.ndarray], list[Problem]] | None:
    try:
        with np.load(file) as stored:
            rows = json.loads(stored["problems"].tobytes())
            arrays = {key: stored[key] for key in ARRAYS}
    except Exception:  # zipfile and numpy raise many kinds for a damaged one
        return None
    return arrays, [Problem(**{**row, "file": Path(row["file"])}) for row in rows]
