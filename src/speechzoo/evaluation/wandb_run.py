"""What a command found out, as a run of W&B: offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from speechzoo.evaluation.tables import Table


def open_run(project: str, name: str, folder: Path) -> Any:
    """A run in `folder`; None where WANDB_MODE is `disabled`. The same name and folder go to the same run again."""
    if (mode := os.environ.get("WANDB_MODE", "offline")) == "disabled":
        return None
    import wandb

    return wandb.init(
        project=project,
        name=name,
        id=hashlib.sha256(f"{name} {folder.resolve()}".encode()).hexdigest()[:12],
        resume="allow" if mode == "online" else None,
        dir=folder,
        mode=cast(Any, mode),
        reinit="finish_previous",
        settings=wandb.Settings(silent=True),
    )


def log_comparison(
    folder: Path,
    tables: Mapping[str, Table],
    pictures: Sequence[str],
    report: Path,
    warnings: Sequence[str],
    summary: Mapping[str, float],
) -> None:
    """Tables, pictures and the whole report of a comparison, in the project `speechzoo-compare`.

    Args:
        folder: of the comparison, which holds the pictures.
        tables: by title; a heading inside one becomes a row with empty cells.
        pictures: names of PNG files in `folder`.
        report: the HTML file.
        warnings: why it is no fair comparison; a table of their own.
        summary: scores, by `GROUP/SCORE`.
    """
    run = open_run("speechzoo-compare", f"{folder.resolve().parent.name}/{folder.name}", folder)
    if run is None:
        return
    import wandb

    logged: dict[str, Any] = {"report": wandb.Html(str(report))}
    logged["warnings"] = wandb.Table(columns=["not a fair comparison"], data=[[line] for line in warnings])
    for title, table in tables.items():
        width = len(table.header)
        rows = [[str(cell) for cell in row] + [""] * (width - len(row)) for row in table.rows]
        logged[title] = wandb.Table(columns=list(table.header), data=rows)
    logged |= {Path(name).stem: wandb.Image(str(folder / name)) for name in pictures}
    run.summary.update(dict(summary))
    run.log(logged)
    run.finish()
