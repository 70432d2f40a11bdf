"""From answers to scored answers: speech written down and rated, rules, and what a judge says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import MAX_SAMPLES, SAMPLE_RATE, read_audio
from speechzoo.encoders.whisper_weights import load_whisper
from speechzoo.evaluation.answers import Answer
from speechzoo.metrics import SpeechQuality
from speechzoo.models.cascade import TEMPERATURES, transcribe
from speechzoo.parts.registry import fetch
from speechzoo.suites import rules
from speechzoo.suites.judge import RUNS, Court, Task, agreement
from speechzoo.suites.questions import Question
from speechzoo.system.endpoint import UnreachableError

PART = "part:"
TOGETHER = 8  # clips a recogniser hears at a time

JUDGED = {"instruction": ("s2tif", "s2sif"), "answer": ("judged_s2t", "judged_s2s")}
"""Scores of a judge: of the text, of the speech."""


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


def by_rule(answer: Answer, question: Question, names: Sequence[str]) -> dict[str, float]:
    """The scores that rules give an answer: of its text, and of its speech where it was written down."""
    found: dict[str, float] = {}
    sides = [("s2t", answer.text)] + ([("s2s", answer.spoken)] if answer.spoken is not None else [])
    if "contains" in names and question.references:
        found |= {side: rules.contains(text, question.references) for side, text in sides}
    if "same" in names and question.references:
        found |= {f"same_{side}": rules.same(text, question.references, side == "s2s") for side, text in sides}
    if "choice" in names and question.references:
        found |= rules.chosen(answer.text, question.references)
    if "refusal" in names:
        found["refusal"] = rules.refuses(answer.text)
    if "ifeval" in names:
        found |= rules.follows(answer.text, question.text, question.more)
    return found


def judge(
    answers: Mapping[str, Mapping[str, Answer]], questions: Sequence[Question], kind: str, court: Court
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, Any]]:
    """What a judge says of all models' answers.

    Returns:
        Scores by model, question and name, each the mean of the runs; and what is to be told of them: the judge, how
        far two runs agree, what failed, and `stopped` with the reason where the judge went away.
    """
    told: dict[str, Any] = {"judge": court.judge.name, "runs": RUNS}
    verdicts: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    try:
        for task, score in court.hear(list(_tasks(answers, questions, kind))):
            if score is not None:
                verdicts[task.model, task.id, task.what][task.turn] = score
    except UnreachableError as error:
        told["stopped"] = str(error)
    scores: dict[str, dict[str, dict[str, float]]] = {model: defaultdict(dict) for model in answers}
    for (model, name, what), turns in verdicts.items():
        scores[model][name][what] = fmean(turns.values())
    for what in JUDGED[kind]:
        pairs = [(t[0], t[1]) for (_, _, name), t in verdicts.items() if name == what and len(t) == RUNS]
        if pairs:
            told.setdefault("agreement", {})[what] = agreement(pairs)
    return scores, told | {"faults": court.faults}


def _tasks(answers: Mapping[str, Mapping[str, Answer]], questions: Sequence[Question], kind: str) -> Iterator[Task]:
    for question in questions:
        if not question.text or (kind == "answer" and not question.references):
            continue
        for model, given in answers.items():
            if (answer := given.get(question.id)) is None:
                continue
            for what, text in zip(JUDGED[kind], (answer.text, answer.spoken), strict=True):
                for turn in range(RUNS):
                    if text is not None:
                        references = question.references
                        yield Task(model, question.id, what, kind, question.text, text, references, turn)
