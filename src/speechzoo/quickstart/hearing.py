"""A corpus to learn hearing from: everyday sentences, and the training questions, in several voices, distorted.

The published models learn from it beside the quickstart's own corpus. Written beside that one: `hearing/*.flac`; the
manifests ``hearing_train.jsonl`` and ``hearing_test.jsonl`` of recognition instructions; ``qa_hearing_train.jsonl``
with the answers to the questions among them. The test sentences are in no training clip.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechzoo.audio import resample, write_audio
from speechzoo.data.instructions import asr_messages
from speechzoo.quickstart.distort import distort, draw
from speechzoo.quickstart.speaking import speak_missing
from speechzoo.quickstart.voice import PiperVoice
from speechzoo.quickstart.voices import available, speak
from speechzoo.system.files import read_jsonl, write_jsonl

JOE = "joe"  # the corpus's own voice
READINGS = 3  # of each everyday sentence, in different voices
HELD_OUT = 100  # everyday sentences
RATES = (0.85, 1.25)
CLEAN = 0.3  # of the clips are not distorted


@dataclass(frozen=True)
class Clip:
    """One sentence in one voice; the seed decides rate, variation and distortion."""

    text: str
    voice: str
    seed: int

    @property
    def files(self) -> list[str]:
        """Its one file."""
        return [self.file]

    @property
    def file(self) -> str:
        """Where it is kept, relative to the corpus."""
        return f"hearing/{hashlib.sha256(f'{self.text} {self.voice} {self.seed}'.encode()).hexdigest()[:16]}.flac"


def build_hearing(
    corpus: Path,
    voice: PiperVoice,
    sentences: Sequence[str],
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Speak everything and write both manifests; clips that are there already are kept.

    Args:
        corpus: a folder that `speechzoo.quickstart.corpus.build_corpus` filled.
        voice: the corpus's own voice, which reads those sentences whose words its lexicon holds.
        sentences: everyday English, e.g. from `speechzoo.quickstart.sentences`.
        seed: draws voices, readings and instructions.
        workers: processes; all cores by default.
        progress: called as ``progress(done, total)`` with numbers of clips.
    """
    rng = random.Random(seed)
    pairs = read_jsonl(corpus / "pairs.jsonl")
    answers = {pair["question"]: pair["answer"] for pair in pairs if pair["split"] == "train"}
    splits = {"test": list(sentences[:HELD_OUT]), "train": list(sentences[HELD_OUT:])}
    clips = {split: list(_readings(texts, voice, rng)) for split, texts in splits.items()}
    others = available()
    if others:
        clips["train"] += [Clip(text, rng.choice(others), rng.randrange(1 << 30)) for text in sorted(answers)]
    speak_missing(corpus, voice, clips["test"] + clips["train"], workers, progress, _write)
    for split, rows in clips.items():
        records = [
            {
                "id": f"hearing-{split}-{number:05d}-{clip.voice}",
                "messages": asr_messages(clip.file, clip.text, "en", rng),
            }
            for number, clip in enumerate(rows)
        ]
        write_jsonl(corpus / f"hearing_{split}.jsonl", records)
    asked = [(clip, answers[clip.text]) for clip in clips["train"] if clip.text in answers]
    records = [
        {"id": f"hearing-qa-{number:05d}-{clip.voice}", "messages": _answered(clip, answer)}
        for number, (clip, answer) in enumerate(asked)
    ]
    write_jsonl(corpus / "qa_hearing_train.jsonl", records)


def _answered(clip: Clip, answer: str) -> list[dict[str, Any]]:
    question = {"type": "audio", "path": clip.file}
    return [{"role": "user", "content": [question]}, {"role": "assistant", "content": answer}]


def _readings(texts: Sequence[str], voice: PiperVoice, rng: random.Random) -> Iterator[Clip]:
    others = available()
    for text in texts:
        voices = [*others, JOE] if voice.can_say(text) else others
        for name in rng.sample(voices, min(READINGS, len(voices))):
            yield Clip(text, name, rng.randrange(1 << 30))


def _write(corpus: Path, joe: PiperVoice, clip: Clip) -> None:
    rng = np.random.default_rng([clip.seed, zlib.crc32(clip.text.encode())])
    speed = float(rng.uniform(*RATES))
    if clip.voice == JOE:
        samples = resample(joe.speak(clip.text, speed, float(rng.uniform(0.2, 0.8)), clip.seed), joe.sample_rate)
    else:
        samples = speak(clip.voice, clip.text, speed, clip.seed)
    if rng.random() >= CLEAN:
        samples = distort(samples, draw(rng), clip.seed)
    write_audio(corpus / clip.file, samples)
