"""Spoken answers, written down by a recogniser and rated by predictors of their quality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import MAX_SAMPLES, SAMPLE_RATE, read_audio
from speechzoo.encoders.whisper_weights import load_whisper
from speechzoo.evaluation.answers import Answer
from speechzoo.metrics import SpeechQuality
from speechzoo.models.cascade import TEMPERATURES, transcribe
from speechzoo.parts.registry import fetch

PART = "part:"
TOGETHER = 8  # clips a recogniser hears at a time


class Listener:
    """Whisper, which writes spoken answers down.

    Args:
        recogniser: Whisper's name, file or folder, or `part:NAME`, a small one of ours.
        language: of the speech.
        device: default: the first GPU if there is one, else the CPU.
    """

    def __init__(self, recogniser: str, language: str, device: str | None = None) -> None:
        name = str(fetch(recogniser.removeprefix(PART))) if recogniser.startswith(PART) else recogniser
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.whisper = load_whisper(name)[0].to(self.device)
        self.language = language

    def write_down(self, answers: Sequence[Answer], folder: Path) -> Iterator[Answer]:
        """The answers with what is heard of them; of one longer than 30 s by openai-whisper's sliding window."""
        for start in range(0, len(answers), TOGETHER):
            some = answers[start : start + TOGETHER]
            waves = [read_audio(folder / a.reply_audio) if a.reply_audio else torch.zeros(0) for a in some]
            heard = [""] * len(some)
            short = [row for row, wave in enumerate(waves) if 0 < len(wave) <= MAX_SAMPLES]
            if short:
                audio = pad_sequence([waves[row] for row in short], batch_first=True).to(self.device)
                lens = torch.tensor([len(waves[row]) for row in short], device=self.device)
                for row, text in zip(short, transcribe(self.whisper, audio, lens, self.language), strict=True):
                    heard[row] = text
            for row, wave in enumerate(waves):
                if len(wave) > MAX_SAMPLES:
                    options = {
                        "language": self.language,
                        "fp16": self.device.type == "cuda",
                        "temperature": TEMPERATURES,
                    }
                    found = self.whisper.transcribe(wave.numpy(), condition_on_previous_text=False, **options)
                    heard[row] = str(found["text"]).strip()
            yield from (replace(answer, spoken=text) for answer, text in zip(some, heard, strict=True))


def rate(answer: Answer, folder: Path, scorers: Iterable[SpeechQuality]) -> Answer:
    """An answer with the scores of those predictors that did not rate it yet; a silent one has no quality."""
    known = dict(answer.quality or {})
    missing = [scorer for scorer in scorers if scorer.name not in known]
    if not missing or not answer.reply_audio:
        return answer
    wave = read_audio(folder / answer.reply_audio)
    if not wave.any():
        return answer
    return replace(answer, quality=known | {scorer.name: scorer(wave, SAMPLE_RATE) for scorer in missing})
