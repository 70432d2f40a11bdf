"""From the steps of an answer to events: text, units and sound while the model is still writing."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from speechzoo.audio import SAMPLE_RATE
from speechzoo.generation.tokens import Step, Steps
from speechzoo.text import ChatPrompt
from speechzoo.types import IGNORE, AudioChunk, SpeechBatch, StreamEnd, StreamEvents, TextDelta, UnitDelta

if TYPE_CHECKING:
    from speechzoo.generation.sound import VocoderStream
    from speechzoo.generation.units import UnitStream
    from speechzoo.units import UnitDecoder
    from speechzoo.vocoders import Vocoder

SENTENCE = re.compile(r".*?(?:[.!?…]+[\"'”’)\]]*\s+|[。！？]+)", re.DOTALL)
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
UNFINISHED = "\ufffd"  # what tokenizers write for a character of which bytes are missing


class Voice(Protocol):
    """Anything that reads text aloud."""

    sample_rate: int  # Hz

    def speak(self, text: str) -> Any: ...  # samples [T] in [-1, 1]


class TextTrack:
    """Text of one answer, token by token; its pieces together are `ChatPrompt.decode` of all tokens.

    Held back are characters of which bytes are missing, runs of byte tokens (one more byte can make all of them
    invalid), and blanks, which the end of an answer loses.
    """

    def __init__(self, prompt: ChatPrompt) -> None:
        self.prompt, self.told = prompt, ""
        self.ids: list[int] = []

    def push(self, token: int) -> str:
        """The text that a token makes certain."""
        self.ids.append(token)
        if BYTE.fullmatch(str(self.prompt.tokenizer.convert_ids_to_tokens(token))):
            return ""
        text = self.prompt.decode(self.ids)
        while (kept := text.rstrip().rstrip(UNFINISHED)) != text:
            text = kept
        return self._tell(text)

    def flush(self) -> str:
        """What was held back, when nothing follows."""
        return self._tell(self.prompt.decode(self.ids))

    def _tell(self, text: str) -> str:
        new = text[len(self.told) :]
        self.told += new
        return new


class SentenceTrack:
    """Cuts text that comes in pieces into sentences."""

    def __init__(self) -> None:
        self.rest = ""

    def push(self, text: str, last: bool = False) -> list[str]:
        """The sentences that are complete now; with `last` the rest counts as one."""
        self.rest += text
        sentences = []
        while found := SENTENCE.match(self.rest):
            sentences.append(found[0])
            self.rest = self.rest[found.end() :]
        if last:
            sentences.append(self.rest)
            self.rest = ""
        return [sentence.strip() for sentence in sentences if sentence.strip()]


class Speaker:
    """Makes units of steps, and sound of units or text: what an answer of several rows is spoken with.

    Args:
        decoder: makes units; None for models that speak none.
        vocoder: makes sound of units, `chunk_units` or more at a time.
        context_units: see `Vocoder.stream`.
        unit_tokens: tokens whose units are made together once a row's first sound (without a vocoder its first chunk of
            units) is out; until then they are made after every token. Fewer and larger matrix products cost less. None:
            an eighth of the tokens so far, at least 4: what is heard meanwhile grows as well.
        voice: makes sound of sentences.

    Raises:
        ValueError: if the vocoder is not for the decoder's units, or a number is below 1; or if the decoder reads
            tokens and wants the states that have read them.
    """

    def __init__(
        self,
        decoder: UnitDecoder | None = None,
        vocoder: Vocoder | None = None,
        chunk_units: int = 40,
        context_units: int | None = None,
        unit_tokens: int | None = None,
        voice: Voice | None = None,
    ) -> None:
        if vocoder is not None and decoder is None:
            raise ValueError("this model speaks no units: a vocoder has nothing to make sound of")
        if vocoder is not None and decoder is not None and vocoder.num_units != decoder.num_units:
            raise ValueError(
                f"the model speaks {decoder.num_units} units, the vocoder knows {vocoder.num_units}: "
                "take the vocoder that belongs to the model's units"
            )
        if decoder is not None and decoder.reads_ids and decoder.reads_last:
            raise ValueError(f"{type(decoder).__name__} reads_ids: it has to align to `predict`")
        for name, value in (("chunk_units", chunk_units), ("unit_tokens", unit_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")
        self.decoder, self.vocoder, self.voice = decoder, vocoder, voice
        self.chunk_units, self.context_units, self.unit_tokens = chunk_units, context_units, unit_tokens

    @property
    def reads_last(self) -> bool:
        """Whether there are units, and the states they come from have read a token (see `UnitDecoder.reads_last`)."""
        return self.decoder is not None and self.decoder.reads_last


class Row:
    """What has come of one answer so far."""

    def __init__(self, number: int, prompt: ChatPrompt, speaker: Speaker, heard: list[str] | None) -> None:
        self.number, self.speaker, self.heard = number, speaker, heard
        self.text, self.sentences = TextTrack(prompt), SentenceTrack()
        self.untold: list[int] = []
        self.units: list[Tensor] = []
        self.num_units = 0
        self.vocoder: VocoderStream | None = None
        if speaker.vocoder is not None:
            self.vocoder = speaker.vocoder.stream(speaker.chunk_units, speaker.context_units)
        self.samples = self.rate = 0
        self.first: dict[type, float] = {}

    @property
    def begun(self) -> bool:
        """Whether the first sound is out, or without a vocoder the first chunk of units."""
        return self.samples > 0 if self.vocoder is not None else self.num_units >= self.speaker.chunk_units

    def say(self, token: int | None) -> StreamEvents:
        """Text of a token, or with None the rest of the text; and its sound where a voice reads it."""
        if token is not None:
            self.untold.append(token)
        if new := self.text.flush() if token is None else self.text.push(token):
            yield TextDelta(self.number, new, self.untold)
            self.untold = []
        if self.speaker.voice is not None:
            for sentence in self.sentences.push(new, last=token is None):
                wave = torch.as_tensor(self.speaker.voice.speak(sentence))
                yield from self._sound(wave, self.speaker.voice.sample_rate)

    def speak(self, units: Tensor | None) -> StreamEvents:
        """New units, or with None the end of them; and their sound."""
        if units is not None and len(units):
            self.units.append(units)
            self.num_units += len(units)
            yield UnitDelta(self.number, units)
        if self.vocoder is not None and (units is None or len(units)):
            wave = self.vocoder.flush() if units is None else self.vocoder.push(units)
            yield from self._sound(wave, self.vocoder.vocoder.sample_rate)

    def _sound(self, wave: Tensor, rate: int) -> StreamEvents:
        if len(wave):
            start, self.rate = self.samples / rate, rate
            self.samples += len(wave)
            yield AudioChunk(self.number, wave.cpu(), rate, start)  # waits for a GPU: only then it is there

    def end(self, stop_ids: set[int], seconds: float) -> StreamEnd:
        """The totals."""
        units = None
        if self.speaker.decoder is not None:
            units = torch.cat(self.units) if self.units else torch.zeros(0, dtype=torch.long)
        return StreamEnd(
            row=self.number,
            text=self.text.told,
            ids=self.text.ids,
            stopped=self.text.ids[-1] in stop_ids,
            seconds=seconds,
            units=units,
            audio_seconds=self.samples / self.rate if self.rate else 0.0,
            first_text_seconds=self.first.get(TextDelta),
            first_units_seconds=self.first.get(UnitDelta),
            first_audio_seconds=self.first.get(AudioChunk),
            heard=self.heard,
        )


def answer_events(
    prompt: ChatPrompt,
    steps: Steps,
    rows: int,
    speaker: Speaker,
    stop_ids: set[int],
    start: float,
    heard: Sequence[list[str]] | None = None,
) -> StreamEvents:
    """Events of a batch of answers; within a row text comes first, then units, then sound, last `StreamEnd`.

    Args:
        start: `time.perf_counter()` when the question was asked.
        heard: transcriptions of each row's clips.
    """
    tracks = [Row(number, prompt, speaker, heard[number] if heard else None) for number in range(rows)]
    units = None if speaker.decoder is None else Units(speaker.decoder.stream(rows), speaker)
    with closing(steps):
        for step in steps:
            for event in _step_events(tracks, step, units, stop_ids, start):
                tracks[event.row].first.setdefault(type(event), time.perf_counter() - start)
                yield event


class Units:
    """Hands states to the unit decoder, after every token at first, then several tokens' together."""

    def __init__(self, stream: UnitStream, speaker: Speaker) -> None:
        self.stream, self.speaker = stream, speaker
        self.reads_ids = speaker.decoder is not None and speaker.decoder.reads_ids
        self.waiting: list[Tensor] = []  # [b, H] each
        self.ids: list[list[int]] = []  # [b] each, the tokens they predict
        self.tokens = 0  # given to the unit decoder
        self.unread = speaker.reads_last  # the first step's states have read no token of the answer

    def push(self, step: Step, tracks: list[Row]) -> list[Tensor] | None:
        """New units of the step's rows, None while states are kept waiting. Shape: `b times [U]`."""
        if self.unread:
            self.unread = False
            return None
        self.waiting.append(step.states)
        self.ids.append(step.ids)
        hurry = any(step.ended) or any(not tracks[row].begun for row in step.rows)
        if not hurry and len(self.waiting) < (self.speaker.unit_tokens or max(4, self.tokens // 8)):
            return None
        states = torch.stack(self.waiting, dim=1)
        known = {}
        if self.reads_ids:
            known = {"ids": torch.tensor(self.ids, device=states.device).T, "ended": torch.tensor(step.ended)}
        units = self.stream.push(states, **known)
        self.tokens += len(self.waiting)
        self.waiting, self.ids = [], []
        if any(step.ended):
            self.stream.keep([index for index, end in enumerate(step.ended) if not end])
        return units


def _step_events(tracks: list[Row], step: Step, units: Units | None, stop_ids: set[int], start: float) -> StreamEvents:
    for row, token in zip(step.rows, step.ids, strict=True):
        if token != IGNORE:
            yield from tracks[row].say(token)
    if units is not None and (spoken := units.push(step, tracks)) is not None:
        for row, new in zip(step.rows, spoken, strict=True):
            yield from tracks[row].speak(new)
    for row, ended in zip(step.rows, step.ended, strict=True):
        if ended:
            yield from tracks[row].say(None)
            yield from tracks[row].speak(None)
            yield tracks[row].end(stop_ids, time.perf_counter() - start)


def check_question(batch: SpeechBatch) -> None:
    """Refuse what no model can answer.

    Raises:
        ValueError: if the batch has no rows, or a clip without samples.
    """
    if not len(batch):
        raise ValueError("the batch holds no question")
    if batch.audio_lens is not None and len(batch.audio_lens) and int(batch.audio_lens.min()) < 1:
        raise ValueError(
            f"clip {int(batch.audio_lens.argmin())} of the batch holds no samples: record it again "
            f"(sound is expected at {SAMPLE_RATE} Hz)"
        )
