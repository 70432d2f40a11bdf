"""Sound inside messages: the forms other programs write it in, and `data:` URIs."""

from __future__ import annotations

import base64
import binascii
from typing import Any
from urllib.parse import unquote_to_bytes

from speechzoo.audio import SoundError

DATA = "data:"
TYPES = ("audio", "input_audio", "audio_url")


def plain(message: Any) -> Any:
    """A message with its audio parts in the form of manifests, `{"type": "audio", "path": ...}` (or `"array"`).

    Taken are the forms of Hugging Face's templates (`path`, `audio`, `url`, `audio_url`), and OpenAI's and vLLM's
    `{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}` and
    `{"type": "audio_url", "audio_url": {"url": ...}}`.
    """
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_plain(part) for part in message["content"]]}


def _plain(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") not in TYPES or part.get("array") is not None:
        return part
    given = (part.get(key) for key in ("path", "audio", "url", "audio_url", "input_audio"))
    value = next((value for value in given if value is not None), "")
    if isinstance(value, dict) and value.get("array") is not None:  # as `datasets` decodes sound
        return _plain({**part, **value, "type": "audio"})
    if isinstance(value, dict) and "data" in value:
        value = f"{DATA}audio/{value.get('format', 'wav')};base64,{value['data']}"
    elif isinstance(value, dict):
        value = value.get("url") or value.get("path") or ""
    is_array = hasattr(value, "__array__")
    said = {} if part.get("transcript") is None else {"transcript": part["transcript"]}
    return {"type": "audio", "array" if is_array else "path": value, **said}


def written(message: Any) -> Any:
    """A message with what its clips say in their places.

    Raises:
        KeyError: if a clip has no `transcript`.
    """
    if isinstance(message["content"], str):
        return message
    parts = [
        {"type": "text", "text": part["transcript"]} if part["type"] == "audio" else part for part in message["content"]
    ]
    return {**message, "content": parts}


def is_data(clip: Any) -> bool:
    """Whether a sound is named by a `data:` URI."""
    return isinstance(clip, str) and clip[:5].lower() == DATA


def shown(clip: Any) -> str:
    """What messages call a sound: its path, or the beginning of its URI."""
    return f"{clip[:40]}..." if is_data(clip) and len(clip) > 40 else str(clip)


def data_bytes(uri: str) -> bytes:
    """The content of a `data:` URI (RFC 2397).

    Raises:
        SoundError: if it has no content, or is not the base64 that it says it is.
    """
    head, _, body = uri.partition(",")
    if not body:
        raise SoundError(f"{shown(uri)}: holds no data", "write data:audio/wav;base64,... with the bytes of a file")
    raw = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return raw
    letters = b"".join(raw.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except binascii.Error as error:
        raise SoundError(f"{shown(uri)}: not base64 ({error})", "encode the bytes of a sound file again") from error
