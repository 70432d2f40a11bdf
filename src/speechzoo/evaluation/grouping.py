"""Groups of runs by the settings somebody chose: `speechzoo compare --group-by adaptor,lr`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speechzoo.evaluation.report import flatten
from speechzoo.evaluation.runs import Run
from speechzoo.evaluation.settings import (
    MISSING,
    Group,
    architecture,
    at,
    other_suites,
    settings,
    short_class,
    short_names,
    tell_apart,
    words,
)

SEVERAL = " / "  # between the values that a group's runs have of a setting they were not grouped by


def group_by(runs: Sequence[Run], given: Sequence[str]) -> list[Group]:
    """Groups of the runs that have the same values of some settings, in the order of their first run.

    What else differs among the runs of a group stands in `Group.mixed`. Runs that nobody trained have no settings:
    each is a group of its own. A run without one of the settings has "–" there.

    Args:
        given: dotted keys of the configuration, whole or their unambiguous end; `init_args` and `class_path` may be
            left out: `model.init_args.adaptor.class_path`, `adaptor`, `lr`, `adaptor.stack`, `seed_everything`.

    Raises:
        ValueError: for a key that no run has, or that may mean several; the message names them.
    """
    flat = [flatten(run.config) for run in runs]
    keys = [find_key(name, flat) for name in given]
    every = [settings(run) for run in runs]
    members: dict[tuple[bool, str, tuple[str, ...]], list[int]] = {}
    for number, (run, suite) in enumerate(zip(runs, other_suites(runs), strict=True)):
        values = tuple(_value(run, every[number], key) for key in keys) if run.config else (run.name,)
        members.setdefault((bool(run.config), suite, values), []).append(number)
    short = short_names(list(dict.fromkeys(keys)))
    groups = []
    for (_, _, values), numbers in members.items():
        own = [runs[number] for number in numbers]
        if not own[0].config:
            groups.append(Group(architecture(own[0]), {}, own, label=own[0].name))
            continue
        found = [every[number] for number in numbers]
        merged, mixed = {}, {}
        for name in dict.fromkeys(name for one in found for name in one):
            different = list(dict.fromkeys(one.get(name, MISSING) for one in found))
            merged[name] = SEVERAL.join(different)
            if len(different) > 1 and name not in keys:
                mixed[name] = merged[name]
        merged |= dict(zip(keys, values, strict=True))
        kinds = SEVERAL.join(dict.fromkeys(architecture(run) for run in own))
        label = ", ".join(f"{short[key]}={value}" for key, value in zip(keys, values, strict=True))
        names = short_names(list(mixed))
        groups.append(Group(kinds, merged, own, label, {names[name]: value for name, value in mixed.items()}))
    tell_apart(groups)
    return groups


def find_key(given: str, flat: Sequence[dict[str, str]]) -> str:
    """The dotted key that is meant: itself, or the only one that ends so, `init_args` and `class_path` left out or not.

    A dictionary, such as `lora`, is found where no single setting is.

    Args:
        flat: configurations as `flatten` gives them.

    Raises:
        ValueError: if there is none or there are several.
    """
    leaves = dict.fromkeys(key for one in flat for key in one)
    inner = dict.fromkeys(key[:at] for key in leaves for at in range(len(key)) if key[at] == ".")
    wanted = words(given)
    for keys in (leaves, inner):
        same = [key for key in keys if words(key) == wanted]
        ends = [key for key in keys if key.endswith(f".{given}")]
        # Who writes `init_args` means it; `model` alone is the class of the model, not the name of an encoder.
        literal = given.split(".") != wanted
        alike = [key for key in keys if words(key)[-len(wanted) :] == wanted]
        for found in ([key for key in keys if key == given], *([ends, same] if literal else [same, ends]), alike):
            # A class and a dictionary of its arguments have the same words: the class is meant.
            if len(found) > 1 and len(named := [key for key in found if key.endswith(".class_path")]) == 1:
                found = named if all(words(key) == words(named[0]) for key in found) else found
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(f"{given} may be {', '.join(found)}: give more of it")
    raise ValueError(f"no run has a setting {given}; a key is one of config.yaml, such as model.init_args.adaptor")


def _value(run: Run, found: dict[str, str], key: str) -> str:
    if key in found:  # manifests by their content, paths by their last name
        return found[key]
    value: Any = at(run.config, key)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {text}" for name, text in flatten(value).items()) + "}"
    if value is None:
        return "none" if key in flatten(run.config) else MISSING
    return short_class(key, str(value))
