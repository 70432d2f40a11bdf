"""Ask any model of the zoo a conversation: events as they come, the whole reply, or just the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from speechzoo.data import encode_batch
from speechzoo.text import ChatPrompt, Message
from speechzoo.types import AudioChunk, SpeechBatch, SpeechReply, StreamEnd, StreamEvent, StreamEvents, TextDelta


class Streams(Protocol):
    """Every model of the zoo, the cascade too."""

    prompt: ChatPrompt

    def stream(self, batch: SpeechBatch, **options: Any) -> StreamEvents: ...


def stream(
    model: Streams, conversation: Sequence[Message] | Sequence[Sequence[Message]], **options: Any
) -> StreamEvents:
    """Answer a conversation, or several together, in events.

    Args:
        model: any model of the zoo, in eval mode.
        conversation: messages as in a manifest; audio parts are `{"type": "audio", "path": file}` or
            `{"type": "audio", "array": samples}` (`[T]` at 16 kHz). A list of conversations is answered as a batch, row
            by row in its order.
        options: of `model.stream`: `vocoder`, `chunk_units`, `voice`, and those of `Decoding`.

    Raises:
        ValueError: if there is nothing to answer, or a clip or an option is no good.
        FileNotFoundError: if a clip's file does not exist.
    """
    if not conversation:
        raise ValueError("there is no message to answer")
    several = not isinstance(conversation[0], dict)
    conversations = cast(Sequence[Sequence[Message]], conversation if several else [conversation])
    batch = encode_batch(model.prompt, conversations, audio_positions=getattr(model, "audio_positions", None))
    device = next((p.device for p in model.parameters()), None) if isinstance(model, torch.nn.Module) else None
    return model.stream(batch if device is None else batch.to(device), **options)


def answer(
    model: Streams, conversation: Sequence[Message] | Sequence[Sequence[Message]], **options: Any
) -> SpeechReply:
    """As `stream`, as one reply at the end."""
    return collect(stream(model, conversation, **options))


def collect(events: Iterable[StreamEvent]) -> SpeechReply:
    """The reply that events add up to; rows without sound have empty `audio` if another row has some."""
    ends: dict[int, StreamEnd] = {}
    waves: dict[int, list[Tensor]] = {}
    rate = None
    for event in events:
        if isinstance(event, AudioChunk):
            waves.setdefault(event.row, []).append(event.audio)
            rate = event.sample_rate
        elif isinstance(event, StreamEnd):
            ends[event.row] = event
    rows = [ends[row] for row in sorted(ends)]
    units = [end.units for end in rows if end.units is not None]
    heard = [text for end in rows for text in end.heard or []]
    return SpeechReply(
        text=[end.text for end in rows],
        units=units or None,
        audio=[torch.cat(waves[row]) if row in waves else torch.zeros(0) for row in sorted(ends)] if waves else None,
        sample_rate=rate,
        heard=heard if any(end.heard is not None for end in rows) else None,
        stopped=[end.stopped for end in rows],
    )


def text_deltas(events: Iterable[StreamEvent], row: int = 0) -> Iterator[str]:
    """The text of one row as it comes, for whoever wants nothing else.

    Like the events it can be read in any thread, by one thread at a time; several streams of one model may run in
    several threads. Closing it closes the stream.
    """
    try:
        for event in events:
            if isinstance(event, TextDelta) and event.row == row:
                yield event.text
    finally:
        if hasattr(events, "close"):
            events.close()
