"""What a run's own records say of it: its cost, its results, where its parts come from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from speechzoo.evaluation.answers import MEASURES, load_answers, score
from speechzoo.evaluation.runs import run_of
from speechzoo.models.checkpoint import read
from speechzoo.names.published import entry, is_name, shelves
from speechzoo.vocoders.latent import is_latent
from speechzoo.zoo.card import Facts, Result
from speechzoo.zoo.publish import publish_model, publish_vocoder, write_index

COST = (
    *("steps", "seconds", "examples", "tokens", "supervised_tokens", "trainable_parameters"),
    *("total_parameters", "peak_memory_mb", "train_loss", "val_loss"),
)
ROUNDED = {"seconds": 0, "peak_memory_mb": 0, "train_loss": 4, "val_loss": 4}
SPOKEN = ("asr_wer", "asr_cer", "Distill-MOS")  # what a vocoder can be measured by
MEASURED = ("wer", "cer", "exact_match", "unit_error_rate", *SPOKEN)


def publish(args: Any) -> Path:
    """Publish as `speechzoo publish` was told to; returns the folder.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: see `speechzoo.zoo.publish`.
    """
    root: Path = args.to or shelves()[0]
    folder = root / str(args.name)
    files = [(data, Path(file)) for data, file in args.answers]
    training = dict(costs(args.run))
    is_vocoder = is_latent(args.run)
    measured = SPOKEN if is_vocoder else MEASURED
    facts = Facts(
        about=args.about,
        recipe=args.recipe,
        cost=_told(training),
        text=args.text.read_text(encoding="utf-8").strip() if args.text else "",
        results=[r for data, file in files for r in results_of(file, data, args.command or args.recipe, measured)],
        licence=args.licence,
        task=args.task,
        answers=files[0][1] if files and not is_vocoder else None,
        datasets=args.dataset,
    )
    if is_vocoder:
        entry = publish_vocoder(args.run, folder, facts, args.units)
    else:
        entry = publish_model(args.run, folder, facts, args.vocoder)
    write_index(root, args.name, {**entry, "training": training})
    return folder


def results_of(file: Path, data: str, command: str, measured: Sequence[str] = MEASURED) -> Iterator[Result]:
    """Scores of a file of answers, with their intervals.

    Args:
        data: what the questions were.
        command: that measured it.
        measured: the scores that are taken.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, or holds no answers.
    """
    answers = load_answers(file)
    if not answers:
        raise ValueError(f"{file}: holds no answers")
    covered = Counter(name for answer in answers for name in answer.quality or ())
    covered |= {measure.key: len(measure.counted(answers)) for measure in MEASURES}
    for metric, interval in score(answers).items():
        if metric in measured:
            low, high = round(interval.low, 4), round(interval.high, 4)
            yield Result(metric, round(interval.value, 4), f"{data} ({covered[metric]})", command, low, high)


def costs(run: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each stage of a run cost, earlier stages first, from their `summary.json`; without one the number of
    steps."""
    run = run_of(run)
    for stage in read(run).get("hyper_parameters", {}).get("init_from", []) if (run / "last.ckpt").exists() else []:
        yield from entry(stage)["training"].items() if is_name(stage) else costs(Path(stage))
    if (run / "summary.json").is_file():
        record = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        found = {key: record[key] for key in COST if record.get(key) is not None}
        commit = {"commit": record["commit"]} if record.get("commit") else {}
        yield run.name, {key: round(value, ROUNDED.get(key)) for key, value in found.items()} | commit


def _told(training: dict[str, dict[str, Any]]) -> str:
    if not training:
        return "Its cost was not recorded."
    rows = [[stage, *(f"{cost[key]:,}" if key in cost else "–" for key in COST)] for stage, cost in training.items()]
    head = [["stage", *(key.replace("_", " ") for key in COST)], ["---"] * (len(COST) + 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in head + rows)
