"""Evaluation questions that stand in the training text: which ones, and where."""

from __future__ import annotations

from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from speechzoo.corpora.card import CONTAMINATION, DATA, texts_of, write_card
from speechzoo.corpora.stage import Broken
from speechzoo.corpora.tables import rows
from speechzoo.metrics.normalise import is_english, speech_words
from speechzoo.names.spec import at_least
from speechzoo.system.files import sha256, write_json


@dataclass
class Overlap:
    """What of a question was found.

    Attributes:
        ngrams, found: different n-grams of the question, and those of them that stand in the training text.
        records: ids of the records that share most with it, the first `KEPT`.
    """

    id: str
    question: str
    ngrams: int
    found: int
    records: list[str]

    @property
    def share(self) -> float:
        """Of the n-grams."""
        return self.found / self.ngrams if self.ngrams else 0.0

    def plain(self) -> dict[str, Any]:
        """As a line of JSONL."""
        return {**vars(self), "share": round(self.share, 4)}


KEPT = 5


def overlaps(questions: Iterable[tuple[str, str]], training: Iterable[tuple[str, str]], n: int = 8) -> list[Overlap]:
    """Compare questions with training texts by their n-grams of words (of characters, in Chinese).

    Texts are compared after Whisper's normalisation. A question of fewer than n words is one n-gram of its own length.

    Args:
        questions, training: ids and texts.
        n: words of an n-gram; 8 follows PaLM (arXiv 2204.02311, section 8), 13 GPT-3.

    Raises:
        ValueError: for an n below 1, which would find nothing.
    """
    at_least(1, "overlaps", n=n)
    told = list(questions)
    grams: dict[tuple[bool, int], dict[tuple[str, ...], set[int]]] = defaultdict(lambda: defaultdict(set))
    own: list[set[tuple[str, ...]]] = []
    like: dict[bool, str] = {}  # a text that is normalised as the questions of its script are
    for index, (_, text) in enumerate(told):
        words, english = speech_words(text), is_english(text)
        like[english] = text
        size = min(n, len(words))
        own.append({tuple(words[at : at + size]) for at in range(len(words) - size + 1)} if size else set())
        for gram in own[-1]:
            grams[english, size][gram].add(index)
    hits: list[set[tuple[str, ...]]] = [set() for _ in told]
    where: list[dict[str, int]] = [{} for _ in told]
    for name, text in training:
        for (english, size), known in grams.items():
            words = speech_words(text, like[english])
            for gram in {tuple(words[at : at + size]) for at in range(len(words) - size + 1)}:
                for index in known.get(gram, ()):
                    hits[index].add(gram)
                    where[index][name] = where[index].get(name, 0) + 1
    return [
        Overlap(name, text, len(own[i]), len(hits[i]), sorted(where[i], key=lambda key: -where[i][key])[:KEPT])
        for i, (name, text) in enumerate(told)
    ]


def check(args: Namespace) -> None:
    """`speechzoo data contamination`: write what was found beside a data set and into its card.

    Raises:
        FileNotFoundError: if the data set is not joined, or there are no questions.
    """
    if not (args.out / DATA).is_file():
        raise FileNotFoundError(f"{args.out / DATA}: no such file; `speechzoo data join` writes it")
    questions = []
    for number, row in rows(str(args.questions)):
        if isinstance(row, Broken):
            raise ValueError(str(row))
        if not isinstance(row, dict) or not isinstance(text := row.get(args.key), str):
            raise ValueError(f"{args.questions}: record {number + 1} has no text {args.key!r}: --key names it")
        questions.append((str(row.get("id", number + 1)), text))
    found = [overlap for overlap in overlaps(questions, texts_of(args.out), args.ngram) if overlap.found]
    found.sort(key=lambda overlap: -overlap.share)
    flagged = sum(overlap.share >= args.threshold for overlap in found)
    told = {"file": args.questions.name, "questions": len(questions), "n": args.ngram, "threshold": args.threshold}
    told |= {"sha256": sha256(args.out / DATA), "flagged": flagged, "overlaps": [overlap.plain() for overlap in found]}
    write_json(args.out / CONTAMINATION, told)
    write_card(args.out)
    print(f"{flagged} of {len(questions)} questions flagged; {args.out / CONTAMINATION} names them")
