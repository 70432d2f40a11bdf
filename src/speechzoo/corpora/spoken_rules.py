"""Instructions made fit for speech by a small rule, where no LLM is at hand: fillers, numbers in words, short answers.

It stands in for the LLM of LLaMA-Omni's paper (arXiv 2409.06666, section 3) in trials of the chain, and does a little
of what is asked of that one (see `rewriting`). English alone.
"""

from __future__ import annotations

import random

import regex

from speechzoo.corpora.rewriting import check_speakable
from speechzoo.corpora.stage import Broken
from speechzoo.corpora.texts import Turns
from speechzoo.text.reading import name_of

RULE = "rule"
"""Stands for an LLM's name in `--llm`."""

FILLERS = ("", "", "Hey, ", "So, ", "Well, ")
SENTENCES = 2  # of an answer
DIGITS = regex.compile(r"(?<![\w.,])\d+(?:,\d{3})*(?!\w|[.,]\d)")
SENTENCE = regex.compile(r"(?<=[.!?])\s+")

MOST = 999_999


class RuleRewriter:
    """Rewrites conversations without an LLM; the same text always gives the same.

    Args:
        seed: of the fillers.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, turns: Turns) -> Turns:
        """Spoken questions and answers.

        Raises:
            Broken: one cannot be spoken all the same.
        """
        return [[self._asked(question), self._answered(answer)] for question, answer in turns]

    def _asked(self, text: str) -> str:
        filler = random.Random(f"{self.seed}:{text}").choice(FILLERS)
        said = _numbers(text)
        if filler and not regex.match(r"I\b", said):
            said = said[:1].lower() + said[1:]
        return check_speakable(filler + said, "question")

    def _answered(self, text: str) -> str:
        return check_speakable(" ".join(SENTENCE.split(_numbers(text))[:SENTENCES]), "answer")


def _numbers(text: str) -> str:
    def said(found: regex.Match[str]) -> str:
        number = int(found[0].replace(",", ""))
        if number > MOST:
            raise Broken("number that the rule cannot say", found[0])
        return name_of(number)

    spoken: str = DIGITS.sub(said, text)
    if left := regex.search(r"\S*\d\S*", spoken):
        raise Broken("number that the rule cannot say", left[0])
    return spoken
