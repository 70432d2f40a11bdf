"""What `speechzoo evaluate` left in its folder, read for a comparison: who answered, what, how soon it was heard."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechzoo.evaluation.answers import Answer, load_answers
from speechzoo.system.files import read_json

SUITE, MODEL, QUESTIONS = "suite.json", "model.json", "questions.json"
WHO = ("source", "content", "vocoder", "endpoint", "model", "voice")
"""Of `model.json` what says who was asked; the rest says how."""


@dataclass(frozen=True)
class Evaluated:
    """One model's answers to a suite.

    Attributes:
        name: of its folder, by which the tables of `evaluate` call it.
        source: the name of the zoo, run or file that was asked, as the command had it; None behind an endpoint.
        suite: its name.
        asked: how: in writing, the settings of answers, the recogniser of spoken ones.
        content: digest of the words and sounds of the questions it answered; empty where they are not known.
        first_sound: s until the first sound, median over questions, at the smallest number of units that was timed.
    """

    name: str
    source: str | None
    suite: str
    answers: list[Answer]
    asked: str = ""
    content: str = ""
    first_sound: float | None = None


def read_evaluated(folder: Path) -> list[Evaluated]:
    """The models of a folder of `speechzoo evaluate`, by name.

    Raises:
        ValueError: if one of its files is damaged, or no model has answered there.
    """
    told_suite = read_json(folder / SUITE)
    suite = str(told_suite.get("suite", folder.name))
    shared = {key: told_suite[key] for key in ("written", "recogniser") if told_suite.get(key)}
    known = read_json(folder / QUESTIONS) if (folder / QUESTIONS).is_file() else {}
    found = []
    for file in sorted(folder.glob(f"*/{MODEL}")):
        answers = file.parent / "answers.jsonl"
        if answers.is_file():
            identity = read_json(file)
            source = identity.get("source")
            how = shared | {key: value for key, value in identity.items() if key not in WHO}
            asked = ", ".join(f"{key}={value}" for key, value in sorted(how.items()))
            given = load_answers(answers)
            digests = sorted((answer.id, known[answer.id]) for answer in given if answer.id in known)
            content = hashlib.sha256(repr(digests).encode()).hexdigest()[:8] if digests else ""
            told = (file.parent.name, None if source is None else str(source), suite, given, asked, content)
            found.append(Evaluated(*told, _first_sound(file.parent / "latency.json")))
    if not found:
        raise ValueError(f"{folder}: no model has answered there yet")
    return found


def _first_sound(file: Path) -> float | None:
    if not file.is_file():
        return None
    omegas: dict[str, Any] = read_json(file).get("omegas", {})
    # "offline" comes last: all sound at the end, or a voice that reads sentences aloud
    order = sorted(omegas, key=lambda name: int(name) if name.isdigit() else 10**9)
    timed = [omegas[name]["first_audio"]["median"] for name in order if "first_audio" in omegas[name]]
    return float(timed[0]) if timed else None
