"""What differs between runs: their settings, groups that differ in their seed alone, the columns of their table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from speechzoo.evaluation.report import flatten
from speechzoo.evaluation.runs import Run, locate, run_of
from speechzoo.parts.registry import PARTS
from speechzoo.system.files import sha256

SEEDS = ("seed_everything", "data.init_args.seed")
DATA = ("data.init_args.train", "data.init_args.val")
# What a run is called, where it writes, what it prints: no part of what was trained.
BOOKKEEPING = (
    *("name", "recipe", "vars", "ckpt_path", "weights_only", "doctor", "preflight"),
    *("data.init_args.feature_cache", "data.init_args.state_cache", "data.init_args.teacher_cache"),
    *("data.init_args.num_workers", "data.init_args.pin_memory", "data.init_args.predict", "data.init_args.test"),
    *("trainer.default_root_dir", "trainer.logger", "trainer.callbacks", "trainer.plugins"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps", "trainer.profiler"),
    *("trainer.enable_checkpointing", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    *("trainer.num_sanity_val_steps", "trainer.enable_autolog_hparams", "trainer.model_registry"),
)
LONGEST = 60  # letters of a label that names settings; else runs are called by name, and their table says the rest
MISSING = "–"
PART, PART_FOLDER = (
    re.compile(r"\$\{part:([^}]+)\}"),
    re.compile(r"(.+?)-\d[\d.]*-\d+"),
)  # as `speechzoo.parts` keeps them


@dataclass
class Group:
    """Runs that differ in their seed alone, or that have chosen settings in common (see `grouping`)."""

    architecture: str
    settings: dict[str, str]
    runs: list[Run]
    label: str = ""
    mixed: dict[str, str] = field(default_factory=dict)  # settings that differ among its runs, by short name

    @property
    def names(self) -> str:
        """Names of its runs, at most two of them."""
        names = [run.name for run in self.runs]
        return ", ".join(names) if len(names) < 3 else f"{names[0]} … {names[-1]} ({len(names)})"

    def values(self, name: str, how: str = "last") -> list[float]:
        """A quantity of each run that has it; `how` is last, total or peak (see `Run`)."""
        values = [getattr(run, how)(name) for run in self.runs]
        return [value for value in values if value is not None]


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first run; `label` tells each from the others."""
    groups: dict[tuple[str, str, str], Group] = {}
    every = [settings(run) for run in runs]
    whole = _somewhere_whole(every)
    for run, found, suite in zip(runs, every, other_suites(runs), strict=True):
        name, found = architecture(run), _fold(found, whole)
        key = name, repr(sorted(found.items())), suite
        groups.setdefault(key, Group(name, found, [])).runs.append(run)
    result = list(groups.values())
    shown = varying(result)
    short = short_names(shown)
    for group in result:
        parts = [f"{short[key]}={group.settings[key]}" for key in shown if key in group.settings]
        group.label = ", ".join([group.architecture, *parts])
        if len(group.label) > LONGEST:
            group.label = group.names
    tell_apart(result)
    return result


def other_suites(runs: Sequence[Run]) -> list[str]:
    """Of each run the suite that it answered if that is another one than the first: they have no mean in common."""
    first = next((run.suite for run in runs if run.suite), "")
    return ["" if run.suite == first else run.suite for run in runs]


def tell_apart(groups: Sequence[Group]) -> None:
    """Labels that come twice, as of groups that answered other suites, get the name of the group's first run."""
    labels = [group.label for group in groups]
    for group in groups:
        if labels.count(group.label) > 1:
            group.label += f" ({group.runs[0].name})"


def architecture(run: Run) -> str:
    """Class of the model, or the run's name where nothing was trained."""
    if not run.config:
        return run.name
    return str(run.config["model"]["class_path"]).rsplit(".", 1)[-1]


def settings(run: Run) -> dict[str, str]:
    """Everything that decides a run but its seed, by dotted name; earlier stages' names stand before theirs.

    Absolute paths are reduced to their last name, so that two machines agree; manifests are named by their content.
    """
    result = {}
    for stage, config in run.configs.items():
        prefix = "" if config is run.config else f"{stage}: "
        for key, value in flatten(config).items():
            if key in SEEDS or any(key == name or key.startswith(f"{name}.") for name in BOOKKEEPING):
                continue
            if (whole := next((name for name in DATA if key.startswith(f"{name}.")), key)) in DATA:
                key = whole  # several sets by name are one setting
                value = ", ".join(_manifest(name, run.folder) for name in _texts(at(config, key)))
            elif key == "model.init_args.init_from":
                value = ", ".join(map(_start, _texts(at(config, key)))) or "none"
            else:
                value = _place(value)
            result[prefix + key] = short_class(key, value)
    return result


def varying(groups: Sequence[Group]) -> list[str]:
    """Settings that vary within an architecture: the columns of a table of the groups.

    A setting that only some runs have follows from another one, such as the class of a part, and is left out if all of
    these have it alike; but not an entry of a dictionary (`lora.use_dora`), which others lack for no such reason.
    """
    found: list[str] = []
    for name in dict.fromkeys(group.architecture for group in groups):
        found += _differing([group.settings for group in groups if group.architecture == name])
    return list(dict.fromkeys(found))


def between(groups: Sequence[Group]) -> list[str]:
    """Settings that are the same within each architecture but not the same for all, the class of the model left out."""
    within = set(varying(groups))
    trained = [group.settings for group in groups if group.settings]
    return [key for key in _differing(trained) if key not in within and key != "model.class_path"]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest endings that tell the keys apart: `model.init_args.optimizer.init_args.lr` -> `lr`."""
    parts = {key: words(key) for key in keys}
    names = {}
    for key, own in parts.items():
        others = [other for k, other in parts.items() if k != key]
        length = next((n for n in range(1, len(own)) if all(o[-n:] != own[-n:] for o in others)), len(own))
        names[key] = ".".join(own[-length:])
    return names


def words(key: str) -> list[str]:
    """Names of a dotted key that say something: `model.init_args.adaptor.class_path` -> `[model, adaptor]`."""
    return [part for part in key.replace(": ", ".").split(".") if part not in ("init_args", "class_path")] or [key]


def short_class(key: str, value: str) -> str:
    """A class of ours without its module, where the key names one; any other value as it is."""
    return value.rsplit(".", 1)[-1] if key.endswith("class_path") and value.startswith("speechzoo.") else value


def _differing(found: Sequence[dict[str, str]]) -> list[str]:
    keys = dict.fromkeys(key for one in found for key in one)
    return [key for key in keys if len({one.get(key, MISSING) for one in found if key in one or _free(key, one)}) > 1]


def _free(key: str, lacking: dict[str, str]) -> bool:
    """Whether a key is an entry of a dictionary that is set otherwise where it is lacking."""
    above = key.rpartition(".")[0]
    if not above or above.endswith("init_args") or "." not in above:
        return False
    part = above.rpartition(".init_args.")[0]  # its owner has to be there
    return not part or f"{part}.class_path" in lacking or any(name.startswith(f"{part}.") for name in lacking)


def _somewhere_whole(every: Sequence[dict[str, str]]) -> set[str]:
    """Settings that are a dictionary in some runs and a single value, such as none, in others."""
    inner = {key[:at] for one in every for key in one for at in range(len(key)) if key[at] == "."}
    return {key for one in every for key in one} & inner


def _fold(found: dict[str, str], whole: set[str]) -> dict[str, str]:
    """The same settings, with the dictionaries in `whole` as one value: `{r: 4, lora_alpha: 8}`."""
    result: dict[str, str] = {}
    inside: dict[str, list[str]] = {}
    for key, value in found.items():
        above = next((name for name in sorted(whole) if key.startswith(f"{name}.")), None)
        if above is None:
            result[key] = value
        else:
            inside.setdefault(above, []).append(f"{key.removeprefix(above + '.')}: {value}")
            result[above] = "{" + ", ".join(inside[above]) + "}"
    return result


def at(config: dict[str, Any], key: str) -> Any:
    """What stands under a dotted key; None if nothing does."""
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _place(value: str) -> str:
    """A small pretrained part by its name, wherever it lies; any other absolute path by its last name."""
    if part := PART.fullmatch(value):
        return part[1]
    if not value.startswith("/"):
        return value
    kept = (PART_FOLDER.fullmatch(name) for name in Path(value).parts)
    return next((found[1] for found in kept if found and found[1] in PARTS), Path(value).name)


def _start(name: str) -> str:
    """What a run started from: the run's name, and which of its checkpoints unless it is the last."""
    stage, file = run_of(name), Path(name).name
    return stage.name if file in (stage.name, "last.ckpt") else f"{stage.name}/{file}"


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [] if value is None else [value] if isinstance(value, str) else [str(item) for item in value]


def _manifest(name: str, folder: Path) -> str:
    place = locate(name, folder)
    return Path(name).name + (f" {_digest(place)}" if place is not None and place.is_file() else "")


@lru_cache(maxsize=256)
def _digest(path: Path) -> str:
    return sha256(path)[:8]
