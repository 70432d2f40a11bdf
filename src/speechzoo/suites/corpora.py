"""Test sets in the folders they are published in: LibriSpeech, AISHELL-1, AlpacaEval with Vicuna, the quickstart's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from speechzoo.corpora.layouts import CORPORA
from speechzoo.corpora.stage import Broken
from speechzoo.parts.registry import cache_folder
from speechzoo.suites.questions import Question, read_table, rows_of

Found = tuple[list[Question], list[str]]
"""Questions, and a line for each item that cannot be one."""


def transcribed(corpus: str) -> Callable[[Path, str], Found]:
    """A reader of one of `corpora.layouts`; its folder is the corpus's, or the split's own."""

    def read(folder: Path, split: str) -> Found:
        found, faults = [], []
        for name, clip in CORPORA[corpus](folder.parent if folder.name == split else folder, split):
            if isinstance(clip, Broken):
                faults.append(f"{name}: {clip}")
            else:
                found.append(Question(name, sound=clip["audio"], references=(clip["text"],)))
        if not found:
            raise FileNotFoundError(f"{folder}: no transcribed sound of {split}")
        return found, faults

    return read


CODE = ("math", "coding")  # categories of Vicuna's questions that are not for listening to


def instructs2s(folder: Path, _: str) -> Found:
    """InstructS2S-Eval (LLaMA-Omni, section 4.2): AlpacaEval's helpful_base and vicuna without mathematics and code.

    Reads `alpaca_eval.json` of tatsu-lab/alpaca_eval, Vicuna's own `question.jsonl` for its categories, and
    `audio/ID.wav` or `.flac`, the spoken questions. Ids are `helpful_base-000` ... and `vicuna-000` ..., in the file's
    order, which is also that of the numbers. 199 questions in the paper. `expected`, which AlpacaEval does not have, is
    the one right answer of a question, for files of one's own.

    Raises:
        FileNotFoundError: naming the file that is missing, and where it is from.
        ValueError: naming file and row that is otherwise.
    """
    sources = {"alpaca_eval.json": "the hub's tatsu-lab/alpaca_eval", "question.jsonl": "lm-sys/vicuna-blog-eval"}
    for name, source in sources.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file; it is from {source}")
    vicuna = rows_of(folder / "question.jsonl", ("text", "category"))
    left_out = {_words(row["text"]) for row in vicuna if row["category"] in CODE}
    counts = {"helpful_base": 0, "vicuna": 0}
    found = []
    for row in rows_of(folder / "alpaca_eval.json", ("dataset", "instruction")):
        kind, words = row["dataset"], row["instruction"]
        if kind not in counts or (kind == "vicuna" and _words(words) in left_out):
            continue
        name = f"{kind}-{counts[kind]:03d}"
        counts[kind] += 1
        sound = next((f for f in (folder / "audio" / f"{name}{end}" for end in (".wav", ".flac")) if f.is_file()), None)
        right = (str(row["expected"]),) if row.get("expected") else ()
        found.append(Question(name, words, None if sound is None else str(sound), right, kind))
    return found, []


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def quickstart(folder: Path | None, _: str) -> Found:
    """The quickstart's held-out questions: those of a corpus folder, else those the zoo's models were tested with.

    The latter, 200 questions in the voice `piper-joe`, are spoken once and kept in `$SPEECHZOO_CACHE`.

    Raises:
        FileNotFoundError: if a folder is given, and it holds no corpus of the quickstart.
        RuntimeError: if the voice cannot be fetched.
    """
    from speechzoo.quickstart.corpus import speak_questions
    from speechzoo.quickstart.questions import make_pairs
    from speechzoo.quickstart.scale import ZOO
    from speechzoo.quickstart.voice import PiperVoice

    if folder is None:
        folder = cache_folder() / "suites" / f"quickstart-{ZOO.test_pairs}"
        if not (folder / "pairs.jsonl").is_file():
            pairs = [pair for pair in make_pairs(ZOO.train_pairs, ZOO.test_pairs) if pair.split == "test"]
            speak_questions(folder, PiperVoice.joe(), pairs, os.cpu_count() or 1)
    folder = folder / "corpus" if (folder / "corpus").is_dir() else folder
    if not (folder / "pairs.jsonl").is_file():
        raise FileNotFoundError(f"{folder}: no corpus; `speechzoo quickstart --only corpus` makes one")
    columns = {
        "id": ("id",),
        "text": ("question",),
        "sound": ("question_audio",),
        "references": ("answer",),
        "kind": ("kind",),
    }
    rows = read_table([folder / "pairs.jsonl"], columns, keep=("split", "unseen"))
    return [row for row in rows if row.more["split"] == "test"], []
