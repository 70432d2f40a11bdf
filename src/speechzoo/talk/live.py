"""Sound that is heard while it is still being made: a WAV file that a browser plays as it grows."""

from __future__ import annotations

import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import numpy as np
from torch import Tensor

from speechzoo.talk.desk import Answer

UNKNOWN = 0x7FFF_F000  # bytes of a sound that has no end yet; players stop where the data does
KEEP = 900.0  # seconds that a sound can be fetched after it was last asked for


def wav_header(sample_rate: int, data_bytes: int = UNKNOWN) -> bytes:
    """44 bytes before mono 16-bit samples."""
    head = b"RIFF" + struct.pack("<I", 36 + data_bytes) + b"WAVEfmt "
    form = struct.pack("<IHHIIHH", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return head + form + b"data" + struct.pack("<I", data_bytes)


def pcm(chunk: Tensor) -> bytes:
    """Samples `[T]` in [-1, 1] as 16-bit little-endian."""
    samples: np.ndarray = (chunk.clamp(-1.0, 1.0).numpy() * 32767).round()
    return samples.astype(np.dtype("<i2")).tobytes()


def wav_bytes(answer: Answer) -> bytes:
    """The whole sound of an answer that is over."""
    data = b"".join(map(pcm, answer.chunks))
    return wav_header(answer.sample_rate, len(data)) + data


def growing_wav(answer: Answer, wait: Callable[[], None] = lambda: time.sleep(0.02)) -> Iterator[bytes]:
    """The sound of an answer, header first, each chunk when it is there; ends when the answer is over.

    Args:
        wait: called while there is nothing new.
    """
    sent = 0
    while True:
        over = answer.over  # before the chunks: none comes after it
        chunks = answer.chunks[sent:]
        if chunks and not sent:
            yield wav_header(answer.sample_rate)
        for chunk in chunks:
            yield pcm(chunk)
        sent += len(chunks)
        if over:
            return
        if not chunks:
            wait()


class Sounds:
    """Answers by names that cannot be guessed, for browsers to fetch their sound."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Answer, float]] = {}
        self._lock = threading.Lock()

    def add(self, answer: Answer) -> str:
        """A new name for an answer; those that nobody fetched for long are forgotten."""
        name, now = uuid.uuid4().hex, time.monotonic()
        with self._lock:
            self._held = {key: (kept, seen) for key, (kept, seen) in self._held.items() if now - seen < KEEP}
            self._held[name] = answer, now
        return name

    def get(self, name: str) -> Answer | None:
        """The answer of a name."""
        with self._lock:
            if name not in self._held:
                return None
            answer, _ = self._held[name]
            self._held[name] = answer, time.monotonic()
            return answer

    def __len__(self) -> int:
        return len(self._held)
