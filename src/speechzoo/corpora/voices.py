"""Text made audible by whatever speaks: the quickstart's voices, a command, or an endpoint."""

from __future__ import annotations

import io
import random
import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from speechzoo.audio import SAMPLE_RATE, SoundError, check_question, read_audio, resample, write_audio
from speechzoo.corpora.stage import Broken
from speechzoo.quickstart import voices as others
from speechzoo.system.endpoint import Endpoint, EndpointError, api_key

FAILED = "text-to-speech failed"
COMMANDS = {"piper": "piper --model {voice} --output_file {out}"}
"""Programs by a short name. Piper is the user's own installation (GPL), started as a program; {voice} is an .onnx."""


class Speaker(Protocol):
    """Something that speaks."""

    def speak(self, text: str, voice: str, seed: int) -> Tensor:
        """Samples `[T]` at 16 kHz.

        Raises:
            Broken: it could not.
        """


STEADY = "joe-steady"
"""The quickstart's voice without variation: equal words give equal sound, and so equal units, which are learnt sooner.
So the quickstart's answers are spoken."""


class QuickstartVoices:
    """The Piper voice of the quickstart (`joe`, `joe-steady`), and what else `quickstart.voices.available` finds."""

    def __init__(self) -> None:
        self._mine = threading.local()  # its lexicon belongs to the thread that opened it

    def speak(self, text: str, voice: str, seed: int) -> Tensor:
        known = ["joe", STEADY, *others.available()]
        if voice not in known:
            raise ValueError(f"voice {voice}: here are {', '.join(known)}")
        try:
            if voice not in ("joe", STEADY):
                return torch.from_numpy(others.speak(voice, text, seed=seed))
            joe, noise = self._joe(), 0.0 if voice == STEADY else 0.5
            return torch.from_numpy(resample(joe.speak(text, noise=noise, seed=seed), joe.sample_rate))
        except (ValueError, RuntimeError) as error:
            raise Broken(FAILED, str(error)) from error

    def _joe(self) -> Any:
        if not hasattr(self._mine, "joe"):
            from speechzoo.quickstart.voice import PiperVoice

            self._mine.joe = PiperVoice.joe()
        return self._mine.joe


class CommandVoices:
    """A program that is started for each text.

    Args:
        template: its words with `{out}` (a .wav file that it writes) and, as needed, `{voice}`, `{seed}` and `{text}`;
            without `{text}` the text comes on standard input. No shell sees it.
        seconds: after which it is ended.

    Raises:
        ValueError: if there is no `{out}` in it.
    """

    def __init__(self, template: str, seconds: float = 120.0) -> None:
        self.words, self.seconds = shlex.split(template), seconds
        if "{out}" not in template:
            raise ValueError(f"--tts command:{template}: has no {{out}}, the file that the program writes")

    def speak(self, text: str, voice: str, seed: int) -> Tensor:
        for attempt in (0, 1):
            try:
                return self._once(text, voice, seed)
            except Broken:
                if attempt:
                    raise
        raise AssertionError

    def _once(self, text: str, voice: str, seed: int) -> Tensor:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "spoken.wav")
            put = {"text": text, "voice": voice, "seed": str(seed), "out": str(out)}
            command = [re.sub(r"\{(text|voice|seed|out)\}", lambda m: put[m[1]], word) for word in self.words]
            said = None if any("{text}" in word for word in self.words) else text
            try:
                ended = subprocess.run(
                    command,
                    input=said,
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",  # whatever the program writes, in whatever locale
                    timeout=self.seconds,
                    check=False,
                )
            except FileNotFoundError as error:
                raise ValueError(f"--tts: there is no program {command[0]}") from error
            except ValueError as error:  # a text that no argument can hold
                raise Broken(FAILED, f"{command[0]}: {error}") from error
            except subprocess.TimeoutExpired as error:
                raise Broken(FAILED, f"{command[0]} took more than {self.seconds:.0f} s", transient=True) from error
            if ended.returncode or not out.is_file():
                told = " ".join(ended.stderr.split())[-200:] or f"exit code {ended.returncode}, no file written"
                raise Broken(FAILED, f"{command[0]}: {told}", transient=True)
            return _decoded(out.read_bytes(), command[0])


class EndpointVoices:
    """An OpenAI-compatible speech endpoint (as servers of Kokoro, CosyVoice and others offer it)."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def speak(self, text: str, voice: str, seed: int) -> Tensor:
        try:
            return _decoded(self.endpoint.speech(text, voice), self.endpoint.url)
        except EndpointError as error:
            if not error.transient:
                raise ValueError(f"{error}: check address, model and key") from error
            raise Broken(FAILED, str(error), transient=True) from error


def _decoded(content: bytes, named: str) -> Tensor:
    try:
        return read_audio(io.BytesIO(content), name=named)
    except SoundError as error:
        raise Broken(FAILED, str(error), transient=True) from error


def open_speaker(name: str, model: str = "", key_env: str = "SPEECHZOO_ENDPOINT_KEY") -> Speaker:
    """`quickstart`, `piper`, `command:TEMPLATE`, or the address of an endpoint.

    Raises:
        ValueError: if it is none of these.
    """
    if name == "quickstart":
        return QuickstartVoices()
    if name.startswith(("http://", "https://")):
        return EndpointVoices(Endpoint(name, model or "tts-1", api_key(name, key_env)))
    if name in COMMANDS or name.startswith("command:"):
        return CommandVoices(COMMANDS.get(name) or name.removeprefix("command:"))
    raise ValueError(f"--tts {name}: give quickstart, piper, command:TEMPLATE or http://HOST:PORT/v1")


class Cast:
    """Voices by weight.

    Args:
        voices: `NAME` or `NAME=WEIGHT`.
    """

    def __init__(self, voices: Sequence[str]) -> None:
        pairs = [voice.rpartition("=") if "=" in voice else (voice, "=", "1") for voice in voices]
        try:
            self.weights = {name: float(weight) for name, _, weight in pairs}
        except ValueError as error:
            raise ValueError(f"voices {', '.join(voices)}: write NAME or NAME=WEIGHT") from error
        if not self.weights or min(self.weights.values()) < 0 or not sum(self.weights.values()):
            raise ValueError(f"voices {', '.join(voices)}: weights are not below 0, and one is above")

    def draw(self, key: str) -> str:
        """The voice for a key; the same whenever and wherever it is asked for."""
        return random.Random(key).choices(list(self.weights), list(self.weights.values()))[0]


def speak_to(folder: Path, speaker: Speaker, named: str, text: str, voice: str, seed: int) -> tuple[Path, float]:
    """A text's sound file below a folder, made unless it is there, and its seconds.

    Args:
        named: which speaker it is, so that another one's files are not taken for it.

    Raises:
        Broken: it could not be spoken, or is silent.
        DiskFullError: if there is no room.
    """
    key = sha256("\0".join((named, voice, str(seed), text)).encode()).hexdigest()
    file = folder / key[:2] / f"{key[:20]}.flac"
    if file.is_file():
        with suppress(SoundError):  # damaged, as by a power cut: made again
            return file, len(read_audio(file)) / SAMPLE_RATE
    samples = speaker.speak(text, voice, seed)
    try:
        check_question(samples, named)
    except SoundError as error:
        raise Broken(FAILED, str(error)) from error
    write_audio(file, samples)
    return file, len(samples) / SAMPLE_RATE
