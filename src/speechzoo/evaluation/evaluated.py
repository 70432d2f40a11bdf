"""What `speechzoo evaluate` left in its folder, read for a comparison: who answered, what, how soon it was heard."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechzoo.evaluation.answers import Answer, load_answers

SUITE, MODEL = "suite.json", "model.json"


@dataclass(frozen=True)
class Evaluated:
    """One model's answers to a suite.

    Attributes:
        name: of its folder, by which the tables of `evaluate` call it.
        source: the name of the zoo, run or file that was asked, as the command had it; None behind an endpoint.
        suite: its name.
        first_sound: s until the first sound, median over questions, at the smallest number of units that was timed.
    """

    name: str
    source: str | None
    suite: str
    answers: list[Answer]
    first_sound: float | None = None


def read_evaluated(folder: Path) -> list[Evaluated]:
    """The models of a folder of `speechzoo evaluate`, by name.

    Raises:
        ValueError: if one of its files is damaged, or no model has answered there.
    """
    suite = str(_read(folder / SUITE).get("suite", folder.name))
    found = []
    for file in sorted(folder.glob(f"*/{MODEL}")):
        answers = file.parent / "answers.jsonl"
        if answers.is_file():
            source = _read(file).get("source")
            told = (file.parent.name, None if source is None else str(source), suite, load_answers(answers))
            found.append(Evaluated(*told, _first_sound(file.parent / "latency.json")))
    if not found:
        raise ValueError(f"{folder}: no model has answered there yet")
    return found


def _first_sound(file: Path) -> float | None:
    if not file.is_file():
        return None
    omegas: dict[str, Any] = _read(file).get("omegas", {})
    # "offline" comes last: all sound at the end, or a voice that reads sentences aloud
    order = sorted(omegas, key=lambda name: int(name) if name.isdigit() else 10**9)
    timed = [omegas[name]["first_audio"]["median"] for name in order if "first_audio" in omegas[name]]
    return float(timed[0]) if timed else None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: not what `speechzoo evaluate` writes")
    return content
