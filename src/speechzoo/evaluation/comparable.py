"""Why runs are no fair comparison: other data, budget, code, test questions, objectives or seeds, one line each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from speechzoo.evaluation.runs import Run
from speechzoo.evaluation.settings import DATA, Group, settings
from speechzoo.evaluation.tables import count
from speechzoo.names.trust import known

BASES = ("model.init_args.encoder.init_args.model", "model.init_args.llm.init_args.model")
TOLERANCE = 0.05  # budgets that differ by less count as the same
UNKNOWN = "not known"
NAMED = 4  # runs of a group that a warning names; of more the first, the last and their number


def unfair(groups: Sequence[Group]) -> list[str]:
    """Reasons why the groups are no fair comparison, one line each with the runs it is about; empty if none is known.

    Data are compared by the content of their manifests, test questions by ids and right answers. Budgets are means
    over the runs of a group, all stages together; those within `TOLERANCE` of each other count as the same.
    """
    trained = [group for group in groups if any(run.config for run in group.runs)]
    lines = []
    for key, what in zip(DATA, ("training data", "validation data"), strict=True):
        lines += _differ(what, trained, lambda run, key=key: settings(run).get(key, UNKNOWN))  # type: ignore[misc]
    for key, what in zip(BASES, ("encoders", "LLMs"), strict=True):
        lines += _differ(what, trained, lambda run, key=key: settings(run).get(key, UNKNOWN))  # type: ignore[misc]
    lines += _differ("training objectives", trained, objective)
    if len(trained) > 1:
        lines += _seeds(trained) + _budgets(trained)
    lines += _commits(trained) + _questions(groups) + _mixed(groups)
    for group in trained:
        seeds = [run.seed for run in group.runs]
        if len(set(seeds)) < len(seeds) and not group.mixed:
            lines.append(f"seeds of {told(group)} come twice ({', '.join(seeds)}): its spread is not one over seeds")
        if gone := sorted({name for run in group.runs for name in run.missing}):
            lines.append(f"{told(group)} started from {', '.join(gone)}, not found here: its cost is not counted")
    return lines


def told(group: Group, runs: Sequence[Run] | None = None) -> str:
    """A group, or some of its runs, for a sentence: its label and the names of the runs."""
    names = [run.name for run in (group.runs if runs is None else runs)]
    text = ", ".join(names) if len(names) <= NAMED else f"{names[0]} … {names[-1]}, {len(names)} runs"
    if runs is None and group.label in (text, group.names):
        return f"({text})" if len(names) > 1 else text
    return f"{group.label} ({text})"


def objective(run: Run) -> str:
    """The losses of the last stage and their weights, without those weighted 0.

    Those of an architecture of ours, of another one `lm` and what its configuration weighs.
    """
    model = run.config.get("model", {})
    kind = known("model").get(str(model.get("class_path")))
    weights = dict.fromkeys(getattr(kind, "objectives", ["lm"]), 1.0)
    weights |= model.get("init_args", {}).get("loss_weights") or {}
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)


def test_set(run: Run) -> str:
    """The questions a run answered: how many, and a digest of their ids and right answers. Empty without answers."""
    asked = sorted((answer.id, answer.reference) for answer in run.answers)
    return f"{len(asked)} questions ({hashlib.sha256(repr(asked).encode()).hexdigest()[:8]})" if asked else ""


def _differ(what: str, groups: Sequence[Group], value: Callable[[Run], str]) -> list[str]:
    """One line if the runs do not all have the same value: who has which."""
    found: dict[str, list[str]] = {}
    for group in groups:
        values = [value(run) for run in group.runs]
        for one in dict.fromkeys(values):
            runs = [run for run, own in zip(group.runs, values, strict=True) if own == one]
            found.setdefault(one, []).append(told(group, None if len(runs) == len(group.runs) else runs))
    return [_line(what, found)] if len(found) > 1 else []


def _line(what: str, found: Mapping[str, Sequence[str]]) -> str:
    return f"{what} differ: " + "; ".join(f"{' and '.join(names)}: {value}" for value, names in found.items())


def _seeds(groups: Sequence[Group]) -> list[str]:
    found: dict[str, list[str]] = {}
    for group in groups:
        found.setdefault(", ".join(sorted({run.seed for run in group.runs})), []).append(told(group))
    return [_line("seeds", found)] if len(found) > 1 else []


def _budgets(groups: Sequence[Group]) -> list[str]:
    lines = []
    for name, what in (
        ("tokens", "tokens trained on"),
        ("examples", "conversations trained on"),
        ("steps", "optimiser steps"),
    ):
        means = [(group, fmean(values)) for group in groups if (values := group.values(name, "total"))]
        if unknown := [told(group) for group in groups if not group.values(name, "total")]:
            lines.append(f"{what}: not known of {', '.join(unknown)}")
        if means and max(v for _, v in means) > (1 + TOLERANCE) * min(v for _, v in means):
            found: dict[str, list[str]] = {}
            for group, value in means:
                found.setdefault(count(value), []).append(told(group))
            lines.append(_line(what, found))
    return lines


def _commits(groups: Sequence[Group]) -> list[str]:
    """Of the last stage: an earlier one that several runs start from is the same for all of them."""
    runs = [run for group in groups for run in group.runs]
    if len(runs) < 2:
        return []
    known_of = [run for run in runs if run.commit]
    if not known_of:
        return [f"commit of the code: recorded by none of {', '.join(told(group) for group in groups)}"]
    return _differ("commits of the code", groups, lambda run: run.commit or "not recorded")


def _questions(groups: Sequence[Group]) -> list[str]:
    answered = [run for group in groups for run in group.runs if run.answers]
    if not answered:
        return []
    lines = _differ("test questions", groups, lambda run: test_set(run) or "none answered")
    if lines and len({test_set(run) for run in answered}) > 1:
        common = set.intersection(*({(a.id, a.reference) for a in run.answers} for run in answered))
        lines[0] += f". All that answered have {len(common)} in common; scores are of each run's own"
    elif not lines and len({run.content for run in answered if run.content}) > 1:
        lines += _differ("words or sounds of the test questions", groups, lambda run: run.content or UNKNOWN)
    if len({run.asked for run in answered if run.asked}) > 1:
        lines += _differ("ways to ask", groups, lambda run: run.asked or UNKNOWN)
    return lines


def _mixed(groups: Sequence[Group]) -> list[str]:
    """Groups by chosen keys, whose runs differ in something else too."""
    return [
        f"{told(group)} is a mean over runs that also differ in "
        + "; ".join(f"{name} ({value})" for name, value in group.mixed.items())
        for group in groups
        if group.mixed
    ]
