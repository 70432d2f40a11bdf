"""What an adaptor stage writes down of speech that it has not heard: questions, everyday sentences, people.

    speechzoo quickstart --scale zoo --out checkpoints/zoo --only corpus   # or any quickstart's
    python benchmarks/copying.py llasm-tiny-asr llama-omni-tiny-asr --corpus checkpoints/zoo/corpus

Models are whatever `speechzoo.load` takes; answers are kept in --out, and are not asked for again.
"""

from __future__ import annotations

import argparse
from functools import lru_cache
from pathlib import Path
from typing import Any

import speechzoo
from speechzoo.evaluation.answers import load_answers, score
from speechzoo.quickstart.ask import read_questions
from speechzoo.quickstart.copying import copy_speech, everyday, people, questions_of

SETS = {"questions": "held-out questions", "everyday": "everyday sentences", "human": "human recordings"}


def main() -> None:
    """Ask, score, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--corpus", type=Path, default=Path("checkpoints/zoo/corpus"))
    parser.add_argument("--out", type=Path, default=Path("checkpoints/copying"))
    parser.add_argument("--batch", type=int, default=25)
    args = parser.parse_args()
    questions = read_questions(args.corpus / "qa_test.jsonl", args.corpus / "pairs.jsonl")
    clips: dict[str, list[dict[str, Any]]] = {"questions": questions_of(questions), "human": list(people())}
    if (args.corpus / "hearing_test.jsonl").is_file():
        clips["everyday"] = list(everyday(args.corpus))
    load = lru_cache(maxsize=1)(speechzoo.load)
    args.out.mkdir(parents=True, exist_ok=True)
    print("| model | speech | clips | WER | CER | exact |\n|---|---|---:|---:|---:|---:|")
    for name in args.models:
        stage = name.replace("/", "-")
        copy_speech(lambda _, name=name: load(name), clips, [stage], args.corpus, args.out, args.batch)
        for key in (key for key in SETS if clips.get(key)):
            answers = load_answers(args.out / f"copy_{stage}_{key}.jsonl")
            found = score(answers)
            values = [
                f"{100 * i.value:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]"
                for i in (found[m] for m in ("wer", "cer", "exact_match"))
            ]
            print(f"| {name} | {SETS[key]} | {len(answers)} | {' | '.join(values)} |", flush=True)


if __name__ == "__main__":
    main()
