"""Finished runs side by side, as Markdown, LaTeX, HTML and JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from speechzoo.evaluation.comparable import unfair
from speechzoo.evaluation.grouping import group_by
from speechzoo.evaluation.pareto import Front, front, front_table
from speechzoo.evaluation.report import templates
from speechzoo.evaluation.runs import Run
from speechzoo.evaluation.runs_figures import plot_bars, plot_curves, plot_front
from speechzoo.evaluation.runs_tables import (
    cost_table,
    difference_table,
    interval,
    measures_of,
    result_table,
    run_table,
    scores,
    settings_table,
    suite_table,
)
from speechzoo.evaluation.settings import Group, group_runs
from speechzoo.evaluation.tables import Table, markdown
from speechzoo.evaluation.wandb_run import log_comparison
from speechzoo.system.files import without_nan, write_atomically

FAIR = (
    "Data, seeds, base models, budgets, code and test questions of the groups are the same as far as their files tell."
)


def compare_runs(
    runs: Sequence[Run],
    folder: Path,
    seed: int = 0,
    by: Sequence[str] = (),
    quality: str | None = None,
    cost: str | None = None,
) -> list[Path]:
    """Write `comparison.md`, `.html`, `.tex`, `.json` and the figures into `folder`, and the same as a run of W&B.

    Args:
        runs: from `find_runs`; those that did not finish are listed and not averaged.
        folder: made if it is not there.
        seed: of the bootstrap.
        by: keys of the configuration that make the groups (see `group_by`); none: everything but the seed does.
        quality, cost: axes of the picture of quality against cost (see `front`).

    Returns:
        The paths of Markdown, HTML, LaTeX and JSON.

    Raises:
        ValueError: if no run finished; see also `group_by` and `front`.
    """
    done = [run for run in runs if run.state == "finished"]
    if not done:
        raise ValueError("none of the runs finished: " + "; ".join(f"{run.name}: {run.why}" for run in runs))
    groups = group_by(done, by) if by else group_runs(done)
    best = front(groups, quality, cost)
    warnings = unfair(groups)
    if len(done) < len(runs):
        left = [run.name for run in runs if run not in done]
        warnings.append(
            f"{len(left)} of {len(runs)} runs did not finish and are not in the averages: {', '.join(left)}"
        )
    tables = {
        "Results": result_table(groups, seed),
        "Scores of the suites": suite_table(groups),
        "Quality against cost": None if best is None else front_table(best),
        "Differences on the same questions": difference_table(groups, seed),
        "Cost": cost_table(groups),
        "What differs between the architectures": settings_table(groups),
        "All runs": run_table(runs),
    }
    shown = {title: table for title, table in tables.items() if table is not None}
    pictures = {
        "front.png": None if best is None else plot_front(best),
        "loss.png": plot_curves(groups),
        "scores.png": plot_bars(groups, measures_of(groups), seed),
    }
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: picture for name, picture in pictures.items() if picture is not None}
    for name, picture in kept.items():
        write_atomically(folder / name, picture)
    facts = {
        "tables": shown,
        "warnings": warnings,
        "fair": FAIR,
        "pictures": {name: base64.b64encode(picture).decode() for name, picture in kept.items()},
        "runs": len(runs),
        "groups": len(groups),
    }
    html = templates(autoescape=True).get_template("runs.html").render(facts)
    paths = [folder / f"comparison.{kind}" for kind in ("md", "html", "tex", "json")]
    told = _facts(runs, groups, warnings, best, seed)
    texts = [
        _markdown(shown, warnings, list(kept)),
        html,
        _latex(shown),
        json.dumps(without_nan(told), indent=1, ensure_ascii=False),
    ]
    for path, text in zip(paths, texts, strict=True):
        write_atomically(path, (text.rstrip() + "\n").encode())
    log_comparison(folder, shown, list(kept), paths[1], warnings, _summary(groups, seed))
    return paths


def _markdown(tables: dict[str, Table], warnings: Sequence[str], pictures: Sequence[str]) -> str:
    lines = ["# Comparison of runs", ""]
    lines += [f"* **Not a fair comparison:** {markdown(warning)}" for warning in warnings] or [FAIR]
    for title, table in tables.items():
        lines += ["", f"## {title}", "", table.to_markdown(), "", markdown(table.caption)]
        if title == "Results":
            for name in pictures:
                lines += ["", f"![{Path(name).stem}]({name})"]
    return "\n".join(lines)


def _latex(tables: dict[str, Table]) -> str:
    return "\n\n".join(table.to_latex() for table in tables.values())


def _summary(groups: Sequence[Group], seed: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for group in groups:
        if losses := group.values("val_loss"):
            found[f"{group.label}/val_loss"] = fmean(losses)
        for measure in measures_of([group]):
            if (held := interval(group, measure, seed)) is not None and held.value == held.value:
                found[f"{group.label}/{measure.key}"] = held.value
    return found


def _facts(
    runs: Sequence[Run], groups: Sequence[Group], warnings: Sequence[str], best: Front | None, seed: int
) -> dict[str, Any]:
    content: dict[str, Any] = {"warnings": list(warnings), "groups": [], "runs": []}
    for group in groups:
        measured = {}
        for measure in measures_of([group]):
            found = interval(group, measure, seed)
            measured[measure.key] = {"runs": scores(group, measure), **({} if found is None else found._asdict())}
        content["groups"].append(
            {
                "label": group.label,
                "settings": group.settings,
                "mixed": group.mixed,
                "runs": [str(run.folder) for run in group.runs],
                "seeds": [run.seed for run in group.runs],
                "val_loss": group.values("val_loss"),
                "scores": measured,
            }
        )
    for run in runs:
        stages = [asdict(stage) for stage in run.stages]
        about = {"name": run.name, "state": run.state, "why": run.why, "suite": run.suite, "stages": stages}
        content["runs"].append({**about, "first_sound": run.first_sound})
    if best is not None:
        points = [
            {"label": p.group.label, "cost": p.cost, "quality": p.quality, "beaten_by": list(p.beaten_by)}
            for p in best.points
        ]
        content["front"] = {"cost": best.cost.key, "quality": best.quality.key, "points": points}
    return content
