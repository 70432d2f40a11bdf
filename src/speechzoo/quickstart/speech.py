"""The answers made audible, LLaMA-Omni's by its units, the cascade's by text-to-speech; and how well they are heard."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import SAMPLE_RATE, read_audio, resample, write_audio
from speechzoo.evaluation.answers import Answer, load_answers, save_answers, score
from speechzoo.metrics import SpeechQuality, quality_scorers
from speechzoo.models import Cascade
from speechzoo.quickstart.voice import PiperVoice
from speechzoo.system.files import write_json
from speechzoo.vocoders import Vocoder

CHUNK_UNITS = 10
"""Omega of the streamed sound: the smallest of the paper, with the most seams."""


def speak_units(answers: Sequence[Answer], vocoder: Vocoder, out: Path, folder: Path) -> tuple[list[Answer], float]:
    """Sound of each answer's units, whole and streamed, as files; and the largest difference of the two.

    Args:
        out: folder of the run, which the paths in the answers are relative to.
        folder: in `out`, where the files go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spoken, worst = [], 0.0
    for answer in answers:
        units = torch.tensor(answer.units or [], dtype=torch.long)
        whole = vocoder(units)
        if not len(whole):  # nothing was decoded: nothing is heard
            spoken.append(replace(answer, reply_seconds=0.0))
            continue
        pieces = vocoder.stream(CHUNK_UNITS)
        # As a unit decoder brings them: a few with each token.
        streamed = torch.cat([*(pieces.push(some) for some in units.split(8)), pieces.flush()])
        if len(streamed) != len(whole):
            raise RuntimeError(f"{answer.id}: streamed sound has {len(streamed)} samples, the whole {len(whole)}")
        worst = max(worst, float((streamed - whole).abs().max()))
        files = [folder / f"{answer.id}{end}.flac" for end in ("", "-streamed")]
        for file, wave in zip(files, (whole, streamed), strict=True):
            write_audio(file, resample(wave.numpy(), vocoder.sample_rate))
        names = [str(file.relative_to(out)) for file in files]
        seconds = len(whole) / vocoder.sample_rate
        spoken.append(replace(answer, reply_audio=names[0], streamed_audio=names[1], reply_seconds=seconds))
    return spoken, worst


def speak_text(answers: Sequence[Answer], voice: PiperVoice, out: Path, folder: Path) -> tuple[list[Answer], list[str]]:
    """Sound of each answer's text, and the ids of those with a word that the voice's lexicon lacks."""
    folder.mkdir(parents=True, exist_ok=True)
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


def listen(answers: Sequence[Answer], out: Path, transcribe: Callable[[Tensor, Tensor], list[str]]) -> list[Answer]:
    """What a recogniser writes down of each spoken answer; of a silent one nothing."""
    files = {answer.id: out / answer.reply_audio for answer in answers if answer.reply_audio}
    heard: dict[str, str] = {}
    names = sorted(files)
    for start in range(0, len(names), 10):
        some = names[start : start + 10]
        audio = [read_audio(files[name]) for name in some]
        lens = torch.tensor([len(clip) for clip in audio])
        heard |= dict(zip(some, transcribe(pad_sequence(audio, batch_first=True), lens), strict=True))
    return [
        replace(answer, spoken=heard.get(answer.id, "")) if answer.reply_seconds is not None else answer
        for answer in answers
    ]


def rate(answers: Sequence[Answer], out: Path, scorers: Sequence[SpeechQuality]) -> list[Answer]:
    """How good each spoken answer sounds; a silent one has no quality."""
    rated = []
    for answer in answers:
        if answer.reply_audio and scorers:
            wave = read_audio(out / answer.reply_audio)
            if wave.any():
                answer = replace(answer, quality={scorer.name: scorer(wave, SAMPLE_RATE) for scorer in scorers})
        rated.append(answer)
    return rated


def make_audible(out: Path, number: int, vocoder: Vocoder, voice: PiperVoice, cascade: Cascade) -> None:
    """Give the first `number` answers of LLaMA-Omni and of the cascade a sound; write what was measured to
    `answers/speech.json`."""
    scorers = quality_scorers()
    facts: dict[str, Any] = {"chunk_units": CHUNK_UNITS, "answers": number, "sample_rate": SAMPLE_RATE}
    for key in ("llama_omni", "cascade"):
        file = out / "answers" / f"{key}.jsonl"
        answers = load_answers(file)
        first, rest = answers[:number], answers[number:]
        folder = out / "answers" / "speech" / key
        if key == "llama_omni":
            first, facts["streamed_minus_whole"] = speak_units(first, vocoder, out, folder)
        else:
            first, facts["unspeakable"] = speak_text(first, voice, out, folder)
        save_answers(file, [*rate(listen(first, out, cascade.transcribe), out, scorers), *rest])
    facts["true_answers_asr_wer"] = _true_answers(out, number, vocoder, cascade)
    write_json(out / "answers" / "speech.json", facts)


def _true_answers(out: Path, number: int, vocoder: Vocoder, cascade: Cascade) -> dict[str, float]:
    """ASR-WER of the true answers, spoken from their own units (what the vocoder loses) and from those that the unit
    decoder makes of them (what it loses besides): where the errors of the speech come from."""
    answers = load_answers(out / "answers" / "llama_omni.jsonl")[:number]
    units = json.loads((out / "answers" / "units.json").read_text())
    found = {}
    for key in ("true", "decoded"):
        rows = [replace(a, text=a.reference, units=row) for a, row in zip(answers, units[key], strict=False)]
        spoken, _ = speak_units(rows, vocoder, out, out / "answers" / "speech" / f"units_{key}")
        found[key] = score(listen(spoken, out, cascade.transcribe))["asr_wer"].value
    return found


def read_facts(out: Path) -> dict[str, Any]:
    """What `make_audible` measured."""
    facts: dict[str, Any] = json.loads((out / "answers" / "speech.json").read_text())
    return facts
