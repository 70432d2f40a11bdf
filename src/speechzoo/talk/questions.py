"""Questions and conversations: sounds that are fit to be asked, and message lists as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechzoo.audio import MAX_SECONDS, SAMPLE_RATE, SoundError, check_question
from speechzoo.data.dataset import check_positions
from speechzoo.data.parts import is_data, plain, shown
from speechzoo.data.schema import check_messages
from speechzoo.data.sources import read_clip
from speechzoo.system.files import load_json, write_json
from speechzoo.text import Message


def read_question(path: str | Path) -> Tensor:
    """Samples of a spoken question. Shape: `[T]` at 16 kHz.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no sound, empty, cut off, not scaled, silent or longer than Whisper's 30 s; one line that
            names the file.
    """
    named = shown(path)
    samples = check_question(read_clip(path if is_data(path) else Path(path).expanduser()), named)
    seconds = len(samples) / SAMPLE_RATE
    if seconds > MAX_SECONDS:
        raise ValueError(f"{named}: {seconds:.1f} s long; a question takes at most {MAX_SECONDS:.0f} s: cut it")
    return samples


def question(sound: str | Path | None = None, text: str | None = None) -> Message:
    """A user's message: a sound, a text, or a text and then a sound. The sound is read here and now.

    Raises:
        FileNotFoundError, ValueError: see `read_question`; also if there is neither.
    """
    text = (text or "").strip()
    if sound is None:
        if not text:
            raise ValueError("the question is empty: speak or write something")
        return {"role": "user", "content": text}
    before = [{"type": "text", "text": text}] if text else []
    return {"role": "user", "content": [*before, {"type": "audio", "path": str(sound), "array": read_question(sound)}]}


def read_history(path: str | Path) -> list[Message]:
    """A conversation so far: a JSON list of `{"role", "content"}` messages, as in manifests and in Hugging Face's chat
    templates; the sounds of its questions are read.

    Paths of sounds (`path`, `audio` or `url` of an audio part) are relative to the file; `data:` URIs hold the sound
    itself.

    Raises:
        FileNotFoundError: if the file or one of its sounds is not there.
        ValueError: if it is no such list, or does not end with an answer; one line that names the file.
    """
    file = Path(path).expanduser()
    messages = load_json(file)
    if isinstance(messages, dict):
        messages = messages.get("messages")
    if not isinstance(messages, list):
        raise ValueError(f"{path}: holds no list of messages")
    if not messages:
        return []
    messages = [plain(message) for message in messages]
    only_system = len(messages) == 1 and isinstance(messages[0], dict) and messages[0].get("role") == "system"
    # A system message alone is a fine beginning, which the schema of records does not know.
    rest = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}] if only_system else []
    found = list(check_messages({"messages": [*messages, *rest]}))
    if found:
        problem, hint = found[0]
        raise ValueError(f"{path}: {problem}; {hint}")
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "audio":
                if not is_data(part["path"]):
                    part["path"] = str(file.parent / Path(part["path"]).expanduser())
                try:
                    part["array"] = read_question(part["path"])
                except SoundError as error:
                    raise ValueError(f"{path}: {error}") from error
    return messages


def write_history(path: str | Path, messages: Sequence[Message]) -> None:
    """Write a conversation as `read_history` reads it; sounds are named, not copied."""
    file = Path(path).expanduser()
    kept = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [_named(part, file.parent) for part in content]
        kept.append({**message, "content": content})
    write_json(file, kept)


def fitting(model: Any, messages: Sequence[Message], room: int) -> list[Message]:
    """The conversation without its oldest exchanges, as many as do not fit; as in training.

    Args:
        model: says how long a prompt may be (`prompt.max_length`), and how many positions clips take; a cascade's clips
            become text of about as many.
        room: positions that the answer may take.

    Raises:
        ValueError: if the question alone does not fit.
    """
    messages = list(messages)
    first = int(messages[0]["role"] == "system")
    while True:
        length = prompt_length(model, messages)
        if length + room <= model.prompt.max_length:
            return messages
        if len(messages) - first <= 2:
            raise ValueError(
                f"the question takes {length} positions and the answer up to {room}, but the model has "
                f"{model.prompt.max_length}: shorten the question, or allow fewer new tokens"
            )
        del messages[first : first + 2]


def prompt_length(model: Any, messages: Sequence[Message]) -> int:
    """Positions of a prompt in the LLM, clips included."""
    encoded = model.prompt.encode(messages, answer=False)
    lens = [len(part["array"]) for part in sounds_of(messages)]
    if not lens:
        return len(encoded.ids)
    if hasattr(model, "audio_positions"):
        heard = int(model.audio_positions(torch.tensor(lens)).sum())
    else:
        heard = sum(lens) * WORDS // SAMPLE_RATE
    return int(len(encoded.ids) - encoded.num_audio + heard)


def sounds_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The audio parts of messages, in order."""
    contents = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part for content in contents for part in content if part["type"] == "audio"]


def check_audible(model: Any, messages: Sequence[Message]) -> None:
    """Refuse sounds that are too short for a model to hear anything of.

    Raises:
        ValueError: naming the first.
    """
    if hasattr(model, "audio_positions"):
        parts = sounds_of(messages)
        check_positions([part["array"] for part in parts], parts, model.audio_positions)


WORDS = 6
"""Tokens a second of fast speech becomes when it is written down."""


def _named(part: dict[str, Any], folder: Path) -> dict[str, Any]:
    if part["type"] != "audio":
        return part
    if is_data(part["path"]):
        return {"type": "audio", "path": part["path"]}
    where = Path(part["path"]).expanduser().resolve()
    return {"type": "audio", "path": os.path.relpath(where, folder.resolve())}
