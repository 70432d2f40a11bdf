"""What an evaluation keeps in its folder: whose answers to which questions, written so that nothing is lost."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechzoo.evaluation.answers import Answer, load_answers, save_answers
from speechzoo.evaluation.evaluated import MODEL, QUESTIONS, SUITE
from speechzoo.suites.questions import Question
from speechzoo.system.files import discard, write_atomically, write_json
from speechzoo.system.settings import changed

ANSWERS = "answers.jsonl"
OF_MODEL = (ANSWERS, "latency.json", "speech", MODEL)
OF_SUITE = (QUESTIONS, "judge.jsonl", "results.json", "table.md", "table.tex", SUITE)
"""What is made in the folder of a model and in that of a suite; spoken questions stay, known by their words."""

SHARE = 0.05  # of the time that writing answers may take: a killed process loses what came since the last time


class Store:
    """The answers of one model in `FOLDER/answers.jsonl`, written again and again, always whole.

    Raises:
        ValueError: if the folder holds another model's answers.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], order: Sequence[Question], overwrite: bool) -> None:
        if (folder / ANSWERS).is_file() and not (folder / MODEL).is_file():
            raise ValueError(f"{folder / ANSWERS}: not of this command, as a run has them: give another --out")
        same(folder / MODEL, identity, overwrite, folder)
        self.folder, self.file = folder, folder / ANSWERS
        self.rank = {question.id: number for number, question in enumerate(order)}
        found = load_answers(self.file) if self.file.is_file() else []
        self.answers = {answer.id: answer for answer in found}
        self._saved, self._took, self._changed = time.monotonic(), 0.0, False

    def put(self, answer: Answer) -> None:
        """Take an answer, in the place of an earlier one to the same question."""
        if self.answers.get(answer.id) != answer:
            self.answers[answer.id], self._changed = answer, True
        if time.monotonic() - self._saved > self._took / SHARE:
            self.save()

    def save(self) -> None:
        """Write what is new."""
        start = time.monotonic()
        if self._changed:
            # also those to questions that are not asked this time
            rest = [answer for answer in self.answers.values() if answer.id not in self.rank]
            save_answers(self.file, [*self.all, *rest])
            self._changed = False
        self._saved = time.monotonic()
        self._took = self._saved - start

    @property
    def all(self) -> list[Answer]:
        """All answers to questions of the suite, in its order."""
        return sorted((a for a in self.answers.values() if a.id in self.rank), key=lambda a: self.rank[a.id])


def same(file: Path, told: Mapping[str, Any], overwrite: bool, folder: Path) -> None:
    """See that a folder was made with these settings; write them where it is new.

    Raises:
        ValueError: naming what is otherwise; with `overwrite` what was made is deleted instead.
    """
    if other := changed(file, told):
        if not overwrite:
            text = f"{folder} was made with other settings ({other})"
            raise ValueError(f"{text}: give another --out, or --overwrite to begin anew")
        _empty(folder)
        write_json(file, told)


def same_questions(folder: Path, questions: Sequence[Question], written: bool, overwrite: bool) -> None:
    """See that the questions a folder knows are still what they were; further ones may come.

    Raises:
        ValueError: naming one that is otherwise; with `overwrite` what was made is deleted instead.
    """
    file = folder / QUESTIONS
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    now = {question.id: digest for question in questions if (digest := question.digest(written)) is not None}
    changed = [name for name, digest in now.items() if before.get(name, digest) != digest]
    if changed and not overwrite:
        told = f"{len(changed)} questions are not what they were, such as {changed[0]!r}"
        raise ValueError(f"{folder}: {told}: give another --out, or --overwrite to begin anew")
    if changed:
        settings = (folder / SUITE).read_bytes()
        _empty(folder)
        write_atomically(folder / SUITE, settings)
        before = {}
    if before != {**before, **now}:
        write_json(file, {**before, **now})


def _empty(folder: Path) -> None:
    """Delete what was made here for a suite, and nothing else: the folder may be that of the questions or a model."""
    for model in [folder, *(file.parent for file in folder.glob(f"*/{MODEL}"))]:
        if (model / MODEL).is_file() and (model / ANSWERS).is_file():
            for name in OF_MODEL:
                discard(model / name)
            if model != folder and not any(model.iterdir()):
                model.rmdir()
    if (folder / SUITE).is_file():
        for name in OF_SUITE:
            discard(folder / name)


def safe(name: str) -> str:
    """A name for a file or folder that tells ids apart, whatever characters they hold."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._").encode()[:80].decode(errors="ignore")  # names have 255 bytes
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
