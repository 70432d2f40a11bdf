"""Who answers a suite's questions: models of ours, cascades, and other people's models behind an endpoint."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import soundfile
from torch import Tensor

from speechzoo.audio import SAMPLE_RATE, read_audio
from speechzoo.generation import answer
from speechzoo.interop.layout import find_source
from speechzoo.models.checkpoint import find
from speechzoo.names.published import entry, is_name
from speechzoo.suites.questions import Question, read_sound
from speechzoo.system.digests import file_digest
from speechzoo.system.endpoint import Endpoint, UnreachableError
from speechzoo.talk.questions import check_audible, fitting
from speechzoo.talk.session import MAX_NEW_TOKENS
from speechzoo.talk.sources import CASCADE, Talker, open_talker
from speechzoo.talk.sources import fitting as fitting_vocoder
from speechzoo.text import Message
from speechzoo.vocoders import open_vocoder

DESCRIPTIONS = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Reply:
    """An answer; `audio` is `[T]` at `rate` Hz."""

    text: str
    seconds: float
    audio: Tensor | None = None
    rate: int = SAMPLE_RATE
    units: list[int] | None = None
    heard: str | None = None
    stopped: bool | None = None


Answered = tuple[Question, Reply | str]
"""A question, and its answer or why there is none."""


class System(Protocol):
    """Whoever is asked."""

    name: str

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, as plain data: answers of another identity are not continued."""
        ...

    def answer(self, questions: Sequence[Question], words: str, written: bool) -> Iterator[Answered]:
        """Answer all, in their order.

        Args:
            words: an instruction put before the sound.
            written: ask the words of the question, not its sound.

        Raises:
            UnreachableError: nobody is there (any more).
        """
        ...


def conversation(question: Question, words: str, written: bool) -> list[Message]:
    """The messages that ask a question, sound read.

    Raises:
        FileNotFoundError, ValueError: see `read_sound`.
    """
    audio = None if written else read_sound(question)
    content: Any = question.text
    if audio is not None:
        before, after = question.around if any(question.around) else (words, "")
        content = [{"type": "audio", "path": question.id, "array": audio}]
        content[:0] = [{"type": "text", "text": before}] if before else []
        content += [{"type": "text", "text": after}] if after else []
    system: list[Message] = [{"role": "system", "content": question.system}] if question.system else []
    return [*system, {"role": "user", "content": content}]


@dataclass
class Local:
    """A model of the zoo, a run, a saved form or a cascade; loaded when it is first asked."""

    name: str
    source: str
    vocoder: str | None = None
    device: str | None = None
    trust_code: bool = False
    batch: int = 8
    generate: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def talker(self) -> Talker:
        """The model, opened; with the vocoder where it speaks that one's units."""
        talker = open_talker(self.source, None, self.device, self.trust_code)
        if self.vocoder is not None and (units := getattr(talker.model, "num_units", None)) is not None:
            vocoder = open_vocoder(self.vocoder)
            if vocoder.num_units == units or not talker.sounds:
                device = next(talker.model.parameters()).device
                talker.sound["vocoder"] = fitting_vocoder(vocoder, talker.model, self.vocoder).to(device)
        return talker

    def identity(self) -> dict[str, Any]:
        """See `System`."""
        told = {"source": self.source, "content": fingerprint(self.source), **self.generate}
        return told | ({"vocoder": fingerprint(self.vocoder)} if self.vocoder else {})

    def answer(self, questions: Sequence[Question], words: str, written: bool) -> Iterator[Answered]:
        """See `System`."""
        talker = self.talker if questions else None  # here: what is wrong with the model is no fault of a question
        for start in range(0, len(questions), self.batch):
            fit: list[tuple[Question, list[Message]]] = []
            for question in questions[start : start + self.batch]:
                try:
                    fit.append((question, self.messages(question, words, written)))
                except (ValueError, OSError) as error:
                    yield question, str(error)
            if fit and talker is not None:
                replies = answer_together(talker, [messages for _, messages in fit], self.generate)
                yield from zip((question for question, _ in fit), replies, strict=True)

    def messages(self, question: Question, words: str, written: bool) -> list[Message]:
        """The conversation that asks a question.

        Raises:
            ValueError: if the model cannot take it.
        """
        model, asked = self.talker.model, conversation(question, words, written)
        check_audible(model, asked)
        own = getattr(model, "generation", {}).get("max_new_tokens", MAX_NEW_TOKENS)
        return fitting(model, asked, self.generate.get("max_new_tokens", own))


def answer_together(
    talker: Talker, conversations: Sequence[Sequence[Message]], generate: Mapping[str, Any]
) -> list[Reply]:
    """Answer conversations as one batch, with sound where the model or its voice makes some.

    The one place of the suites that asks a model of ours. An answer that a voice cannot read stays without sound.
    """
    start, voice = time.perf_counter(), talker.sound.get("voice")
    made = {key: value for key, value in talker.sound.items() if key != "voice"}
    reply = answer(talker.model, conversations, **made, **generate)
    sounds: list[Tensor | None] = [None] * len(conversations)
    if reply.audio is not None:
        sounds = [wave.float().cpu() for wave in reply.audio]
    rate = reply.sample_rate or SAMPLE_RATE
    if voice is not None:
        sounds, rate = [_read_aloud(voice.speak, text) for text in reply.text], voice.sample_rate
    if talker.sounds and voice is None and reply.audio is None:  # no unit in any row
        sounds = [Tensor() for _ in conversations]
    heard = iter(reply.heard or [])
    spoken = [any(isinstance(m["content"], list) for m in messages) for messages in conversations]
    seconds = (time.perf_counter() - start) / len(conversations)
    return [
        Reply(
            text=text,
            seconds=seconds,
            audio=sounds[row],
            rate=rate,
            units=reply.units[row].tolist() if reply.units else None,
            heard=next(heard) if reply.heard is not None and spoken[row] else None,
            stopped=reply.stopped[row] if reply.stopped else None,
        )
        for row, text in enumerate(reply.text)
    ]


def _read_aloud(speak: Callable[[str], Any], text: str) -> Tensor | None:
    try:
        return Tensor(speak(text))
    except ValueError:  # a word that its lexicon lacks, or no text
        return None


@dataclass
class Foreign:
    """A model behind an OpenAI-compatible endpoint, which takes sound as `input_audio`.

    Args:
        voice: ask for spoken answers too, in the voice of this name; empty: text alone.
        parallel: requests at a time.
    """

    name: str
    endpoint: Endpoint
    voice: str = ""
    parallel: int = 4
    generate: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """See `System`. What stands behind a name may change without a sign."""
        return {"endpoint": self.endpoint.url, "model": self.endpoint.model, "voice": self.voice, **self.generate}

    def answer(self, questions: Sequence[Question], words: str, written: bool) -> Iterator[Answered]:
        """See `System`."""
        pool = ThreadPoolExecutor(self.parallel)
        try:
            yield from zip(questions, pool.map(lambda q: self._ask(q, words, written), questions), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, question: Question, words: str, written: bool) -> Reply | str:
        names = {"max_new_tokens": "max_tokens"}
        options: dict[str, Any] = {"temperature": 0, **{names.get(k, k): v for k, v in self.generate.items()}}
        if self.voice:
            options |= {"modalities": ["text", "audio"], "audio": {"voice": self.voice, "format": "wav"}}
        try:
            asked = [_for_endpoint(message) for message in conversation(question, words, written)]
            start = time.perf_counter()
            found = self.endpoint.chat(asked, **options)
            sound, text = found.message.get("audio"), found.text.encode(errors="replace").decode()  # half characters
            audio = None
            if isinstance(sound, dict) and sound.get("data"):
                audio = read_audio(io.BytesIO(base64.b64decode(sound["data"], validate=True)), name="its spoken answer")
        except UnreachableError:
            raise
        except (ValueError, FileNotFoundError) as error:  # a sound or a reply that is no good
            return str(error)
        stopped = found.ended != "length" if found.ended else None
        return Reply(text, time.perf_counter() - start, audio, stopped=stopped)


def _for_endpoint(message: Message) -> dict[str, Any]:
    """A message whose sound is `input_audio`."""

    def sent(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        held = io.BytesIO()
        soundfile.write(held, part["array"].numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
        data = base64.b64encode(held.getvalue()).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    content = message["content"]
    return {**message, "content": content if isinstance(content, str) else [sent(part) for part in content]}


def fingerprint(source: str) -> str:
    """What changes when a model or vocoder does: a digest of its files.

    Raises:
        FileNotFoundError: if there is no such model.
    """
    if source.startswith(CASCADE):
        return f"{CASCADE}{fingerprint(source.removeprefix(CASCADE))}"
    if is_name(source):
        return _digest(entry(source))
    path = Path(source).expanduser()
    if path.suffix in DESCRIPTIONS and path.is_file():
        return file_digest(path)
    if path.is_file() or (path / "last.ckpt").exists():
        path = find(path)
    elif not path.exists():
        path = find_source(source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{source}: an empty folder, no model")
    return _digest({str(file.relative_to(path)): file_digest(file) for file in files})


def _digest(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]
