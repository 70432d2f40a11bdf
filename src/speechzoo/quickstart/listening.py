"""Which answers are made audible when, and what a recogniser hears of them; what is there stays."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.progress import Progress

from speechzoo.evaluation.answers import load_answers
from speechzoo.evaluation.listening import Listener
from speechzoo.quickstart.examination import source
from speechzoo.quickstart.scale import Scale
from speechzoo.quickstart.speech import heard_of_units, make_text_audible, make_units_audible
from speechzoo.quickstart.voice import PiperVoice
from speechzoo.system.files import read_json, read_jsonl, write_json
from speechzoo.vocoders import LatentVocoder, Vocoder

SPOKEN = ("llama_omni", "cascade", "true_units")


def listen_to_cascade(out: Path, scale: Scale, voice: Callable[[], PiperVoice], bar: Progress) -> None:
    """Speak the cascade's answers and, if there is a vocoder before any training, the true answers' own units."""
    _once(out, "cascade", bar, lambda: make_text_audible(out, scale.spoken, voice(), _whisper()))
    if not scale.from_scratch:
        _once(out, "true_units", bar, lambda: _true_units(out, scale))


def listen_to_all(out: Path, scale: Scale, voice: Callable[[], PiperVoice], bar: Progress) -> None:
    """Speak LLaMA-Omni's answers, and whatever is not spoken yet."""
    _once(out, "llama_omni", bar, lambda: make_units_audible(out, scale.spoken, _vocoder(out, scale), _whisper()))
    listen_to_cascade(out, scale, voice, bar)
    _once(out, "true_units", bar, lambda: _true_units(out, scale))


def read_facts(out: Path) -> dict[str, Any]:
    """What was measured of all speech."""
    facts: dict[str, Any] = {}
    for name in SPOKEN:
        facts |= read_json(_file(out, name))
    return facts


def _once(out: Path, name: str, bar: Progress, work: Callable[[], dict[str, Any]]) -> None:
    if not _file(out, name).is_file():
        task = bar.add_task(f"Speech of {name}", total=None)
        write_json(_file(out, name), work())
        bar.update(task, total=1, completed=1)


def _file(out: Path, name: str) -> Path:
    return out / "answers" / f"speech_{name}.json"


def _true_units(out: Path, scale: Scale) -> dict[str, Any]:
    answers = load_answers(out / "answers" / "llasm.jsonl")[: scale.spoken]
    units = [row["messages"][-1]["units"] for row in read_jsonl(out / "corpus" / "qa_units_test.jsonl")]
    return {"true_units_asr_wer": heard_of_units(out, "true", answers, units, _vocoder(out, scale), _whisper())}


@lru_cache(maxsize=1)
def _whisper() -> Listener:
    return Listener("part:whisper-tiny.en", "en", "cpu")


def _vocoder(out: Path, scale: Scale) -> Vocoder:
    return LatentVocoder.from_folder(source(out, scale, "vocoder"))
