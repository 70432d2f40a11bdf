"""One conversation, and one thing that is wrong with one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a record; `line` is its line in a JSONL file, else its number in the shard."""

    file: Path
    line: int
    id: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} ({self.id}): {self.message} -> {self.hint}"


@dataclass
class Record:
    """One conversation.

    Attributes:
        messages: as in the file, with absolute paths (str) or references to sound in a shard.
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


def all_audio(messages: Iterable[dict[str, Any]]) -> list[str]:
    """Paths of the clips of the user and, after them, of spoken answers."""
    messages = list(messages)
    return clip_paths(messages) + [message["audio"] for message in messages if "audio" in message]
