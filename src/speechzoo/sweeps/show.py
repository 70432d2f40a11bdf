"""The trials of a sweep as a table on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from speechzoo.sweeps.runner import Runner
from speechzoo.sweeps.state import Trial
from speechzoo.system.terminal import last_lines

STYLE = {"waiting": "dim", "running": "yellow", "finished": "green", "failed": "red"}


def trial_table(runner: Runner) -> Table:
    """One row a trial: settings, state, metric, time."""
    table = Table(title=Text(f"{runner.sweep.name}: {runner.total} trials"), title_justify="left")
    names = list(dict.fromkeys(name for trial in runner.state.trials for name in trial.values))
    fixed = {n for n in names if len({str(t.values.get(n)) for t in runner.state.trials}) == 1} if names[1:] else set()
    shown = [name for name in names if name not in fixed] or names
    for column in ("trial", *(short(name) for name in shown), "state", runner.sweep.metric or "", "time"):
        table.add_column(column, overflow="fold")
    for trial in runner.state.trials:
        values = [Text(brief(trial.values.get(name, ""))) for name in shown]  # brackets are no markup
        metric = "" if trial.metric is None else f"{trial.metric:.4g}"
        state = Text(trial.state + (f" ({trial.exit_code})" if trial.state == "failed" else ""), STYLE[trial.state])
        seconds = f"{trial.seconds:.0f} s" if trial.seconds else ""
        table.add_row(f"{trial.number:03d}", *values, state, metric, seconds)
    return table


def short(name: str) -> str:
    """`model.init_args.optimizer.init_args.lr` -> `lr`, `model.init_args.adaptor.class_path` -> `adaptor`."""
    parts = [part for part in name.split(".") if part not in ("init_args", "class_path")]
    return parts[-1] if parts else name


def brief(value: Any) -> str:
    """A value on the screen; of a path its last name."""
    return Path(value).stem if isinstance(value, str) and value.endswith((".yaml", ".yml")) else str(value)


def line(trial: Trial, metric: str | None) -> str:
    """A trial on one line, for logs."""
    values = ", ".join(f"{short(name)}={brief(value)}" for name, value in trial.values.items())
    value = f", {metric} {trial.metric:.4g}" if trial.metric is not None else ""
    failed = f" (exit code {trial.exit_code}): {trial.error.splitlines()[-1]}" if trial.error else ""
    return f"{trial.name} {trial.state}{failed}: {values}{value}"


@contextmanager
def watching(runner: Runner, console: Console) -> Iterator[Callable[[], None]]:
    """Shows the table while trials run; where the output is no terminal, a line a change; yields what to call then."""
    if not console.is_terminal:
        seen: dict[int, str] = {}

        def tell() -> None:
            for trial in list(runner.state.trials):
                if trial.state != "waiting" and seen.get(trial.number) != trial.state:
                    seen[trial.number] = trial.state
                    console.print(line(trial, runner.sweep.metric), highlight=False, markup=False, soft_wrap=True)

        yield tell
        return

    def picture() -> Group:
        running = [trial for trial in runner.state.trials if trial.state == "running"]
        logs = [(t.name, last_lines(runner.folder / t.name / "stdout.log")) for t in running]
        return Group(
            trial_table(runner), *(Text(f"{name}: {text}", "dim", no_wrap=True) for name, text in logs if text)
        )

    with Live(get_renderable=picture, console=console, refresh_per_second=1) as live:
        yield live.refresh
