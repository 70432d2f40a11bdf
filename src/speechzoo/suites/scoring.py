"""From answers to scored answers: by rules, and by what a judge says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from speechzoo.evaluation.answers import Answer
from speechzoo.suites import rules
from speechzoo.suites.judge import RUNS, Court, Task, agreement
from speechzoo.suites.questions import Question
from speechzoo.system.endpoint import UnreachableError

JUDGED = {"instruction": ("s2tif", "s2sif"), "answer": ("judged_s2t", "judged_s2s")}
"""Scores of a judge: of the text, of the speech."""


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
