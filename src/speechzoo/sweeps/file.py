"""A sweep file in W&B's format: reading it, and the command lines it stands for."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from speechzoo.sweeps.space import Group, Parameter, leaves, nest, read_parameters
from speechzoo.system.yaml_text import read_yaml

COMMAND = ["${env}", "${interpreter}", "${program}", "${args}"]  # W&B's default
METHODS = ("grid", "random", "bayes")
KNOWN = {"name", "description", "project", "entity", "program", "command", "method", "metric", "parameters", "run_cap"}
ARGUMENTS = ("args", "args_no_hyphens", "args_no_equals", "args_no_boolean_flags")
MACROS = (*ARGUMENTS, "interpreter", "program", "env")
ENVIRONMENT = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")

Values = dict[str, Any]


@dataclass(frozen=True)
class SweepFile:
    """What a sweep file says.

    `metric` and `goal` are None and "minimize" where the file has no metric, which only `bayes` needs. Once a trial has
    reached `target`, no new one is begun.
    """

    path: Path
    name: str
    method: str
    command: list[str]
    parameters: list[Parameter | Group]
    metric: str | None = None
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None
    run_cap: int | None = None
    content: dict[str, Any] = field(default_factory=dict)  # the file as it was read

    @property
    def place(self) -> dict[str, str]:
        """Where its runs belong in W&B: `project` and `entity`, as far as the file names them."""
        return {key: str(self.content[key]) for key in ("project", "entity") if self.content.get(key)}

    def grid(self) -> list[Values]:
        """Every combination, the last name changing fastest (W&B's order).

        Raises:
            ValueError: if a parameter has no list of values.
        """
        found = leaves(self.parameters)
        combinations = product(*(parameter.values() for _, parameter in found))
        return [nest([(path, v) for (path, _), v in zip(found, row, strict=True)]) for row in combinations]

    def command_line(self, values: Values) -> list[str]:
        """The command of one trial: `${args}` and W&B's other macros filled in as `wandb agent` fills them in.

        Only `${interpreter}` is the Python that runs the sweep, instead of whichever `python` is found, and null stays
        null, for which the agent writes the text None.
        """
        values = {name: json.dumps(value) if _holds_null(value) else value for name, value in values.items()}
        flags = [f"{name}={value}" for name, value in values.items()]
        macros: dict[str, list[str]] = {
            "args": [f"--{flag}" for flag in flags],
            "args_no_hyphens": flags,
            "args_no_equals": [word for name, value in values.items() for word in (f"--{name}", str(value))],
            "args_no_boolean_flags": [
                f"--{name}" if value is True else f"--{name}={value}"
                for name, value in values.items()
                if value is not False
            ],
            "interpreter": [sys.executable],
            "program": [str(self.content["program"])] if "program" in self.content else [],
            "env": [] if platform.system() == "Windows" else ["/usr/bin/env"],
        }
        words: list[str] = []
        for chunk in self.command:
            chunk = ENVIRONMENT.sub(lambda found: os.environ.get(found[1], found[1]), chunk)
            words += macros[chunk[2:-1]] if _is_macro(chunk) else [chunk]
        return words


def _is_macro(chunk: str) -> bool:
    return chunk.startswith("${") and chunk.endswith("}")


def _holds_null(value: Any) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return value is None or any(map(_holds_null, inner))


def load_sweep(path: str | Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no sweep, or asks for something that only W&B's server does; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such sweep file")
    return _read(path, read_yaml(path))


def _read(path: Path, content: Any) -> SweepFile:
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: not a sweep file, which has method, metric, parameters and command")
    if "early_terminate" in content:
        raise ValueError(
            f"{path}: early_terminate needs W&B's server; take it out to sweep offline "
            "(every trial then runs to its end), or use wandb sweep and wandb agent"
        )
    if unknown := sorted(set(content) - KNOWN):
        raise ValueError(f"{path}: unknown keys {unknown}; speechzoo sweep knows {sorted(KNOWN)}")
    method = content.get("method")
    if method not in METHODS:
        raise ValueError(f"{path}: method has to be one of {', '.join(METHODS)}, not {method!r}")
    metric, goal, target = _metric(path, content)
    cap = content.get("run_cap")
    if cap is not None and (type(cap) is not int or cap < 1):
        raise ValueError(f"{path}: run_cap is a whole number from 1 on, not {cap!r}")
    try:
        parameters = read_parameters(content.get("parameters"))
        if method == "bayes":
            for _, parameter in leaves(parameters):
                parameter.optuna()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except ImportError as error:
        raise ValueError(f"{path}: method bayes needs Optuna: pip install 'speechzoo[sweep]'") from error
    return SweepFile(
        path=path,
        name=str(content.get("name") or path.stem),
        method=method,
        command=_command(path, content),
        parameters=parameters,
        metric=metric,
        goal=goal,
        target=target,
        run_cap=cap,
        content=dict(content),
    )


def _command(path: Path, content: Mapping[str, Any]) -> list[str]:
    command = content.get("command") or COMMAND
    if not isinstance(command, list):
        raise ValueError(f"{path}: command is a list of words, such as [speechzoo, fit, '${{args}}'], not {command!r}")
    command = [str(chunk) for chunk in command]
    if "fit" not in command:
        raise ValueError(f"{path}: the command has to run `speechzoo fit`, this one is {' '.join(command)}")
    macros = [chunk[2:-1] for chunk in command if _is_macro(chunk) and not ENVIRONMENT.search(chunk)]
    for name in macros:
        if name not in MACROS:
            raise ValueError(f"{path}: the macro ${{{name}}} of the command is not offered here")
    if not set(macros) & set(ARGUMENTS):
        raise ValueError(
            f"{path}: the command has no ${{args}}, a word of its own by which a trial gets its parameters: all trials "
            "would be the same"
        )
    return command


def _metric(path: Path, content: Mapping[str, Any]) -> tuple[str | None, Literal["minimize", "maximize"], float | None]:
    metric = content.get("metric") or {}
    if not isinstance(metric, Mapping) or set(metric) - {"name", "goal", "target"}:
        raise ValueError(f"{path}: metric has a name, a goal and a target, not {metric!r}")
    name, goal, target = metric.get("name"), metric.get("goal", "minimize"), metric.get("target")
    if goal not in ("minimize", "maximize"):
        raise ValueError(f"{path}: metric.goal is minimize or maximize, not {goal!r}")
    if not isinstance(name, str) and (name is not None or target is not None or content["method"] == "bayes"):
        needs = "method bayes needs metric.name" if content["method"] == "bayes" else "metric.name is needed"
        raise ValueError(f"{path}: {needs}, e.g. val/loss, not {name!r}")
    if target is not None and type(target) not in (int, float):
        raise ValueError(f"{path}: metric.target is a number, not {target!r}")
    return name, goal, target
