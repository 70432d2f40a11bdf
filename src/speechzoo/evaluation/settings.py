"""What differs between runs: their groups, the columns of their table, and whether the comparison is fair."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from speechzoo.evaluation.report import flatten
from speechzoo.evaluation.runs import Run, locate
from speechzoo.evaluation.tables import count
from speechzoo.names.trust import known

SEEDS = ("seed_everything", "data.init_args.seed")
DATA = ("data.init_args.train", "data.init_args.val")
BASES = ("model.init_args.encoder.init_args.model", "model.init_args.llm.init_args.model")
# What a run is called, where it writes, what it prints: no part of what was trained.
BOOKKEEPING = (
    *("name", "recipe", "vars", "ckpt_path", "weights_only", "doctor", "preflight"),
    *("data.init_args.feature_cache", "data.init_args.state_cache", "data.init_args.num_workers"),
    *("data.init_args.pin_memory", "data.init_args.predict", "data.init_args.test"),
    *("trainer.default_root_dir", "trainer.logger", "trainer.callbacks", "trainer.plugins"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps", "trainer.profiler"),
    *("trainer.enable_checkpointing", "trainer.limit_test_batches", "trainer.limit_predict_batches"),
    *("trainer.num_sanity_val_steps", "trainer.enable_autolog_hparams", "trainer.model_registry"),
)
LONGEST = 60  # letters of a label that names settings; else runs are called by name, and their table says the rest
TOLERANCE = 0.05  # budgets that differ by less count as the same
MISSING = "–"


@dataclass
class Group:
    """Runs that differ in their seed alone."""

    architecture: str
    settings: dict[str, str]
    runs: list[Run]
    label: str = ""

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
    groups: dict[tuple[str, str], Group] = {}
    every = [settings(run) for run in runs]
    whole = _somewhere_whole(every)
    for run, found in zip(runs, every, strict=True):
        name, found = architecture(run), _fold(found, whole)
        key = name, repr(sorted(found.items()))
        groups.setdefault(key, Group(name, found, [])).runs.append(run)
    result = list(groups.values())
    shown = varying(result)
    short = short_names(shown)
    for group in result:
        parts = [f"{short[key]}={group.settings[key]}" for key in shown if key in group.settings]
        group.label = ", ".join([group.architecture, *parts])
        if len(group.label) > LONGEST:
            group.label = group.names
    labels = [group.label for group in result]
    for group in result:
        if labels.count(group.label) > 1:  # differ in the presence of a setting only
            group.label += f" ({group.runs[0].name})"
    return result


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
                value = ", ".join(_manifest(name, run.folder) for name in _texts(_at(config, key)))
            elif key == "model.init_args.init_from":
                value = ", ".join(Path(name).name for name in _texts(_at(config, key))) or "none"
            elif value.startswith("/"):
                value = Path(value).name
            result[prefix + key] = value
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
    parts = {
        k: [p for p in k.replace(": ", ".").split(".") if p not in ("init_args", "class_path")] or [k] for k in keys
    }
    names = {}
    for key, words in parts.items():
        others = [other for k, other in parts.items() if k != key]
        length = next((n for n in range(1, len(words)) if all(o[-n:] != words[-n:] for o in others)), len(words))
        names[key] = ".".join(words[-length:])
    return names


def unfair(groups: Sequence[Group]) -> list[str]:
    """Reasons why the groups are no fair comparison, one line each; empty if none is known."""
    trained = [group for group in groups if group.settings]
    lines = []
    if len(trained) > 1:
        for key, what in zip(DATA, ("training data", "validation data"), strict=True):
            lines += _different(what, {g.label: g.settings.get(key, MISSING) for g in trained})
        for key, what in zip(BASES, ("encoders", "LLMs"), strict=True):
            lines += _different(what, {g.label: g.settings.get(key, MISSING) for g in trained})
        lines += _different("training objectives", {g.label: objective(g.runs[0]) for g in trained})
        lines += _different("seeds", {g.label: ", ".join(sorted(run.seed for run in g.runs)) for g in trained})
        for name, what in (("tokens", "tokens trained on"), ("examples", "conversations trained on")):
            known = {g.label: fmean(values) for g in trained if (values := g.values(name, "total"))}
            if unknown := [g.label for g in trained if g.label not in known]:
                lines.append(f"{what}: not known of {', '.join(unknown)}")
            if known and max(known.values()) > (1 + TOLERANCE) * min(known.values()):
                lines += _different(what, {label: count(value) for label, value in known.items()})
    for group in trained:
        seeds = [run.seed for run in group.runs]
        if len(set(seeds)) < len(seeds):
            lines.append(f"seeds of {group.label} come twice ({', '.join(seeds)}): its spread is not one over seeds")
        if gone := sorted({name for run in group.runs for name in run.missing}):
            lines.append(f"{group.label} started from {', '.join(gone)}, not found here: its cost is not counted")
    return lines


def objective(run: Run) -> str:
    """The losses of the last stage and their weights, without those weighted 0.

    Those of an architecture of ours, of another one `lm` and what its configuration weighs.
    """
    model = run.config.get("model", {})
    kind = known("model").get(str(model.get("class_path")))
    weights = dict.fromkeys(getattr(kind, "objectives", ["lm"]), 1.0)
    weights |= model.get("init_args", {}).get("loss_weights") or {}
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items() if weight)


def _different(what: str, values: dict[str, str]) -> list[str]:
    if len(set(values.values())) < 2:
        return []
    by_value: dict[str, list[str]] = {}
    for label, value in values.items():
        by_value.setdefault(value, []).append(label)
    return [f"{what} differ: " + "; ".join(f"{' and '.join(labels)}: {value}" for value, labels in by_value.items())]


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


def _at(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    return [] if value is None else [value] if isinstance(value, str) else [str(item) for item in value]


def _manifest(name: str, folder: Path) -> str:
    place = locate(name, folder)
    return Path(name).name + (f" {_digest(place)}" if place is not None and place.is_file() else "")


@lru_cache(maxsize=256)
def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:8]
