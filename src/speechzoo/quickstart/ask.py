"""The questions of the test set, put to the trained systems, the cascades and the LLM alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from speechzoo.data import encode_batch
from speechzoo.evaluation.answers import Answer, save_answers
from speechzoo.system.files import read_jsonl
from speechzoo.text import ChatPrompt
from speechzoo.types import SpeechBatch, SpeechReply

MAX_NEW_TOKENS = 32


class Answers(Protocol):
    """Whatever answers a batch: every model of the zoo, the cascade too."""

    prompt: ChatPrompt

    def respond(self, batch: SpeechBatch, **generate: Any) -> SpeechReply: ...


def own_precision(system: Any) -> torch.autocast:
    """Arithmetic in bfloat16 for a system whose LLM is kept in it, as in training; else in float32."""
    llm = getattr(system, "llm", None)
    held = llm is not None and any(p.dtype == torch.bfloat16 for p in llm.parameters())
    return torch.autocast("cpu", torch.bfloat16, enabled=held)


def read_questions(manifest: Path, pairs: Path) -> list[dict[str, Any]]:
    """Records of a manifest with what `pairs.jsonl` knows of them (question, kind, unseen)."""
    known = {row["id"]: row for row in read_jsonl(pairs)}
    rows = read_jsonl(manifest)
    return [{**known[row["id"]], **row} for row in rows]


@torch.no_grad()
def answer_questions(
    system: Answers,
    questions: Sequence[dict[str, Any]],
    folder: Path,
    target: Path,
    batch: int,
    as_text: bool = False,
    instruction: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Answer all questions greedily and save them as JSONL of `Answer`.

    Seconds per answer are those of its batch divided by the batch's questions.

    Args:
        folder: that the paths in the questions are relative to.
        target: file to write, in a folder of the run's (sounds are named relative to the run).
        batch: questions answered together.
        as_text: give the true text of the question instead of the sound.
        instruction: text put before the sound.
    """
    answers: list[Answer] = []
    for rows in _groups(questions, batch):
        conversations = [_question(row, folder, as_text, instruction) for row in rows]
        start = time.perf_counter()
        inputs = encode_batch(system.prompt, conversations, answer=False, padding_side="left")
        with own_precision(system):
            reply = system.respond(inputs, max_new_tokens=MAX_NEW_TOKENS)
        seconds = (time.perf_counter() - start) / len(rows)
        for index, row in enumerate(rows):
            answers.append(
                Answer(
                    id=row["id"],
                    kind=row["kind"],
                    question=row["question"],
                    reference=row["answer"],
                    text=reply.text[index],
                    heard=reply.heard[index] if reply.heard else None,
                    units=reply.units[index].tolist() if reply.units else None,
                    reference_units=row["messages"][-1].get("units") if reply.units else None,
                    seconds=seconds,
                    seen=not row["unseen"],
                    audio=os.path.relpath(folder / row["question_audio"], target.parent.parent),
                    reply_audio=None,
                    stopped=reply.stopped[index] if reply.stopped else None,
                )
            )
        if progress is not None:
            progress(len(answers), len(questions))
    save_answers(target, answers)


def _groups(rows: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _question(row: dict[str, Any], folder: Path, as_text: bool, instruction: str | None) -> list[dict[str, Any]]:
    if as_text:
        return [{"role": "user", "content": row["question"]}]
    before = [{"type": "text", "text": instruction}] if instruction else []
    clip = {"type": "audio", "path": str(folder / row["question_audio"])}
    return [{"role": "user", "content": [*before, clip]}]
