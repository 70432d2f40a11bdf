"""The report of a run: `report.md` and a self-contained `report.html`, a pure function of its data and folder."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from speechzoo.audio import read_audio, sound_bytes
from speechzoo.evaluation.answers import Answer
from speechzoo.evaluation.compare import (
    SystemResult,
    comparison_table,
    interval_cell,
    kind_table,
    pair_table,
    stage_table,
)
from speechzoo.evaluation.figures import TRAIN_COLUMNS, VAL_COLUMNS, plot_losses, plot_mel, read_curve
from speechzoo.evaluation.tables import NOT_MEASURED, Cell, Table, markdown, percent
from speechzoo.metrics import ExactMatch, WordErrorRate, bootstrap_ratio
from speechzoo.system.files import write_atomically

FILES = "report_files"
"""Folder beside the report that holds the pictures `report.md` shows and the tables as LaTeX."""


@dataclass(frozen=True)
class Licence:
    """A part the run was made with and the terms it comes under."""

    part: str
    version: str
    licence: str
    source: str
    note: str = ""


@dataclass(frozen=True)
class HumanClip:
    """A recording of a person reading a known sentence, and what each system wrote down."""

    id: str
    reference: str
    heard: dict[str, str]  # by system name
    audio: str | None = None


@dataclass(frozen=True)
class Check:
    """A figure the run is expected to reach."""

    name: str
    expected: str
    measured: str | None  # None = not measured
    met: bool | None


@dataclass
class ReportData:
    """Everything the report says. Paths are absolute or relative to the report's folder.

    What is None or missing is shown as "not measured".
    """

    title: str
    intro: list[str]  # paragraphs: what was run
    systems: list[SystemResult]
    limits: list[str]  # what this small scale does not show
    data: dict[str, Any] = field(default_factory=dict)  # facts about the corpus
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # how to read the results
    human: list[HumanClip] = field(default_factory=list)
    human_note: str = ""  # where the recordings come from, or why there are none
    settings: dict[str, Any] = field(default_factory=dict)  # may be nested
    versions: dict[str, str] = field(default_factory=dict)
    licences: list[Licence] = field(default_factory=list)
    seed: int = 0  # of the bootstrap
    num_examples: int = 6


def write_report(data: ReportData, folder: str | Path) -> tuple[Path, Path]:
    """Write `report.md` and `report.html` into `folder`; the same data give the same bytes.

    Returns:
        The two paths. `report_files/` beside them holds the pictures for Markdown and `tables.tex`.

    Raises:
        FileNotFoundError: if a named sound or metrics file is not there.
        ValueError: if two systems have the same name.
    """
    folder = Path(folder)
    names = [system.name for system in data.systems]
    if len(set(names)) != len(names):
        raise ValueError(f"the systems of a report need different names: {names}")
    (folder / FILES).mkdir(parents=True, exist_ok=True)
    content = _content(data, folder)
    for name, picture in content["pictures"].items():
        write_atomically(folder / FILES / name, picture)
    tables = [content["main"], content["pairs"], content["stages"], content["kinds"]]
    write_atomically(folder / FILES / "tables.tex", "\n\n".join(table.to_latex() for table in tables).encode() + b"\n")
    paths = folder / "report.md", folder / "report.html"
    for path in paths:
        # Only HTML is escaped by the environment; Markdown goes through the filter `md`.
        environment = templates(autoescape=path.suffix == ".html")
        environment.filters["md"] = lambda text: markdown(str(text))
        write_atomically(path, (environment.get_template(path.name).render(content).rstrip() + "\n").encode())
    return paths


def templates(autoescape: bool) -> Environment:
    """The package's templates; a name that one of them does not get is an error."""
    return Environment(
        loader=PackageLoader("speechzoo.evaluation"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def choose_examples(systems: Sequence[SystemResult], number: int) -> list[str]:
    """Ids of questions to show: some that all systems got right, some that only a few did, some that none did.

    Takes from the three groups in turn, questions with sound first, in each the kinds that were shown least; ties
    by id. So the choice depends on the answers alone.
    """
    if not systems:
        return []
    tables = [{answer.id: answer for answer in system.answers} for system in systems]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    exact = ExactMatch()
    groups: dict[str, list[str]] = {"all": [], "some": [], "none": []}
    for name in common:
        right = [bool(exact.counts(table[name].text, table[name].reference)[0]) for table in tables]
        groups["all" if all(right) else "some" if any(right) else "none"].append(name)
    chosen: list[str] = []
    shown: dict[str, int] = {}
    while len(chosen) < number and any(groups.values()):
        for group in groups.values():
            if group and len(chosen) < number:
                name = min(group, key=lambda n: (_silence(tables, n), shown.get(tables[0][n].kind, 0), n))
                group.remove(name)
                shown[tables[0][name].kind] = shown.get(tables[0][name].kind, 0) + 1
                chosen.append(name)
    return chosen


def _silence(tables: Sequence[Mapping[str, Answer]], name: str) -> tuple[bool, int]:
    """Whether the question has no sound, and how many systems' answers have none."""
    return not tables[0][name].audio, sum(not table[name].reply_audio for table in tables)


def _content(data: ReportData, folder: Path) -> dict[str, Any]:
    """What the templates show; `pictures` are PNG bytes by file name."""
    pictures: dict[str, bytes] = {}
    curves = []
    for number, system in enumerate(data.systems):
        if not system.stages:
            continue
        stages = []
        for stage in system.stages:
            files = [folder / file for file in stage.metrics]
            stages.append((stage.name, read_curve(files, TRAIN_COLUMNS), read_curve(files, VAL_COLUMNS)))
        stages = [s for s in stages if s[1][0].size or s[2][0].size]
        name = f"curves_{number}.png" if stages else None
        if name:
            pictures[name] = plot_losses(stages)
        curves.append({"system": system.name, "picture": name, "panels": len(stages)})
    examples = [
        _example(data.systems, name, number, folder, pictures)
        for number, name in enumerate(choose_examples(data.systems, data.num_examples))
    ]
    return {
        "data": data,
        "files": FILES,
        "not_measured": NOT_MEASURED,
        "main": comparison_table(data.systems, data.seed),
        "pairs": pair_table(data.systems, data.seed),
        "stages": stage_table(data.systems),
        "kinds": kind_table(data.systems, data.seed),
        "checks": _check_table(data.checks),
        "human": _human_table(data),
        "human_clips": [{"clip": c, "source": c.audio, "sound": _sound(folder, c.audio)} for c in data.human],
        "licences": _licence_table(data.licences),
        "settings": flatten(data.settings),
        "curves": curves,
        "examples": examples,
        "pictures": pictures,
        "embedded": {name: _data_uri("image/png", picture) for name, picture in pictures.items()},
    }


def _example(
    systems: Sequence[SystemResult], name: str, number: int, folder: Path, pictures: dict[str, bytes]
) -> dict[str, Any]:
    answers: list[tuple[str, Answer]] = [(s.name, a) for s in systems for a in s.answers if a.id == name]
    first = answers[0][1]
    picture = None
    if first.audio:
        picture = f"question_{number}.png"
        pictures[picture] = plot_mel(read_audio(folder / first.audio))
    rows = []
    for system, answer in answers:
        counts = WordErrorRate().counts(answer.text, answer.reference)
        rows.append(
            {
                "system": system,
                "text": answer.text,
                "heard": answer.heard,
                "right": bool(ExactMatch().counts(answer.text, answer.reference)[0]),
                "errors": f"{int(counts[0])} of {counts[1]} words wrong",
                "sound": _sound(folder, answer.reply_audio),
                "source": answer.reply_audio,
                "streamed": _sound(folder, answer.streamed_audio),
                "streamed_source": answer.streamed_audio,
            }
        )
    return {
        "answer": first,
        "rows": rows,
        "picture": picture,
        "sound": _sound(folder, first.audio),
        "source": first.audio,
    }


def _check_table(checks: Sequence[Check]) -> Table:
    table = Table(["Expectation", "Expected", "Reached", ""])
    words = {True: "met", False: "not met", None: ""}
    for check in checks:
        table.add(check.name, check.expected, check.measured or NOT_MEASURED, Cell(words[check.met]))
    return table


def _human_table(data: ReportData) -> Table:
    names = list(dict.fromkeys(name for clip in data.human for name in clip.heard))
    table = Table(["Recording", "What was read", *names], caption="Human recordings as an ASR check.")
    for clip in data.human:
        table.add(clip.id, clip.reference, *(clip.heard.get(name, NOT_MEASURED) for name in names))
    if names:
        cells = []
        for name in names:
            clips = [clip for clip in data.human if name in clip.heard]
            counts = WordErrorRate().item_counts([c.heard[name] for c in clips], [c.reference for c in clips])
            cells.append(interval_cell(bootstrap_ratio(counts, seed=data.seed), percent)._replace(strong=True))
        table.add(Cell("Word error rate", strong=True), "", *cells)
    return table


def _licence_table(licences: Sequence[Licence]) -> Table:
    table = Table(["Part", "Version", "Licence", "Source", "Note"])
    for licence in licences:
        table.add(licence.part, licence.version, licence.licence, licence.source, licence.note)
    return table


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text: `{"a": {"b": 1}}` -> `{"a.b": "1"}`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = "none" if value is None else str(value)
    return flat


def _sound(folder: Path, path: str | None) -> str | None:
    """A sound file as a data address: 16-bit mono FLAC at 16 kHz, which every browser plays."""
    return None if path is None else _data_uri("audio/flac", sound_bytes(read_audio(folder / path)))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
