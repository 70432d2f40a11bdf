"""The answers made audible, LLaMA-Omni's by its units, the cascade's by text-to-speech; and how well they are heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speechzoo.audio import SAMPLE_RATE, resample, write_audio
from speechzoo.evaluation.answers import Answer, load_answers, save_answers, score
from speechzoo.evaluation.listening import Listener, rate
from speechzoo.metrics import quality_scorers
from speechzoo.quickstart.voice import PiperVoice
from speechzoo.system.files import read_json
from speechzoo.vocoders import Vocoder

CHUNK_UNITS = 10
"""Omega of the streamed sound: the smallest of the paper, with the most seams."""


def speak_units(answers: Sequence[Answer], vocoder: Vocoder, out: Path, folder: Path) -> list[Answer]:
    """Sound of each answer's units as files.

    Args:
        out: folder of the run, which the paths in the answers are relative to.
        folder: in `out`, where the files go.
    """
    return [_with_sound(answer, vocoder(_units(answer)), vocoder, out, folder) for answer in answers]


def stream_units(answers: Sequence[Answer], vocoder: Vocoder, out: Path, folder: Path) -> tuple[list[Answer], float]:
    """The same, and once more as a stream, in files beside them; and the largest difference of a stream from the whole.

    Raises:
        RuntimeError: a streamed sound has another length than the whole.
    """
    spoken, worst = [], 0.0
    for answer in answers:
        whole, pieces = vocoder(_units(answer)), vocoder.stream(CHUNK_UNITS)
        answer = _with_sound(answer, whole, vocoder, out, folder)
        # As a unit decoder brings them: a few with each token.
        streamed = torch.cat([*(pieces.push(some) for some in _units(answer).split(8)), pieces.flush()])
        if len(streamed) != len(whole):
            raise RuntimeError(f"{answer.id}: streamed sound has {len(streamed)} samples, the whole {len(whole)}")
        if len(whole):
            worst = max(worst, float((streamed - whole).abs().max()))
            name = _write(streamed, vocoder, folder / f"{answer.id}-streamed.flac", out)
            answer = replace(answer, streamed_audio=name)
        spoken.append(answer)
    return spoken, worst


def _units(answer: Answer) -> Tensor:
    return torch.tensor(answer.units or [], dtype=torch.long)


def _with_sound(answer: Answer, wave: Tensor, vocoder: Vocoder, out: Path, folder: Path) -> Answer:
    """The answer with its sound, in a file. Shape: wave `[T]`."""
    if not len(wave):  # nothing was decoded: nothing is heard
        return replace(answer, reply_seconds=0.0)
    name = _write(wave, vocoder, folder / f"{answer.id}.flac", out)
    return replace(answer, reply_audio=name, reply_seconds=len(wave) / vocoder.sample_rate)


def _write(wave: Tensor, vocoder: Vocoder, file: Path, out: Path) -> str:
    write_audio(file, resample(wave.numpy(), vocoder.sample_rate))
    return str(file.relative_to(out))


def speak_text(answers: Sequence[Answer], voice: PiperVoice, out: Path, folder: Path) -> tuple[list[Answer], list[str]]:
    """Sound of each answer's text, and the ids of those with a word that the voice's lexicon lacks."""
    spoken, unspeakable = [], []
    for answer in answers:
        try:
            wave = voice.speak(answer.text)
        except ValueError:
            unspeakable.append(answer.id)
            spoken.append(answer)
            continue
        file = folder / f"{answer.id}.flac"
        write_audio(file, resample(wave, voice.sample_rate))
        seconds = len(wave) / voice.sample_rate
        spoken.append(replace(answer, reply_audio=str(file.relative_to(out)), reply_seconds=seconds))
    return spoken, unspeakable


def listen(answers: Sequence[Answer], out: Path, listener: Listener) -> list[Answer]:
    """What a recogniser writes down of each spoken answer; of a silent one nothing."""
    spoken = [answer for answer in answers if answer.reply_seconds is not None]
    heard = {answer.id: answer for answer in listener.write_down(spoken, out)}
    return [heard.get(answer.id, answer) for answer in answers]


def make_units_audible(out: Path, number: int, vocoder: Vocoder, listener: Listener) -> dict[str, Any]:
    """Give the first `number` answers of LLaMA-Omni a sound, whole and streamed; returns what was measured.

    Besides them the units that the unit decoder makes of the true answers: what it loses, apart from wrong answers.
    """
    file, folder = out / "answers" / "llama_omni.jsonl", out / "answers" / "speech" / "llama_omni"
    answers = load_answers(file)
    spoken, worst = stream_units(answers[:number], vocoder, out, folder)
    save_answers(file, [*_judged(spoken, out, listener), *answers[number:]])
    decoded = read_json(out / "answers" / "units.json")["decoded"]
    return {
        "chunk_units": CHUNK_UNITS,
        "answers": number,
        "sample_rate": SAMPLE_RATE,
        "streamed_minus_whole": worst,
        "decoded_units_asr_wer": heard_of_units(out, "decoded", answers, decoded[:number], vocoder, listener),
    }


def make_text_audible(out: Path, number: int, voice: PiperVoice, listener: Listener) -> dict[str, Any]:
    """Give the first `number` answers of the cascade a sound; returns which could not be spoken."""
    file = out / "answers" / "cascade.jsonl"
    answers = load_answers(file)
    spoken, unspeakable = speak_text(answers[:number], voice, out, out / "answers" / "speech" / "cascade")
    save_answers(file, [*_judged(spoken, out, listener), *answers[number:]])
    return {"unspeakable": unspeakable}


def heard_of_units(
    out: Path,
    name: str,
    answers: Sequence[Answer],
    units: Sequence[list[int]],
    vocoder: Vocoder,
    listener: Listener,
) -> float:
    """ASR-WER of the true answers, spoken from these units, a row for each of the first answers.

    Of their own units it is what the vocoder loses.
    """
    rows = [replace(answer, text=answer.reference, units=row) for answer, row in zip(answers, units, strict=False)]
    spoken = speak_units(rows, vocoder, out, out / "answers" / "speech" / f"units_{name}")
    return score(listen(spoken, out, listener))["asr_wer"].value


def _judged(spoken: Sequence[Answer], out: Path, listener: Listener) -> list[Answer]:
    scorers = quality_scorers()
    return [rate(answer, out, scorers) for answer in listen(spoken, out, listener)]
