"""Questions of a suite: what is asked, where its sound is, what counts as right; read from JSONL, JSON and Parquet."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from speechzoo.audio import MAX_SECONDS, SAMPLE_RATE, check_question, read_audio
from speechzoo.data.sources.base import needs
from speechzoo.system.digests import file_digest
from speechzoo.system.files import read_lines
from speechzoo.text import lone_surrogate


@dataclass(frozen=True)
class Cell:
    """Sound inside a Parquet file, by row group and row."""

    file: str
    column: str
    group: int
    row: int

    def content(self) -> bytes | str:
        """The bytes of a sound file, or its path beside the Parquet file."""
        found = _group(self.file, self.column, self.group)[self.row]
        told = found if isinstance(found, dict) else {"path": found}
        content: bytes | None = told.get("bytes")
        return content or str(Path(self.file).parent / str(told.get("path")))


@lru_cache(maxsize=2)
def _group(file: str, column: str, group: int) -> list[Any]:
    from pyarrow import parquet

    return list(parquet.ParquetFile(file).read_row_group(group, columns=[column])[column].to_pylist())


def _is_sound(sounds: Sequence[Any], row: int) -> bool:
    """Whether a row of a column has a sound: an empty cell, or one of empty `bytes` and `path`, has none."""
    found = sounds[row] if sounds else None
    return bool(found.get("bytes") or found.get("path") if isinstance(found, dict) else found)


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        text: its words, where they are known; of a conversation all of them, as somebody would write it.
        sound: file or place of its sound; None: it is asked in writing.
        references: answers that count as right; the first one is what error rates compare with.
        kind: part of the suite it belongs to.
        more: what a rule needs beside, such as IFEval's instructions.
        around: what a conversation has in writing before and after the sound.
        system: a conversation's system message.
    """

    id: str
    text: str = ""
    sound: str | Cell | None = None
    references: tuple[str, ...] = ()
    kind: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)
    around: tuple[str, str] = ("", "")
    system: str = ""

    def digest(self, written: bool = False) -> str | None:
        """What changes when the question does, its sound included; None where the sound is not there.

        Args:
            written: its words are asked, so a sound that is not there is none.
        """
        sound = self.sound.content() if isinstance(self.sound, Cell) else self.sound
        if isinstance(sound, str) and not Path(sound).is_file():
            if not written:
                return None
            sound = None
        content = file_digest(sound) if isinstance(sound, str) else hashlib.sha256(sound or b"").hexdigest()
        told: list[Any] = [self.id, self.text, content, list(self.references), self.kind, dict(self.more)]
        told += [self.around, self.system] if any((*self.around, self.system)) else []  # as before there were these
        return hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def read_sound(question: Question) -> Tensor | None:
    """Samples `[T]` at 16 kHz; None for a question in writing.

    Raises:
        FileNotFoundError: if there is no such file.
        SoundError, ValueError: if it cannot be read, is silent, or longer than the 30 s that Whisper hears.
    """
    if question.sound is None:
        return None
    sound = question.sound.content() if isinstance(question.sound, Cell) else question.sound
    name = sound if isinstance(sound, str) else question.id
    audio = check_question(read_audio(io.BytesIO(sound) if isinstance(sound, bytes) else sound, name=name), name)
    if len(audio) > MAX_SECONDS * SAMPLE_RATE:
        raise ValueError(f"{len(audio) / SAMPLE_RATE:.1f} s long, and a clip takes at most {MAX_SECONDS:.0f} s")
    return audio


Columns = Mapping[str, Sequence[str]]
"""Names that a field of a question may have in files, the first one that is there counts."""

EMPTY: tuple[Any, ...] = (None, "", [])  # cells of a table that say nothing

OWN: Columns = {
    "id": ("id", "question_id", "key"),
    "text": ("question", "text", "instruction", "prompt"),
    "sound": ("audio", "question_audio", "sound"),
    "references": ("references", "reference", "answers", "answer", "output"),
    "kind": ("kind", "category", "dataset"),
}


def read_table(files: Sequence[Path], columns: Columns = OWN, keep: Sequence[str] = ()) -> list[Question]:
    """The questions of JSONL, JSON (a list) and Parquet files; of conversations (`messages`) the last user turn.

    Paths of sounds are relative to the file. The kind of a question that names none is its file's split
    (`test-00000-of-00001.parquet` -> `test`).

    Args:
        keep: further columns, for `Question.more`.

    Raises:
        ValueError: for a row that is no question, or two of one id; names file and row.
    """
    found: dict[str, Question] = {}
    numbers = Counter({file.stem.split("-")[0]: 0 for file in files})
    for file in files:
        split = file.stem.split("-")[0]
        for number, row, cell in _rows(file, columns, keep):
            where = f"{file}:{number}"
            numbers[split] += 1
            name = f"{split}-{numbers[split]:05d}"
            question = _question(row, columns, keep, name, file.parent, cell, where)
            if not question.kind and len(numbers) > 1:
                question = replace(question, kind=split)
            if question.id in found:
                raise ValueError(f"{where}: the id {question.id!r} comes twice")
            found[question.id] = question
    return list(found.values())


def _rows(file: Path, columns: Columns, keep: Sequence[str]) -> Iterator[tuple[int, dict[str, Any], Cell | None]]:
    """Numbers from 1, rows without the bytes of their sound, and where these are; of Parquet only what is asked for."""
    if file.suffix == ".parquet":
        parquet = needs("pyarrow.parquet")
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            column = next((name for name in columns["sound"] if name in names), None)
            wanted = {"messages", *keep, *(name for given in columns.values() for name in given)} - {column}
            number = 0
            for group in range(table.num_row_groups):
                part = table.read_row_group(group, columns=[name for name in names if name in wanted])
                sounds = [] if column is None else _group(str(file), column, group)
                for row, told in enumerate(part.to_pylist()):
                    number += 1
                    yield number, told, Cell(str(file), str(column), group, row) if _is_sound(sounds, row) else None
    else:
        yield from ((number, row, None) for number, row in _numbered(file))


def rows_of(file: Path, needed: Sequence[str]) -> list[dict[str, Any]]:
    """The records of a JSONL file, or of a JSON file that is a list, each of which has texts under these keys.

    Raises:
        ValueError: naming file and row that is otherwise.
    """
    found = []
    for number, row in _numbered(file):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in needed):
            raise ValueError(f"{file}:{number}: a record has the texts {', '.join(needed)}")
        found.append(row)
    return found


def _numbered(file: Path) -> Iterator[tuple[int, Any]]:
    if file.suffix == ".json":
        found = _parse(file.read_bytes(), str(file))
        if not isinstance(found, list):
            raise ValueError(f"{file}: holds {type(found).__name__}, and not a list of records")
        yield from enumerate(found, start=1)
    else:
        yield from ((number, _parse(line, f"{file}:{number}")) for number, line in read_lines(file))


def _parse(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error


def _question(
    row: Any, columns: Columns, keep: Sequence[str], name: str, folder: Path, cell: Cell | None, where: str
) -> Question:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a question is an object with `question` or `audio`, not {type(row).__name__}")
    around, system = ("", ""), ""
    if isinstance(row.get("messages"), list):
        row, around, system = _of_messages(row, where)
    told = {key: next((row[n] for n in names if row.get(n) not in EMPTY), None) for key, names in columns.items()}
    sound: Any = cell or told["sound"]
    if isinstance(sound, dict):
        sound = sound.get("path") or None
    text = told["text"]
    if sound is None and not text:
        raise ValueError(f"{where}: neither words nor sound; a question has `question`, `audio` or both")
    if not isinstance(text or "", str) or not isinstance(sound or "", str | Cell):
        raise ValueError(f"{where}: `question` is a text, `audio` the path of a file")
    question = Question(
        id=str(name if told["id"] is None else told["id"]),
        text=text or "",
        sound=str(folder / sound) if isinstance(sound, str) else sound,
        references=tuple(_texts(told["references"], where)),
        kind=str(told["kind"] or ""),
        more={key: row[key] for key in keep if key in row},
        around=around,
        system=system,
    )
    texts = question.id, question.text, question.kind, *question.references, *around, system
    if broken := next(filter(None, map(lone_surrogate, texts)), None):
        raise ValueError(f"{where}: holds {broken}, half of a character: repair the text where it was cut")
    return question


def _of_messages(row: dict[str, Any], where: str) -> tuple[dict[str, Any], tuple[str, str], str]:
    """The question of a conversation and the answer to it, what is written around its sound, and the system message."""
    asked = [
        n for n, message in enumerate(row["messages"]) if isinstance(message, dict) and message.get("role") == "user"
    ]
    if len(asked) != 1:
        raise ValueError(f"{where}: {len(asked)} user turns; a question of a suite has one")
    content = row["messages"][asked[0]].get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{where}: the content of a turn is a text or a list of audio and text parts")
    clips = [n for n, part in enumerate(parts) if part.get("type") == "audio"]
    if len(clips) > 1 or not all(parts[n].get("path") for n in clips):
        raise ValueError(f"{where}: {len(clips)} clips; a question of a suite has one, with its path")
    said = [part.get("transcript" if n in clips else "text") or "" for n, part in enumerate(parts)]
    at = clips[0] if clips else len(said)
    told: dict[str, Any] = {"id": row.get("id"), "kind": row.get("kind")}
    # Without the words of the clip what is written beside it is no question that could be judged or asked in writing.
    told["question"] = "\n".join(filter(None, said)) if all(said[n] for n in clips) else None
    told["audio"] = parts[at].get("path") if clips else None
    answers = (m for m in row["messages"][asked[0] + 1 :] if isinstance(m, dict) and m.get("role") == "assistant")
    told["reference"] = _written(next(answers, {}), where)
    around = ("\n".join(filter(None, said[:at])), "\n".join(filter(None, said[at + 1 :]))) if clips else ("", "")
    first = row["messages"][0]
    system = _written(first, where) if isinstance(first, dict) and first.get("role") == "system" else ""
    return told, around, system


def _written(message: dict[str, Any], where: str) -> str:
    """What a system message or an answer says: a text, or text parts as in manifests."""
    content = message.get("content") or ""
    parts = [{"text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise ValueError(f"{where}: the content of a system message or an answer is a text or a list of text parts")
    return "".join(part["text"] for part in parts)


def _texts(value: Any, where: str) -> list[str]:
    """Right answers: a text, a list of them, or TriviaQA's `{value, aliases}`."""
    if isinstance(value, dict):
        value = [value.get("value"), *(value.get("aliases") or [])]
    found = [one for one in (value if isinstance(value, list) else [value]) if one not in (None, "")]
    if any(isinstance(one, list | dict) for one in found):
        raise ValueError(f"{where}: a right answer is a text, or a list of texts any of which is right")
    found = [str(one) for one in found]
    return list(dict.fromkeys(found))
