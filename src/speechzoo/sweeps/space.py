"""The parameters of a sweep in W&B's words: what values there are, how one is drawn, what Optuna calls it.

Source: docs.wandb.ai, "Sweep configuration options", and the JSON schema of W&B's own engine (package `sweeps`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Spec = Mapping[str, Any]

KEYS: dict[str, set[str]] = {
    "constant": {"value"},
    "categorical": {"values"},
    "categorical_w_probabilities": {"values", "probabilities"},
    "int_uniform": {"min", "max"},
    "uniform": {"min", "max"},
    "q_uniform": {"min", "max"},
    "log_uniform": {"min", "max"},
    "log_uniform_values": {"min", "max"},
    "q_log_uniform": {"min", "max"},
    "q_log_uniform_values": {"min", "max"},
    "normal": set(),
    "q_normal": set(),
    "log_normal": set(),
    "q_log_normal": set(),
}
"""Distribution -> the keys it needs; those with `q_` also take `q` (1), the normal ones `mu` (0) and `sigma` (1)."""


NUMBERS = ("min", "max", "q", "mu", "sigma")


@dataclass(frozen=True)
class Parameter:
    """One parameter: its name on the command line, its distribution and the distribution's numbers."""

    name: str
    kind: str  # a key of KEYS
    spec: Spec

    @classmethod
    def read(cls, name: str, spec: Any) -> Parameter:
        """From a sweep file; a missing `distribution` is found out as W&B does.

        Raises:
            ValueError: if the distribution is unknown, or its numbers are missing or impossible.
        """
        if not isinstance(spec, Mapping):
            raise ValueError(f"parameter {name!r}: needs value, values, or min and max, not {spec!r}")
        kind = spec.get("distribution") or _guess(name, spec)
        if not isinstance(kind, str) or kind not in KEYS:
            raise ValueError(f"parameter {name!r}: distribution {kind!r} is not offered here; there are {sorted(KEYS)}")
        optional = {"distribution"} | ({"q"} if kind.startswith("q_") else set())
        optional |= {"mu", "sigma"} if kind.endswith("normal") else set()
        missing, unknown = KEYS[kind] - set(spec), set(spec) - KEYS[kind] - optional
        if missing or unknown:
            what = f"lacks {sorted(missing)}" if missing else f"does not know {sorted(unknown)}"
            raise ValueError(f"parameter {name!r}: the distribution {kind!r} {what}")
        _check_values(name, spec)
        numbers = [spec[key] for key in NUMBERS if key in spec] + list(spec.get("probabilities", ()))
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            hint = "; YAML reads 1e-4 as text, write 1.0e-4" if any(isinstance(n, str) for n in numbers) else ""
            told = ", ".join(NUMBERS) if "probabilities" not in spec else "probabilities"
            raise ValueError(f"parameter {name!r}: {told} have to be numbers{hint}")
        if spec.get("q", 1) <= 0 or spec.get("sigma", 1) < 0:
            raise ValueError(f"parameter {name!r}: q has to be above 0 and sigma not below it")
        if "min" in spec:
            if kind == "int_uniform" and any(spec[key] != int(spec[key]) for key in ("min", "max")):
                raise ValueError(f"parameter {name!r}: int_uniform takes whole numbers")
            if spec["min"] > spec["max"] or (kind.endswith("_values") and spec["min"] <= 0):
                raise ValueError(f"parameter {name!r}: no {kind} between {spec['min']} and {spec['max']}")
        if kind in ("log_uniform", "q_log_uniform") and spec["max"] > 700:
            raise ValueError(
                f"parameter {name!r}: min and max of {kind} are exponents of e; {kind}_values takes the values"
            )
        if kind == "categorical_w_probabilities" and (
            len(spec["values"]) != len(spec["probabilities"])
            or min(spec["probabilities"]) < 0
            or not math.isclose(sum(spec["probabilities"]), 1)
        ):
            raise ValueError(f"parameter {name!r}: needs one probability for each value, 1 in all")
        return cls(name, kind, spec)

    def values(self) -> list[Any]:
        """All values, for a grid.

        Raises:
            ValueError: for a distribution that W&B's grid search does not take either.
        """
        if self.kind == "constant":
            return [self.spec["value"]]
        if self.kind == "categorical":
            return list(self.spec["values"])
        if self.kind == "int_uniform":
            return list(range(int(self.spec["min"]), int(self.spec["max"]) + 1))
        if self.kind == "q_uniform":  # without its end, as W&B's engine lists it
            return list(np.arange(self.spec["min"], self.spec["max"], self.spec.get("q", 1)).tolist())
        raise ValueError(
            f"parameter {self.name!r}: a grid takes value, values, whole numbers or q_uniform, no {self.kind}"
        )

    def draw(self, rng: np.random.Generator) -> Any:
        """One value, by inverting the distribution at a uniform number; takes exactly one number from `rng`."""
        u, spec, kind = float(rng.random()), self.spec, self.kind
        if kind in ("constant", "categorical"):
            values = self.values()
            return values[min(int(u * len(values)), len(values) - 1)]
        if kind == "categorical_w_probabilities":
            edges = np.cumsum(spec["probabilities"])
            return spec["values"][min(int(np.searchsorted(edges, u, side="right")), len(edges) - 1)]
        if kind == "int_uniform":
            return int(min(spec["min"] + int(u * (spec["max"] - spec["min"] + 1)), spec["max"]))
        if kind.endswith("normal"):
            value = spec.get("mu", 0.0) + spec.get("sigma", 1.0) * NormalDist().inv_cdf(min(max(u, 1e-12), 1 - 1e-12))
            value = math.exp(value) if "log" in kind else value
        elif "log" in kind:
            # `log_uniform` gives exponents of e, `log_uniform_values` the values themselves.
            low, high = (math.log(spec[k]) if kind.endswith("_values") else spec[k] for k in ("min", "max"))
            value = math.exp(low + u * (high - low))
        else:
            value = spec["min"] + u * (spec["max"] - spec["min"])
        return _round(value, spec.get("q", 1)) if kind.startswith("q_") else value

    def optuna(self) -> BaseDistribution:
        """The same for Optuna's search.

        Raises:
            ValueError: if Optuna has no such distribution.
        """
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        spec = self.spec
        if self.kind in ("constant", "categorical"):
            return CategoricalDistribution(self.values())
        if self.kind == "int_uniform":
            return IntDistribution(int(spec["min"]), int(spec["max"]))
        if self.kind == "uniform":
            return FloatDistribution(spec["min"], spec["max"])
        if self.kind == "log_uniform_values":
            return FloatDistribution(spec["min"], spec["max"], log=True)
        if self.kind == "log_uniform":
            return FloatDistribution(math.exp(spec["min"]), math.exp(spec["max"]), log=True)
        if self.kind == "q_uniform":
            q = spec.get("q", 1)
            whole = all(isinstance(x, int) for x in (spec["min"], spec["max"], q))
            return (IntDistribution if whole else FloatDistribution)(spec["min"], spec["max"], step=q)
        raise ValueError(
            f"parameter {self.name!r}: method bayes is not offered here with the distribution {self.kind!r}"
        )


def read_parameters(tree: Any) -> list[Parameter | Group]:
    """The parameters by name, as W&B orders them: that order is the one of `${args}`.

    Raises:
        ValueError: for a parameter that cannot be read.
    """
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError("parameters: has to map at least one name to its values")
    return [_read(name, spec) for name, spec in sorted(tree.items(), key=lambda item: str(item[0]))]


def _read(name: Any, spec: Any) -> Parameter | Group:
    if not isinstance(spec, Mapping) or "parameters" not in spec:
        return Parameter.read(str(name), spec)
    if len(spec) > 1:
        raise ValueError(f"parameter {name!r}: has parameters of its own, and so no {sorted({*spec} - {'parameters'})}")
    return Group(str(name), read_parameters(spec["parameters"]))


@dataclass(frozen=True)
class Group:
    """Nested parameters: one argument whose value is a mapping."""

    name: str
    members: list[Parameter | Group]


def leaves(parameters: list[Parameter | Group], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Parameter]]:
    """Every single parameter with the names that lead to it."""
    found: list[tuple[tuple[str, ...], Parameter]] = []
    for item in parameters:
        here = (*path, item.name)
        found += leaves(item.members, here) if isinstance(item, Group) else [(here, item)]
    return found


def nest(values: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """`[(("a", "b"), 1), (("c",), 2)] -> {"a": {"b": 1}, "c": 2}`."""
    tree: dict[str, Any] = {}
    for path, value in values:
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = value
    return tree


def _guess(name: str, spec: Spec) -> str:
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec and "max" in spec:
        whole = all(isinstance(spec[key], int) and not isinstance(spec[key], bool) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    raise ValueError(f"parameter {name!r}: needs value, values, or min and max, not {dict(spec)!r}")


def _check_values(name: str, spec: Spec) -> None:
    for key in {"values", "probabilities"} & set(spec):
        if not isinstance(spec[key], list):
            raise ValueError(f"parameter {name!r}: {key} has to be a list, not {spec[key]!r}")
    if "values" in spec and not spec["values"]:
        raise ValueError(f"parameter {name!r}: the list of values is empty")
    try:
        json.dumps(spec)  # as what a sweep has done is kept
    except TypeError as error:
        raise ValueError(f"parameter {name!r}: {error}; quote what YAML takes for a date") from error


def _round(value: float, q: float) -> float:
    steps = round(value / q)
    return steps * q if isinstance(q, int) else float(f"{steps * q:.12g}")
