"""Questions that are only written, spoken for a suite: as LLaMA-Omni's paper speaks AlpacaEval's by CosyVoice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from speechzoo.corpora.stage import Broken
from speechzoo.corpora.voices import Cast, open_speaker, speak_to
from speechzoo.suites.questions import Question


def spoken(
    questions: Sequence[Question],
    folder: Path,
    tts: str,
    model: str,
    voices: Sequence[str],
    seed: int = 0,
    threads: int = 4,
) -> tuple[list[Question], list[str]]:
    """The questions, those without a sound spoken into `folder`, and a line for each that could not be.

    Sound files that are there are kept. A question's voice depends on its id and the seed alone.

    Args:
        tts, model: see `open_speaker`.
        voices: `NAME` or `NAME=WEIGHT`.

    Raises:
        ValueError: if there is no such speaker, or it refuses everything.
    """
    speaker, cast = open_speaker(tts, model), Cast(voices)

    def one(question: Question) -> Question | str:
        if question.sound is not None or not question.text:
            return question
        key = f"{seed}:{question.id}"
        voice, drawn = cast.draw(key), random.Random(key).randrange(1 << 31)
        try:
            file, _ = speak_to(folder, speaker, f"{tts} {model}", question.text, voice, drawn)
        except Broken as error:
            return f"{question.id}: {error}"
        return replace(question, sound=str(file))

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(one, questions))
    return [q for q in found if isinstance(q, Question)], [line for line in found if isinstance(line, str)]
