"""Conversations from files and shards, with every mistake reported at once before anything is trained.

In a JSONL file one record a line, in the chat convention of Hugging Face (Parquet and tar shards hold the same, see
`speechzoo.data.sources`):

    {"id": "q1", "messages": [
        {"role": "user", "content": [{"type": "audio", "path": "q1.wav"}]},
        {"role": "assistant", "content": "Paris.", "units": [3, 1, 4], "audio": "a1.wav"}]}

`id` may be left out (the file name and line number then name the record). Paths are relative to the JSONL file. Sound
may also stand as `audio` in its part, or beside the messages as `audio` or `audios`, for parts that bring none. Further
keys of a record are not read, and named once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from speechzoo.audio import MAX_SECONDS, SAMPLE_RATE
from speechzoo.data.index import TOP_UNIT, Index, index_of
from speechzoo.data.record import Problem, Record, clip_paths
from speechzoo.data.records import Records
from speechzoo.data.sources import resolve
from speechzoo.data.sources.base import PREFIX
from speechzoo.system.files import write_jsonl

__all__ = ["ManifestError", "Problem", "Record", "Records", "check_for_model", "clip_paths", "read_manifest", "scan"]

SHOWN = 20
"""Problems an error message lists; the exception holds all of them."""


class ManifestError(ValueError):
    """Records that cannot be used. `problems` holds all of them, the message the first twenty."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        lines = [f"  {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"  ... and {len(self.problems) - SHOWN} more")
        count = len({(problem.file, problem.line) for problem in self.problems})
        super().__init__(
            "\n".join([f"{len(self.problems)} problems in {count} records (data.on_bad=skip leaves them out):", *lines])
        )


def read_manifest(
    paths: str | Path | Sequence[str | Path],
    answer: bool = True,
    max_seconds: float = MAX_SECONDS,
    num_units: int | None = None,
    audio_positions: Callable[[Tensor], Tensor] | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    report: str | Path | None = None,
    memory: str | Path | None = None,
) -> Records:
    """Records of one or more sources, all checked.

    Args:
        paths: JSONL files, Parquet or tar shards, patterns of them or folders of shards, `hf:NAME[:SPLIT]`.
        answer: conversations have to end with an answer (training, evaluation).
        max_seconds: longest clip, in seconds.
        num_units: K of the model, if it speaks units; they lie in [0, K).
        audio_positions: LLM positions for clips of so many samples, `[N] -> [N]`; finds clips that are too short.
        on_bad: "raise" refuses all, "skip" leaves bad records out with a warning.
        report: JSONL file that lists the problems when they are skipped.
        memory: file that remembers checked sound files.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ManifestError: for bad records, unless they are skipped.
        ValueError: if no record is left.
    """
    records, problems = scan(paths, answer, max_seconds, memory)
    problems += check_for_model(records.take(good_ones(records, problems)), num_units, audio_positions)
    return settle(records, problems, on_bad, report)


def scan(
    paths: str | Path | Sequence[str | Path],
    answer: bool = True,
    max_seconds: float = MAX_SECONDS,
    memory: str | Path | None = None,
) -> tuple[Records, list[Problem]]:
    """All records that can be parsed and all problems, as far as they show without a model.

    Raises:
        FileNotFoundError: if there is no such manifest.
    """
    memory = Path(memory).expanduser() if memory else None
    names = resolve(paths)
    real = [name if name.startswith(PREFIX) else os.path.realpath(name) for name in names]
    if twice := next((name for number, name in enumerate(names) if real[number] in real[:number]), None):
        raise ValueError(f"{twice} is named twice: its records would count double")
    sources: list[str] = []
    indexes: list[Index] = []
    problems: list[Problem] = []
    for name in names:
        try:
            index = index_of(name, memory)
        except ValueError as error:
            problems.append(Problem(Path(name), 0, Path(name).name, str(error), "mend it, or leave it out"))
            continue
        sources.append(name)
        indexes.append(index)
        due = [problem for problem in index.problems if answer or not problem["answer"]]
        problems += [Problem(Path(name), p["number"], p["id"], p["message"], p["hint"]) for p in due]
    _tell_unread(sources, indexes)
    records = Records(sources, indexes, memory.parent / "indexes" if memory else None)
    problems += _same_ids(records) + _long_clips(records, max_seconds)
    order = {Path(name): number for number, name in enumerate(names)}
    return records, sorted(problems, key=lambda problem: (order[problem.file], problem.line))


def _tell_unread(sources: Sequence[str], indexes: Sequence[Index]) -> None:
    keys = {key: name for name, index in zip(sources, indexes, strict=True) for key in index.unread}
    if keys:
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        rank_zero_info(f"{next(iter(keys.values()))}: keys that are not read: {', '.join(list(keys)[:SHOWN])}{more}")


def _same_ids(records: Records) -> list[Problem]:
    order = np.flatnonzero(records.own)
    order = order[np.argsort(records.name[order], kind="stable")]  # of the same id side by side, in their order
    names = records.name[order]
    problems = []
    for place in np.flatnonzero(names[1:] == names[:-1]) + 1:
        first = order[np.searchsorted(names, names[place])]
        record, other = records[int(order[place])], records[int(first)]
        if record.id == other.id:
            hint = "give each record its own id, or leave ids out"
            problems.append(record.problem(f"id {record.id!r} is taken by {other.file}:{other.line}", hint))
    return problems


def _long_clips(records: Records, max_seconds: float) -> list[Problem]:
    problems = []
    for index in records.owners(records.all_samples() > max_seconds * SAMPLE_RATE):
        record = records[int(index)]
        for path, samples in zip(clip_paths(record.messages), record.clip_samples, strict=True):
            if samples > max_seconds * SAMPLE_RATE:
                text = f"{path}: {samples / SAMPLE_RATE:.1f} s is longer than {max_seconds:g} s"
                problems.append(record.problem(text, "split the clip; nothing is cut silently"))
    return problems


def check_for_model(
    records: Records,
    num_units: int | None,
    audio_positions: Callable[[Tensor], Tensor] | None,
) -> list[Problem]:
    """Problems that depend on the model: unknown units, clips too short for its encoder and adaptor."""
    problems = []
    known = TOP_UNIT if num_units is None else num_units  # no model at all knows more than fit into int32
    told = "a model of K units knows 0 to K-1" if num_units is None else f"the model knows 0 to {num_units - 1}"
    for index in np.flatnonzero(records.top_unit >= known):
        record = records[int(index)]
        for turn, message in enumerate((m for m in record.messages if m["role"] == "assistant"), start=1):
            largest = max(message.get("units", [0]))
            if largest >= known:
                fix = "set the model's number of units to that of the k-means that made them"
                problems.append(record.problem(f"answer {turn} has unit {largest}, {told}", fix))
    samples = records.all_samples()
    if audio_positions is not None and len(samples):
        short = audio_positions(torch.from_numpy(samples.astype(np.int64))).numpy() < 1
        for index in records.owners(short & (samples > 0)):  # 0: cannot be used, which is said already
            record = records[int(index)]
            positions = audio_positions(torch.tensor(record.clip_samples))
            for path, clip, number in zip(record.clips, record.clip_samples, positions.tolist(), strict=True):
                if number < 1:
                    text = f"{path}: {clip / 16:.0f} ms is too short to give the LLM one position"
                    problems.append(record.problem(text, "remove the record, or join the clip with its neighbour"))
    return problems


def settle(
    records: Records,
    problems: Sequence[Problem],
    on_bad: Literal["raise", "skip"] = "raise",
    report: str | Path | None = None,
) -> Records:
    """The records without problems, or `ManifestError`, as `on_bad` says (see `read_manifest`)."""
    if problems and on_bad == "raise":
        raise ManifestError(problems)
    good = records.take(good_ones(records, problems))
    if problems:
        bad = {(problem.file, problem.line) for problem in problems}
        where = f"; all of them are in {report}" if report else ""
        rank_zero_warn(f"{len(bad)} bad records are left out, the first: {problems[0]}{where}")
        if report:
            _write_report(Path(report), problems)
    if not len(good):
        raise ValueError(f"no record is left: {problems[0]}" if problems else "the manifest holds no records")
    return good


def good_ones(records: Records, problems: Sequence[Problem]) -> np.ndarray:
    """Which of the records no problem names, `[N]` bool."""
    names = {Path(name): number for number, name in enumerate(records.sources)}
    good = np.ones(len(records), dtype=bool)
    bad: dict[int, list[int]] = {}
    for problem in problems:
        if problem.file in names:
            bad.setdefault(names[problem.file], []).append(problem.line)
    for source, numbers in bad.items():
        good &= ~((records.source == source) & np.isin(records.number, numbers))
    return good


@rank_zero_only
def _write_report(path: Path, problems: Sequence[Problem]) -> None:
    write_jsonl(path, [{**vars(problem), "file": str(problem.file)} for problem in problems])
