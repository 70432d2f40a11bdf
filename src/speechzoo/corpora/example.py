"""A small raw corpus to try the whole chain with: texts and speech in the layouts of the papers' sources.

What is asked and said are the quickstart's questions; the speech is that of its voice. It stands where Alpaca,
LibriSpeech and AlpacaEval stand at full scale, so that the same commands read it.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechzoo.audio import write_audio
from speechzoo.corpora.stage import begin_folder
from speechzoo.corpora.voices import QuickstartVoices
from speechzoo.quickstart.questions import Pair, make_pairs
from speechzoo.system.files import json_line, write_atomically

CORPUS = {"train": "train-clean-100", "test": "test-clean"}
"""LibriSpeech's names of the parts."""

MATHS = "sum"
"""Kind of question that stands among Vicuna's as mathematics, which InstructS2S-Eval leaves out."""


def write_example(
    folder: Path, train: int, test: int, clips: int = 0, test_clips: int = 0, seed: int = 0, threads: int = 2
) -> None:
    """Write the raw corpus; sound files that are there are kept.

    `alpaca.json` holds the training questions and answers in Alpaca's layout, `eval` the held-out ones as
    InstructS2S-Eval is built: `alpaca_eval.json` and Vicuna's `question.jsonl`, with `expected`, the one right answer,
    beside. `LibriSpeech` holds questions of either kind spoken, with transcripts as they are written.

    Args:
        train, test: questions to train and to be tested with.
        clips, test_clips: of them spoken into LibriSpeech's layout.

    Raises:
        ValueError: if there are not so many questions, or the folder was made of others.
    """
    pairs = make_pairs(train, test, seed)
    begin_folder(folder, {"questions": [train, test], "seed": seed}, ("alpaca.json", "eval", "LibriSpeech"))
    by_split = {split: [pair for pair in pairs if pair.split == split] for split in CORPUS}
    alpaca = [{"instruction": pair.question, "input": "", "output": pair.answer} for pair in by_split["train"]]
    write_atomically(folder / "alpaca.json", json.dumps(alpaca, indent=1))
    _write_eval(folder / "eval", by_split["test"])
    for split, number in (("train", clips), ("test", test_clips)):
        if number:
            _speak(folder / "LibriSpeech" / CORPUS[split], [p.question for p in by_split[split]][:number], threads)


def _write_eval(folder: Path, pairs: list[Pair]) -> None:
    rows = [
        {
            "dataset": "vicuna" if pair.kind == MATHS else "helpful_base",
            "instruction": pair.question,
            "output": pair.answer,
            "expected": pair.answer,
        }
        for pair in pairs
    ]
    maths = [pair.question for pair in pairs if pair.kind == MATHS]
    vicuna = [{"question_id": n, "text": text, "category": "math"} for n, text in enumerate(maths, start=1)]
    write_atomically(folder / "alpaca_eval.json", json.dumps(rows, indent=1))
    write_atomically(folder / "question.jsonl", "".join(map(json_line, vicuna)))


def _speak(part: Path, texts: list[str], threads: int) -> None:
    """Clips of one speaker and chapter, and their transcripts."""
    folder, voices = part / "1" / "1", QuickstartVoices()
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"1-1-{number:04d}" for number in range(len(texts))]

    def one(name: str, text: str) -> None:
        if (file := folder / f"{name}.flac").is_file():
            return
        write_audio(file, voices.speak(text, "joe", seed=int(name.rpartition("-")[2])))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, names, texts))
    lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
    write_atomically(folder / "1-1.trans.txt", "".join(lines))
