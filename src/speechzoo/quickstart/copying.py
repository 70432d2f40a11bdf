"""How well an adaptor stage writes down speech: held-out questions, everyday sentences in several voices, people.

The first for LLaSM's adaptor in every quickstart, all of them for both adaptors where more is spoken (`--scale zoo`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from speechzoo.models import SpeechLLM
from speechzoo.parts.registry import human_speech
from speechzoo.quickstart.ask import answer_questions
from speechzoo.system.files import read_jsonl

ASR_INSTRUCTION = "Transcribe the following speech into text."
EVERYDAY = 100  # clips


def copy_speech(
    run: Callable[[str], SpeechLLM],
    clips: Mapping[str, Sequence[dict[str, Any]]],
    stages: Sequence[str],
    corpus: Path,
    folder: Path,
    batch: int,
) -> None:
    """Write what each stage makes of the instruction to transcribe: `copy_STAGE_SET.jsonl`; files that are there stay.

    Args:
        run: the model of a stage.
        clips: each set's, as from `row`.
        folder: for the answers.
    """
    for stage in stages:
        for name, rows in clips.items():
            target = folder / f"copy_{stage}_{name}.jsonl"
            if rows and not target.is_file():
                answer_questions(run(stage), rows, corpus, target, batch, instruction=ASR_INSTRUCTION)


def row(name: str, kind: str, words: str, audio: str, unseen: bool = True) -> dict[str, Any]:
    """A clip as `answer_questions` takes it: its words are the question and the answer."""
    told = {"id": name, "kind": kind, "question": words, "answer": words}
    return {**told, "question_audio": audio, "unseen": unseen, "messages": [{}]}


def questions_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The corpus's test questions, as `read_questions` gives them, to be copied instead of answered."""
    return [row(r["id"], r["kind"], r["question"], r["question_audio"], r["unseen"]) for r in rows]


def everyday(corpus: Path) -> Iterator[dict[str, Any]]:
    """The first held-out everyday sentences of `build_hearing`; their kind is the voice."""
    for record in read_jsonl(corpus / "hearing_test.jsonl")[:EVERYDAY]:
        (audio,) = (part["path"] for part in record["messages"][0]["content"] if part["type"] == "audio")
        yield row(record["id"], record["id"].split("-", 3)[3], record["messages"][1]["content"], audio)


def people() -> Iterator[dict[str, Any]]:
    """The human recordings, where they can be had."""
    folder, _ = human_speech()
    if folder is None:
        return
    for line in (folder / "transcription").read_text().splitlines():
        text, _, name = line.rstrip(")").rpartition("(")
        words = text.replace("<s>", "").replace("</s>", "").strip()
        yield row(name, "human", words, str(folder / f"{name}.wav"))
