"""Run folders, read for a comparison: their config, what they cost, what they answered, whether they finished."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from speechzoo.evaluation.answers import Answer, load_answers
from speechzoo.evaluation.compare import StageSummary
from speechzoo.evaluation.evaluated import SUITE, Evaluated, read_evaluated
from speechzoo.evaluation.figures import TRAIN_COLUMNS, VAL_COLUMNS, Curve, metrics_files, read_curve
from speechzoo.names.published import entry, is_name, name_of, published

SWEEP, CONFIG, SUMMARY = "sweep.json", "config.yaml", "summary.json"


@dataclass
class Run:
    """A trained system: its last stage and those it started from."""

    name: str
    folder: Path
    state: Literal["finished", "failed", "unfinished"] = "finished"
    why: str = ""  # it did not finish, in one line
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)  # by stage, its own last; empty: no training
    stages: list[StageSummary] = field(default_factory=list)  # in the same order
    answers: list[Answer] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # stages it started from that are not there
    suite: str = ""  # its answers are those that `speechzoo evaluate` kept, to this suite
    asked: str = ""  # how, where `speechzoo evaluate` asked
    content: str = ""  # digest of the words and sounds of what it asked
    first_sound: float | None = None  # s until the first sound, median, as `speechzoo evaluate` timed it

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the last stage."""
        return list(self.configs.values())[-1] if self.configs else {}

    @property
    def seed(self) -> str:
        """Its seed, "–" if it has none."""
        return str(self.config.get("seed_everything", "–"))

    @property
    def commit(self) -> str | None:
        """Of the code that trained its last stage; None where nobody recorded it."""
        return self.stages[-1].commit if self.stages else None

    def total(self, name: str) -> float | None:
        """Sum of a quantity over the stages; None if one of them lacks it."""
        values = [getattr(stage, name) for stage in self.stages]
        return None if not values or None in values else sum(values)

    def last(self, name: str) -> float | None:
        """A quantity of the last stage."""
        return getattr(self.stages[-1], name) if self.stages else None

    def peak(self, name: str) -> float | None:
        """The largest of a quantity over the stages."""
        return max((v for s in self.stages if (v := getattr(s, name)) is not None), default=None)

    def curves(self) -> tuple[Curve, Curve]:
        """Training and validation loss of the last stage over its steps."""
        files = [Path(file) for file in self.stages[-1].metrics] if self.stages else []
        return read_curve(files, TRAIN_COLUMNS), read_curve(files, VAL_COLUMNS)


def find_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs that the paths stand for.

    A path is a run folder, a name of the zoo, the folder of a sweep (`sweep.json`), what `speechzoo evaluate` wrote
    (`suite.json`), or a folder of run folders such as the quickstart's; of the latter, stages that another run started
    from are part of that run, and `answers/*.jsonl` belong to the run whose name begins with the file's. Evaluated
    answers belong to the run that gave them, also where it is named itself or is a trial of a named sweep.

    Raises:
        FileNotFoundError: if a path is not there.
        ValueError: if it holds no run.
    """
    runs: list[Run] = []
    suites: list[Path] = []
    for path in paths:
        if (name := name_of(path)) is not None:
            runs.append(_published(name))
            continue
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder")
        if path.name in ("", ".."):  # the folder one stands in has a name too
            path = path.resolve()
        if (path / SUITE).is_file():
            suites.append(path)
        elif (path / SWEEP).is_file():
            runs += _sweep(path)
        elif (path / CONFIG).is_file():
            runs.append(read_run(path))
        elif folders := sorted(file.parent for file in path.glob(f"*/{CONFIG}")):
            runs += _siblings(path, folders)
        else:
            raise ValueError(f"{path}: no run here; a run folder holds {CONFIG}, a sweep's {SWEEP}, answers {SUITE}")
    for path in suites:  # last, whatever the order given: their answers go to runs that are there
        for found in read_evaluated(path):
            _attach(found, path, runs)
    unique = {(run.folder.resolve(), run.name, run.suite): run for run in runs}
    _tell_apart(list(unique.values()))
    return list(unique.values())


def _attach(found: Evaluated, path: Path, runs: list[Run]) -> None:
    """Give answers to the run they are of; one that is not among `runs`, or has answered another suite, comes anew."""
    source = found.source or ""
    is_zoo = bool(source) and is_name(source)
    place = published(source) if is_zoo else locate(str(run_of(source)), path) if source else None
    mine = [run for run in runs if place is not None and run.configs and run.folder.resolve() == place.resolve()]
    run = next((run for run in mine if not run.suite), None)
    if run is None:
        if is_zoo:
            run = _published(source)
        elif place is not None and (place / CONFIG).is_file():
            run = read_run(place)
        else:  # a cascade, a model behind an endpoint, a saved form: nothing of a training is known
            run = Run(found.name, path)
        if mine:
            run.name = f"{run.name} on {found.suite}"
        runs.append(run)
    run.answers, run.suite, run.first_sound = found.answers, found.suite, found.first_sound
    run.asked, run.content = found.asked, found.content


def read_run(folder: Path) -> Run:
    """One run folder with the stages it started from.

    Raises:
        ValueError: if one of its files is damaged; the message names it.
    """
    configs, stages, missing = _chain(folder, {folder.resolve()})
    run = Run(folder.name, folder, configs=configs, stages=stages, missing=missing)
    if not (folder / SUMMARY).is_file():
        steps = run.curves()[0][0]
        where = f"its last recorded step is {steps[-1]}" if steps.size else "it recorded no step"
        run.state, run.why = "unfinished", f"no {SUMMARY}: stopped, or still running; {where}"
    for file in (folder / "answers.jsonl", folder.parent / "answers" / f"{folder.name}.jsonl"):
        if file.is_file():
            run.answers = load_answers(file)
    return run


def _published(name: str) -> Run:
    """A model of the zoo: what all its stages cost stands in the index."""
    folder = published(name)
    config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) if (folder / CONFIG).is_file() else {}
    stages = published_stages(name)
    answers = folder / "answers.jsonl"
    told = load_answers(answers) if answers.is_file() else []
    return Run(name, folder, configs={name: config}, stages=stages, answers=told)


def published_stages(name: str) -> list[StageSummary]:
    """What each stage of a published model cost, as its entry of the index tells."""
    return [StageSummary(stage, **cost) for stage, cost in entry(name).get("training", {}).items()]


def locate(name: str, folder: Path) -> Path | None:
    """A file or folder that a run's config names, relative to where the run was started: an ancestor of its folder."""
    places = [parent / name for parent in folder.resolve().parents] + [Path(name)]
    return next((place for place in places if place.exists()), None)


def run_of(start: str | Path) -> Path:
    """The run folder of what `init_from` names: itself, or that of one of its checkpoints."""
    return Path(start).parent if Path(start).suffix == ".ckpt" else Path(start)


def _chain(folder: Path, seen: set[Path]) -> tuple[dict[str, dict[str, Any]], list[StageSummary], list[str]]:
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        sources = config["model"]["init_args"].get("init_from") or []
    except FileNotFoundError:
        return {}, [], []
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG}: not the config of a run ({error})") from error
    configs: dict[str, dict[str, Any]] = {}
    stages: list[StageSummary] = []
    missing: list[str] = []
    for source in [sources] if isinstance(sources, str) else sources:
        if is_name(source):  # its settings are not those of a run here, its cost stands in the index
            stages += published_stages(source)
            continue
        # Beside the run only where the named folder is gone: another sweep's trial_000 is not this one's.
        places = locate(str(run_of(source)), folder), folder.parent / run_of(source).name
        place = next((place for place in places if place is not None and (place / CONFIG).is_file()), None)
        if place is None or place.resolve() == folder.resolve():
            missing.append(source)
        elif place.resolve() not in seen:
            seen.add(place.resolve())
            more = _chain(place, seen)
            configs |= more[0]
            stages += more[1]
            missing += more[2]
    csvs = metrics_files(folder)
    done = (folder / SUMMARY).is_file()
    stage = StageSummary.from_file(folder / SUMMARY, folder.name, csvs) if done else StageSummary(folder.name)
    stage.metrics = [str(file) for file in csvs]
    name = folder.name if folder.name not in configs else f"{folder.parent.name}/{folder.name}"
    return {**configs, name: config}, [*stages, stage], missing


def _sweep(path: Path) -> list[Run]:
    try:
        trials = json.loads((path / SWEEP).read_text(encoding="utf-8"))["trials"]
        listed = [(int(t["number"]), t["state"], t.get("exit_code"), t.get("error") or "", t["values"]) for t in trials]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path / SWEEP}: not the state of a sweep ({error})") from error
    runs = []
    for number, state, code, stderr, values in listed:
        folder = path / f"trial_{number:03d}"
        run = read_run(folder)
        if state == "failed":
            line = stderr.splitlines()[-1] if stderr else "it wrote no error"
            run.state, run.why = "failed", f"exit code {code}: {line}"
        elif state != "finished":
            run.state, run.why = (
                "unfinished",
                "not started" if state == "waiting" else "running, or the sweep was stopped",
            )
        if run.state != "finished":
            run.why += f" ({', '.join(f'{name}={value}' for name, value in values.items())})"
        runs.append(run)
    return runs


def _siblings(path: Path, folders: Sequence[Path]) -> list[Run]:
    runs = [read_run(folder) for folder in folders]
    inner = {name for run in runs for name in list(run.configs)[:-1]}
    runs = [run for run in runs if run.name not in inner]
    files = {file.stem: file for file in sorted((path / "answers").glob("*.jsonl"))}
    for run in runs:
        keys = [key for key in files if run.name == key or run.name.startswith(f"{key}_")]
        if keys and not run.answers:
            run.answers = load_answers(files[max(keys, key=len)])
        for key in keys:
            files.pop(key)
    asked = {(answer.id, answer.reference) for run in runs for answer in run.answers}
    for key, file in files.items():  # baselines that were not trained, if they were asked the same
        answers = load_answers(file)
        if asked and {(answer.id, answer.reference) for answer in answers} == asked:
            runs.append(Run(key, path, answers=answers))
    return runs


def _tell_apart(runs: Sequence[Run]) -> None:
    """Names that come twice get those of the folders above before them, as many as tell them apart."""
    names = [run.name for run in runs]
    twice = [run for run in runs if names.count(run.name) > 1]
    above = [run.folder if not run.configs and run.state == "finished" else run.folder.parent for run in twice]
    parts = [folder.resolve().parts for folder in above]
    for depth in range(1, 1 + max(map(len, parts), default=0)):
        names = ["/".join((*places[-depth:], run.name)) for places, run in zip(parts, twice, strict=True)]
        if len(set(names)) == len(names):
            break
    for run, name in zip(twice, names, strict=False):
        run.name = name
