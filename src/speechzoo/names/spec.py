"""A part has one name everywhere: `{class_path, init_args}` in YAML, checkpoint and config.json, a partial in Python.

Hyper-parameters have to be plain data (checkpoints are read with `weights_only=True`), while models want factories
they can call with the real widths. These functions go between the two.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from jsonargparse import Namespace


def resolve(class_path: str) -> Any:
    """The object a dotted path names.

    Raises:
        ValueError: if the module or the name in it does not exist; the message holds the path.
    """
    module, _, name = class_path.rpartition(".")
    if not module:
        raise ValueError(f"{class_path!r} is not a dotted path such as speechzoo.adaptors.Linear")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot find {class_path!r}: {error}") from error


def to_spec(part: Any) -> Any:
    """Plain data for a part: a class, a partial of one, or a factory made by jsonargparse; other values unchanged.

    Raises:
        TypeError: for a callable that has no importable name (a lambda or a local function).
    """
    if isinstance(part, Namespace):
        part = part.as_dict()
    if isinstance(part, Mapping):
        return {key: to_spec(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [to_spec(value) for value in part]
    if not callable(part):
        return part
    if isinstance(part, functools.partial):
        target = part.func
        if part.args and isinstance(part.args[-1], type) and part.func.__module__.startswith("jsonargparse"):
            target = part.args[-1]  # its factories are partial(instantiator, ..., the class, **values)
        elif part.args:
            raise TypeError(f"give the arguments of {part.func} by name, so that they can be written to a config")
        return {**to_spec(target), "init_args": to_spec(part.keywords)}
    name = getattr(part, "__qualname__", "")
    if not name or "<" in name:
        raise TypeError(f"{part!r} has no importable name; use a class or functools.partial(a_class, name=value)")
    return {"class_path": f"{part.__module__}.{name}", "init_args": {}}


def to_factory(spec: object) -> Callable[..., Any]:
    """A callable that builds the part: the inverse of `to_spec`; callables come back unchanged.

    Raises:
        ValueError: if the spec has keys other than class_path and init_args, or names nothing importable.
    """
    if callable(spec):
        return spec
    if isinstance(spec, str):
        part: Callable[..., Any] = resolve(spec)
        return part
    if not isinstance(spec, Mapping) or "class_path" not in spec or set(spec) - {"class_path", "init_args"}:
        raise ValueError(f"a part is {{class_path: ..., init_args: {{...}}}}, not {spec!r}")
    return functools.partial(resolve(spec["class_path"]), **dict(spec.get("init_args") or {}))


def at_least(low: float, owner: str, **settings: float | None) -> None:
    """Check the numbers that a part was given.

    Args:
        low: the least a setting may be.
        owner: the part, as messages call it.
        settings: by name; None is a setting that was not given.

    Raises:
        ValueError: for the first that is too small or no number (NaN, infinity).
    """
    for name, value in settings.items():
        if value is not None and not low <= value < float("inf"):
            raise ValueError(f"{owner}.{name} has to be at least {low}, not {value}")
