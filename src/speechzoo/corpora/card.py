"""A finished data set: its shards joined, what it holds counted, and its card for the Hugging Face hub."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speechzoo.corpora.stage import BROKEN, DONE, RECORDS, Shard, in_order
from speechzoo.corpora.texts import words
from speechzoo.system.files import (
    json_line,
    part_beside,
    read_json,
    read_jsonl,
    sha256,
    telling_room,
    write_atomically,
    write_json,
)

DATA, ABOUT, NUMBERS, CARD = "data.jsonl", "dataset.json", "numbers.json", "README.md"
CONTAMINATION = "contamination.json"
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass
class Tally:
    """What is counted of records; seconds and units are kept one by one for their spread."""

    records: int = 0
    rounds: int = 0
    answer_words: int = 0
    large_units: int = 0
    lost_answers: int = 0
    user_seconds: list[float] = field(default_factory=list)
    answer_seconds: list[float] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    used: set[int] = field(default_factory=set)
    languages: Counter[str] = field(default_factory=Counter)
    voices: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)

    def add(self, messages: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
        """Count a record."""
        self.records += 1
        for message in messages:
            if message["role"] == "assistant":
                self.rounds += 1
                self.answer_words += words(message["content"])
                if "units" in message:
                    self.units.append(len(message["units"]))
                    self.used.update(message["units"])
        self.user_seconds += facts.get("user_seconds", [])
        self.answer_seconds += facts.get("answer_seconds", [])
        self.large_units += facts.get("large_units", 0)
        self.lost_answers += facts.get("lost_answers", 0)
        self.voices.update(voice for voice in facts.get("voices", []) if voice)
        for key, held in (("language", self.languages), ("source", self.sources)):
            if facts.get(key):
                held[facts[key]] += 1

    def plain(self) -> dict[str, Any]:
        """Sums and means; None where nothing was measured."""
        return {
            "records": self.records,
            "rounds": self.rounds,
            "user_hours": _round(sum(self.user_seconds) / 3600) if self.user_seconds else None,
            "user_seconds": _spread(self.user_seconds),
            "answer_hours": _round(sum(self.answer_seconds) / 3600) if self.answer_seconds else None,
            "answer_seconds": _spread(self.answer_seconds),
            "answer_words": _round(self.answer_words / self.rounds) if self.rounds else None,
            "units": _spread(self.units),
            "units_used": len(self.used) or None,
            "units_beyond_range": self.large_units,
            "answers_without_their_sound": self.lost_answers,
            "languages": dict(self.languages.most_common()),
            "voices": dict(self.voices.most_common()),
            "sources": dict(self.sources.most_common()),
        }


def join(folder: Path) -> dict[str, Any]:
    """Write `data.jsonl` of all shards, `broken.jsonl` of all stages, what was counted and the card.

    Returns:
        What was counted.

    Raises:
        FileNotFoundError: if the folder holds no data set, or shards are not finished, naming them.
    """
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(f"{folder}: holds no data set that `speechzoo data` began (no {ABOUT})")
    about = read_json(folder / ABOUT)
    shards = [str(Shard(index, about["shards"])) for index in range(about["shards"])]
    last = folder / about["stages"][-1]
    for stage in (folder / name for name in about["stages"]):
        if missing := [name for name in shards if not (stage / name / DONE).is_file()]:
            raise FileNotFoundError(f"{stage}: shards that are not finished: {', '.join(missing)}; run them first")
    for name in shards:
        if read_json(last / name / DONE).get("sha256") != sha256(last / name / RECORDS):
            raise ValueError(f"{last / name / RECORDS}: is not what {DONE} beside it says: copy the shard again")
    tally = Tally()
    part = part_beside(folder / DATA)
    with telling_room(folder / DATA, None):
        try:
            with part.open("wb") as file:
                seen: set[str] = set()  # two shards did a record where the input grew between their runs
                for line in in_order([last / name / RECORDS for name in shards]):
                    if line["id"] in seen:
                        continue
                    seen.add(line["id"])
                    value = line["value"]
                    messages = [relative(message, folder) for message in value["messages"]]
                    tally.add(messages, value.get("facts", {}))
                    file.write(json_line({"id": line["id"], "messages": messages}).encode())
            part.replace(folder / DATA)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    broken = [{"stage": stage, **row} for stage in about["stages"] for row in _broken(folder / stage, shards)]
    write_atomically(folder / BROKEN, "".join(map(json_line, broken)))
    told = {
        **tally.plain(),
        "left_out": dict(Counter(f"{row['stage']}: {row['reason']}" for row in broken).most_common()),
    }
    told["sha256"] = {name: sha256(folder / name) for name in (DATA, BROKEN)}
    told["tokens"] = _tokens(folder, about["stages"], shards)
    told["plot"] = _plot(folder / "lengths.png", tally)
    write_json(folder / NUMBERS, told)
    write_card(folder)
    return told


def _broken(stage: Path, shards: Sequence[str]) -> Iterator[dict[str, Any]]:
    files = [stage / name / BROKEN for name in shards]
    yield from in_order([file for file in files if file.is_file()])


def relative(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A message with the sound that lies in the data set's folder named from there, so that it can be moved."""

    here = os.path.normpath(folder.absolute())  # without "..": the folder may be named otherwise than when it was begun

    def shorter(path: str) -> str:
        return os.path.relpath(path, here) if Path(os.path.normpath(path)).is_relative_to(here) else path

    message = dict(message)
    if isinstance(message["content"], list):
        message["content"] = [
            {**part, "path": shorter(part["path"])} if part["type"] == "audio" else part for part in message["content"]
        ]
    if "audio" in message:
        message["audio"] = shorter(message["audio"])
    return message


def _tokens(folder: Path, stages: Sequence[str], shards: Sequence[str]) -> dict[str, int] | None:
    spent: Counter[str] = Counter()
    for stage in stages:
        for name in shards:
            if (file := folder / stage / name / "spent.json").is_file():
                spent.update(json.loads(file.read_text()))
    return dict(spent) or None


def _plot(file: Path, tally: Tally) -> str | None:
    """Histograms of what was measured, if matplotlib is here; the name of the picture."""
    kinds = {"question, s": tally.user_seconds, "answer, s": tally.answer_seconds, "units of an answer": tally.units}
    drawn = {title: values for title, values in kinds.items() if values}
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    if not drawn:
        return None
    figure = Figure(figsize=(4 * len(drawn), 3), layout="constrained")
    axes: Any = figure.subplots(1, len(drawn), squeeze=False)
    for axis, (title, values) in zip(axes[0], drawn.items(), strict=True):
        axis.hist(values, bins=40)
        axis.set(xlabel=title, ylabel="clips")
    figure.savefig(str(file), dpi=120)
    return file.name


def write_card(folder: Path) -> Path:
    """The card of a joined data set, of what `dataset.json`, `numbers.json` and any `contamination.json` hold."""
    from huggingface_hub import DatasetCardData

    about, told = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (ABOUT, NUMBERS))
    licences = about["licences"]
    made: Any = DatasetCardData  # comes without types
    header = made(
        language=sorted(told["languages"]) or None,
        license=sorted({licence.lower() for licence in licences.values()}) or "unknown",
        pretty_name=about["title"],
        size_categories=next((name for most, name in SIZES if told["records"] < most), "n>1M"),
        task_categories=about["tasks"],
        tags=["speech", "speechzoo"],
        configs=[{"config_name": "default", "data_files": DATA}],
    )
    rows = [
        ("conversations", f"{told['records']:,}"),
        ("rounds", f"{told['rounds']:,}"),
        ("speech of the user", _hours(told, "user")),
        ("speech of the answers", _hours(told, "answer")),
        ("words of an answer, mean", _known(told["answer_words"])),
        ("units of an answer", _many(told["units"])),
        ("different units", _known(told["units_used"])),
        ("units beyond the range, changed", f"{told['units_beyond_range']:,}"),
        ("answers whose sound is missing or unusable", f"{told['answers_without_their_sound']:,}"),
        ("languages", _shares(told["languages"])),
        ("voices or speakers", _shares(told["voices"])),
        ("sources", _shares(told["sources"])),
        *([("tokens of the LLM", _shares(told["tokens"]))] if told["tokens"] else []),
    ]
    sections = {
        "Content": _table(("", ""), rows) + (f"\n\n![lengths]({told['plot']})" if told["plot"] else ""),
        "Left out": _table(("stage: reason", "records"), told["left_out"].items())
        + f"\n\nEach with its id in `{BROKEN}`."
        if told["left_out"]
        else "Nothing.",
        "Contamination": _contamination(folder),
        "Licences": _table(("source", "licence"), licences.items()),
        "Made by": f"```bash\n{about['command']}\n```",
        "Files": _table(("file", "sha256"), told["sha256"].items()),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    write_atomically(folder / CARD, f"---\n{header.to_yaml()}\n---\n\n# {about['title']}\n\n{body}\n")
    return folder / CARD


def _contamination(folder: Path) -> str:
    if not (folder / CONTAMINATION).is_file():
        return "Not checked: `speechzoo data contamination` does it."
    found = json.loads((folder / CONTAMINATION).read_text(encoding="utf-8"))
    if found["sha256"] != sha256(folder / DATA):
        return "Not checked since the records changed: `speechzoo data contamination` does it."
    rows = [(row["id"], f"{row['share']:.0%}", ", ".join(row["records"])) for row in found["overlaps"]]
    told = (
        f"{found['flagged']} of {found['questions']} questions of `{found['file']}` have {found['threshold']:.0%} "
        f"of their {found['n']}-grams or more in the training text; {len(rows)} have any."
    )
    return f"{told}\n\n{_table(('question', 'n-grams found', 'records'), rows[:50])}" if rows else told


def _table(titles: Sequence[str], rows: Any) -> str:
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    cells = ([" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def _round(value: float) -> float:
    return round(value, 4)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    middle = {name: ordered[int(q * (len(ordered) - 1))] for name, q in (("median", 0.5), ("p95", 0.95))}
    return {"mean": _round(sum(values) / len(values)), **{k: _round(v) for k, v in middle.items()}, "max": ordered[-1]}


def _known(value: Any) -> str:
    return "not measured" if value is None else f"{value:,}"


def _many(spread: dict[str, float] | None) -> str:
    return ", ".join(f"{key} {value:,.4g}" for key, value in spread.items()) if spread else "not measured"


def _hours(told: dict[str, Any], who: str) -> str:
    hours = told[f"{who}_hours"]
    return "not measured" if hours is None else f"{hours:,.4g} h; seconds: {_many(told[f'{who}_seconds'])}"


def _shares(counts: dict[str, int]) -> str:
    named = [f"{name} {count:,}" for name, count in list(counts.items())[:12]]
    return ", ".join([*named, *([f"and {len(counts) - 12:,} more"] if len(counts) > 12 else [])]) or "not known"


def texts_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Ids and texts of a data set's questions, as written or said, and answers."""
    for record in read_jsonl(folder / DATA):
        for content in (message["content"] for message in record["messages"]):
            parts = [{"text": content}] if isinstance(content, str) else content
            for text in (part.get("text", part.get("transcript")) for part in parts):
                if text:
                    yield record["id"], text
