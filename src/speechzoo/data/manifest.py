"""Conversations from JSONL files, with every mistake reported at once before anything is trained.

One record a line, in the chat convention of Hugging Face:

    {"id": "q1", "messages": [
        {"role": "user", "content": [{"type": "audio", "path": "q1.wav"}]},
        {"role": "assistant", "content": "Paris.", "units": [3, 1, 4], "audio": "a1.wav"}]}

`id` may be left out (the file name and line number then name the record). Paths are relative to the JSONL file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from speechzoo.audio import MAX_SECONDS
from speechzoo.data.audio_check import AudioInfo, check_audio, write_atomically
from speechzoo.data.schema import check_messages

SHOWN = 20
"""Problems an error message lists; the exception holds all of them."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a record."""

    file: Path
    line: int
    id: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.id}): {self.message} -> {self.hint}"


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


@dataclass
class Record:
    """One conversation.

    Attributes:
        messages: as in the file, with absolute paths (str).
        clip_samples: 16 kHz samples of each clip of the user, in order.
    """

    id: str
    messages: list[dict[str, Any]]
    file: Path
    line: int
    clip_samples: list[int] = field(default_factory=list)

    @property
    def clips(self) -> list[Path]:
        """Files the user's turns hold, in order."""
        return [Path(path) for path in clip_paths(self.messages)]

    def problem(self, message: str, hint: str) -> Problem:
        return Problem(self.file, self.line, self.id, message, hint)


def clip_paths(messages: Iterable[dict[str, Any]]) -> list[str]:
    """Paths of the clips in the content of messages, in order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part["path"] for content in contents for part in content if part["type"] == "audio"]


def read_manifest(
    paths: str | Path | Sequence[str | Path],
    answer: bool = True,
    max_seconds: float = MAX_SECONDS,
    num_units: int | None = None,
    audio_positions: Callable[[Tensor], Tensor] | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    report: str | Path | None = None,
    memory: str | Path | None = None,
) -> list[Record]:
    """Records of one or more JSONL files, all checked.

    Args:
        answer: conversations have to end with an answer (training, evaluation).
        max_seconds: longest clip, in seconds.
        num_units: K of the model, if it speaks units; they lie in [0, K).
        audio_positions: LLM positions for clips of so many samples, `[N] -> [N]`; finds clips that are too short.
        on_bad: "raise" refuses all, "skip" leaves bad records out with a warning.
        report: JSONL file that lists the problems when they are skipped.
        memory: JSON file that remembers checked sound files.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ManifestError: for bad records, unless they are skipped.
        ValueError: if no record is left.
    """
    records, problems = scan(paths, answer, max_seconds, memory)
    bad = {(problem.file, problem.line) for problem in problems}
    sound = [record for record in records if (record.file, record.line) not in bad]
    problems += check_for_model(sound, num_units, audio_positions)
    return settle(records, problems, on_bad, report)


def scan(
    paths: str | Path | Sequence[str | Path],
    answer: bool = True,
    max_seconds: float = MAX_SECONDS,
    memory: str | Path | None = None,
) -> tuple[list[Record], list[Problem]]:
    """All records that can be parsed and all problems, as far as they show without a model."""
    files = [Path(p).expanduser().absolute() for p in ([paths] if isinstance(paths, (str, Path)) else paths)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such manifest (a JSONL file of conversations)")
    records: list[Record] = []
    problems: list[Problem] = []
    first: dict[str, Record] = {}
    for file in files:
        with file.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                if not text.strip():
                    continue
                record, found = _parse(text, file, number, answer)
                problems += found
                if record is None:
                    continue
                other = first.setdefault(record.id, record)
                if other is not record:
                    hint = "give each record its own id, or leave ids out"
                    problems.append(record.problem(f"id {record.id!r} is taken by {other.file}:{other.line}", hint))
                records.append(record)
    bad = {(problem.file, problem.line) for problem in problems}
    records_with_audio = [record for record in records if (record.file, record.line) not in bad]
    wanted = [path for record in records_with_audio for path in _all_audio(record)]
    infos = check_audio(wanted, memory)
    for record in records_with_audio:
        problems += _check_clips(record, infos, max_seconds)
    return records, sorted(problems, key=lambda problem: (files.index(problem.file), problem.line))


def check_for_model(
    records: Iterable[Record],
    num_units: int | None,
    audio_positions: Callable[[Tensor], Tensor] | None,
) -> list[Problem]:
    """Problems that depend on the model: unknown units, clips too short for its encoder and adaptor."""
    problems = []
    for record in records:
        for turn, message in enumerate((m for m in record.messages if m["role"] == "assistant"), start=1):
            largest = max(message.get("units", [0]))
            if num_units is not None and largest >= num_units:
                problems.append(
                    record.problem(
                        f"answer {turn} has unit {largest}, the model knows 0 to {num_units - 1}",
                        "set the model's number of units to that of the k-means that made them",
                    )
                )
        if audio_positions is not None and record.clip_samples:
            positions = audio_positions(torch.tensor(record.clip_samples))
            for path, samples, number in zip(record.clips, record.clip_samples, positions.tolist(), strict=True):
                if number < 1:
                    text = f"{path}: {samples / 16:.0f} ms is too short to give the LLM one position"
                    problems.append(record.problem(text, "remove the record, or join the clip with its neighbour"))
    return problems


def settle(
    records: Sequence[Record],
    problems: Sequence[Problem],
    on_bad: Literal["raise", "skip"] = "raise",
    report: str | Path | None = None,
) -> list[Record]:
    """The records without problems, or `ManifestError`, as `on_bad` says (see `read_manifest`)."""
    if problems and on_bad == "raise":
        raise ManifestError(problems)
    bad = {(problem.file, problem.line) for problem in problems}
    good = [record for record in records if (record.file, record.line) not in bad]
    if problems:
        where = f"; all of them are in {report}" if report else ""
        rank_zero_warn(f"{len(bad)} bad records are left out, the first: {problems[0]}{where}")
        if report:
            _write_report(Path(report), problems)
    if not good:
        raise ValueError(f"no record is left: {problems[0]}" if problems else "the manifest holds no records")
    return good


@rank_zero_only
def _write_report(path: Path, problems: Sequence[Problem]) -> None:
    lines = [json.dumps({**vars(problem), "file": str(problem.file)}, ensure_ascii=False) for problem in problems]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def _parse(text: bytes, file: Path, line: int, answer: bool) -> tuple[Record | None, list[Problem]]:
    name = f"{file.stem}:{line}"
    try:
        row = json.loads(text)
    except ValueError as error:
        return None, [Problem(file, line, name, f"not JSON ({error})", "write one JSON object per line")]
    if not isinstance(row, dict):
        return None, [Problem(file, line, name, "not a JSON object", 'write {"messages": [...]} on each line')]
    if isinstance(row.get("id"), (str, int)):
        name = str(row["id"])
    problems = [Problem(file, line, name, message, hint) for message, hint in check_messages(row, answer)]
    if problems:
        return Record(name, [], file, line), problems
    return Record(name, [_absolute(message, file.parent) for message in row["messages"]], file, line), []


def _absolute(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    message = dict(message)
    if "audio" in message:
        message["audio"] = str(folder / message["audio"])
    if not isinstance(message["content"], str):
        message["content"] = [
            {**part, "path": str(folder / part["path"])} if part["type"] == "audio" else part
            for part in message["content"]
        ]
    return message


def _all_audio(record: Record) -> list[str]:
    return clip_paths(record.messages) + [message["audio"] for message in record.messages if "audio" in message]


def _check_clips(record: Record, infos: dict[Path, AudioInfo], max_seconds: float) -> list[Problem]:
    """Problems of the sound files of a record; fills in its `clip_samples`."""
    found = [(path, infos[Path(path)]) for path in _all_audio(record)]
    problems = [record.problem(info.error, info.hint or "") for _, info in found if info.error]
    clips = found[: len(record.clips)]  # the spoken answers come after them and may be of any length
    for path, info in clips:
        if info.seconds > max_seconds:
            text = f"{path}: {info.seconds:.1f} s is longer than {max_seconds:g} s"
            problems.append(record.problem(text, "split the clip; nothing is cut silently"))
    record.clip_samples = [info.samples for _, info in clips]
    return problems
