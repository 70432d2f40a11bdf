"""What a suite came to: `table.md`, `table.tex`, `results.json`, and a W&B table with sound."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, cast

from speechzoo.audio import SAMPLE_RATE
from speechzoo.bench.latency import PAPER
from speechzoo.evaluation.answers import Answer, Measure, cut_answers, normalisers
from speechzoo.evaluation.compare import SystemResult, interval_cell, pair_differences, pair_table
from speechzoo.evaluation.tables import NOT_MEASURED, Cell, Table, markdown
from speechzoo.evaluation.wandb_run import open_run
from speechzoo.suites import paper
from speechzoo.suites.catalogue import Suite
from speechzoo.suites.columns import COLUMNS
from speechzoo.suites.evaluate import Evaluated
from speechzoo.suites.questions import Question, read_sound
from speechzoo.suites.scoring import JUDGED
from speechzoo.suites.store import safe
from speechzoo.system.files import without_nan, write_atomically, write_json

SPOKEN = ("s2sif", "s2s", "judged_s2s", "same_s2s", "asr_wer", "asr_cer", "utmos", "distill_mos", "wps")
REFERRED = ("s2t", "s2s", "judged_s2t", "judged_s2s", "same_s2t", "same_s2s", "wer", "cer", "exact_match", "rouge_l")
HEARD = 32  # questions of the W&B table


def shown(suite: Suite, done: Sequence[Evaluated]) -> list[Measure]:
    """The suite's columns, without those of speech where nobody speaks, and of references where there are none."""
    answers = [answer for result in done for answer in result.answers]
    without = set() if any(a.reply_seconds is not None for a in answers) else set(SPOKEN)
    without |= set() if any(a.reference for a in answers) else set(REFERRED)
    return [COLUMNS[key] for key in suite.columns if key not in without]


def main_table(suite: Suite, done: Sequence[Evaluated], seed: int) -> Table:
    """A row for each model, and those of the paper; brackets are 95 % bootstrap intervals."""
    columns = shown(suite, done)
    header = [f"{column.name} {'↑' if column.higher_is_better else '↓'}" for column in columns]
    table = Table(["Model", "Answers", *header], caption=f"{suite.about}; 95 % bootstrap intervals over questions")
    for result in done:
        cells = [_cell(column, result.answers, seed) for column in columns]
        table.add(result.name, str(len(result.answers)), *cells)
    if suite.paper:
        table.add(f"{paper.SOURCE}, Table 2")
        for name, row in paper.OFFLINE.items():
            values = [Cell(c.show(row[c.key])) if c.key in row else Cell("–") for c in columns]
            table.add(name, "199", *values)
    return table


def _cell(column: Measure, answers: Sequence[Answer], seed: int) -> Cell:
    cell, covered = interval_cell(column.interval(answers, seed), column.show), len(column.counted(answers))
    partly = cell.text != NOT_MEASURED and covered < len(answers)
    return cell._replace(detail=f"{cell.detail} (n = {covered})") if partly else cell


def kind_table(suite: Suite, done: Sequence[Evaluated], seed: int) -> Table | None:
    """The first measured column by part of the suite; None if it has but one."""
    kinds = sorted({answer.kind for result in done for answer in result.answers})
    column = next((c for c in shown(suite, done) if any(c.counted(result.answers) for result in done)), None)
    if len(kinds) < 2 or column is None:
        return None
    table = Table(["Part", "n", *(result.name for result in done)], caption=f"{column.name}, by part of the suite")
    for kind in kinds:
        parts = [[a for a in result.answers if a.kind == kind] for result in done]
        table.add(kind or "–", str(max(map(len, parts))), *(_cell(column, part, seed) for part in parts))
    return table


def latency_table(suite: Suite, done: Sequence[Evaluated]) -> Table | None:
    """First sound by Omega, LLM + vocoder = both in ms; None where nothing streams units.

    A cascade's voice has no Omega: its time is in `results.json`, and `speechzoo compare --cost first_sound` has both.
    """
    timed = [result for result in done if result.latency and set(result.latency["omegas"]) != {"offline"}]
    if not timed:
        return None
    header, told = [result.name for result in timed], [cast(dict[str, Any], result.latency) for result in timed]
    further = ("s2sif", "asr_wer", "utmos", "wps") if suite.paper else ()
    if suite.paper:
        header += ["LLaMA-Omni, paper", *(f"its {COLUMNS[key].name}" for key in further)]
    about = "; ".join(f"{r.name}: {_timed(t)}" for r, t in zip(timed, told, strict=True))
    caption = f"First sound by units that the vocoder waits for: median ms, LLM + vocoder = both ({about})"
    table = Table(["Omega", *header], caption=caption)
    for omega, theirs in PAPER.items():
        name = "offline" if omega == 0 else str(omega)
        cells = [_sums(one["omegas"].get(name, {})) for one in told]
        if suite.paper:
            cells.append(f"{theirs[0]:.0f} + {theirs[1]:.0f} = {theirs[2]:.0f}")
            cells += [COLUMNS[key].show(paper.STREAMED[omega][key]) for key in further]
        table.add(name, *cells)
    return table


def _timed(told: Mapping[str, Any]) -> str:
    """What was timed: answers cut shorter than those of the other tables make "offline" come sooner."""
    tokens = f", answers of at most {told['max_new_tokens']} tokens" if "max_new_tokens" in told else ""
    return f"{told['questions']} questions, {told['device']}{tokens}"


def _sums(row: Mapping[str, Any]) -> str:
    found = [1000 * row[name]["median"] for name in ("llm", "vocoder", "first_audio") if name in row]
    return f"{found[0]:.0f} + {found[1]:.0f} = {found[2]:.0f}" if len(found) == 3 else NOT_MEASURED


def notes(
    suite: Suite, done: Sequence[Evaluated], missing: Sequence[str], judged: Mapping[str, Any], recogniser: str
) -> list[str]:
    """What is to be known beside the tables, a sentence or two each."""
    answers = [answer for result in done for answer in result.answers]
    keys = [column.key for column in shown(suite, done)]
    told = [suite.note] if suite.note else []
    if any(key in SPOKEN for key in keys):
        told.append(f"Speech is written down by Whisper ({recogniser}).")
    if any(COLUMNS[key].name in ("WER", "CER", "ASR-WER", "ASR-CER") for key in keys):
        told.append(normalisers([a for a in answers if a.reference] or answers))
    if suite.judge:
        told += _of_judge(suite, judged)
        if mute := len({answer.id for answer in answers if not answer.question}):
            told.append(f"{mute} questions are known by their sound alone, and cannot be judged.")
    told += [paper.HOW] if suite.paper else []
    if "utmos" in keys and not any("UTMOS" in (a.quality or {}) for a in answers):
        told.append("UTMOS needs $SPEECHZOO_UTMOS, a clone of tarepan/SpeechMOS; Distill-MOS the extra `quality`.")
    if missing:
        told.append(_listed("not in the suite", missing))
    for result in done:
        if result.stopped:
            told.append(f"{result.name} was not asked to the end: {result.stopped}. The same command goes on.")
        if cut := cut_answers(result.answers):
            told.append(f"{cut} of {len(result.answers)} answers of {result.name} were cut off at the longest allowed.")
        if result.faults:
            told.append(_listed(f"{result.name} has no answer to", result.faults))
    return told


def _of_judge(suite: Suite, judged: Mapping[str, Any]) -> list[str]:
    names = " and ".join(COLUMNS[key].name for key in JUDGED[suite.judge] if key in suite.columns)
    if not judged:
        return [f"{names}: not measured, no judge was given (--judge)."]
    if "stopped" in judged:
        return [f"{names}: not measured, the judge could not be asked: {judged['stopped']}. Verdicts so far are kept."]
    told = [
        f"{names}: judged by {judged['judge']}, the mean of {judged['runs']} runs with opposite orders of the prompt."
    ]
    for key, found in judged.get("agreement", {}).items():
        equal, apart = f"{100 * found['equal']:.1f} %", f"{found['mean_difference']:.2f}"
        told.append(
            f"{COLUMNS[key].name}: both runs gave {equal} of {found['n']} answers the same score; distance {apart}."
        )
    return told + ([_listed("no score for", judged["faults"])] if judged["faults"] else [])


def _listed(what: str, lines: Sequence[str]) -> str:
    rest = f" and {len(lines) - 3} more (results.json has all)" if len(lines) > 3 else ""
    return f"{len(lines)} {what}: {'; '.join(lines[:3])}{rest}."


def write_results(
    folder: Path,
    name: str,
    suite: Suite,
    done: Sequence[Evaluated],
    missing: Sequence[str],
    judged: Mapping[str, Any],
    recogniser: str,
    seed: int,
) -> str:
    """Write `table.md`, `table.tex` and `results.json`; returns the text of the first."""
    systems = [SystemResult(result.name, result.answers) for result in done]
    columns = shown(suite, done)
    tables = [main_table(suite, done, seed), latency_table(suite, done), kind_table(suite, done, seed)]
    if len(done) > 1:
        tables.append(pair_table(systems, seed, columns))
    kept, told = [table for table in tables if table is not None], notes(suite, done, missing, judged, recogniser)
    blocks = [f"# {name}"]
    for table in kept:
        blocks += [table.to_markdown(), markdown(table.caption)]
    text = "\n\n".join([*blocks, "\n".join(f"* {markdown(line)}" for line in told)]).rstrip() + "\n"
    facts: dict[str, Any] = {"suite": name, "about": suite.about, "seed": seed, "recogniser": recogniser, "notes": told}
    facts |= {"not_in_the_suite": list(missing), "judge": dict(judged), "models": {}, "differences": []}
    for result in done:
        scores = {
            c.key: {**found._asdict(), "n": len(c.counted(result.answers))}
            for c in columns
            if (found := c.interval(result.answers, seed))
        }
        about = {
            "answers": len(result.answers),
            "faults": result.faults,
            "stopped": result.stopped,
            "latency": result.latency,
        }
        facts["models"][result.name] = {"folder": safe(result.name), "scores": scores, **about}
    for a, b in combinations(systems, 2):
        for key, (apart, n) in pair_differences(a, b, seed, columns).items():
            facts["differences"].append({"a": a.name, "b": b.name, "score": key, **apart._asdict(), "n": n})
    if suite.paper:
        latency = {str(omega or "offline"): ms for omega, ms in PAPER.items()}
        facts["paper"] = {
            "source": paper.SOURCE,
            "table_2": paper.OFFLINE,
            "table_4": paper.STREAMED,
            "latency_ms": latency,
        }
    write_json(folder / "results.json", without_nan(facts))
    write_atomically(folder / "table.tex", "\n\n".join(table.to_latex() for table in kept) + "\n")
    write_atomically(folder / "table.md", text)
    return text


def log_to_wandb(
    folder: Path, name: str, suite: Suite, done: Sequence[Evaluated], questions: Sequence[Question], seed: int
) -> None:
    """One W&B run: scores, and a table of the first questions with the sound of questions and answers.

    Offline unless WANDB_MODE says otherwise; nothing where it is `disabled`. A repeated one goes to the same run.
    """
    run = open_run("speechzoo-evaluate", name, folder)
    if run is None:
        return
    import wandb

    columns: list[str | int] = [*"model id kind question sound references text heard speech scores".split()]
    table = wandb.Table(columns=columns)
    sounds: dict[str, list[Any]] = {"questions": [], "speech": []}

    def sounding(kind: str, source: Any, caption: str) -> Any:
        """For the table, whose sounds stay in W&B's data folder until they are uploaded, and for the run's own."""
        rate = None if isinstance(source, str) else SAMPLE_RATE
        sounds[kind].append(wandb.Audio(source, sample_rate=rate, caption=caption))
        return wandb.Audio(source, sample_rate=rate)

    for question in questions[:HEARD]:
        answers = {r.name: a for r in done if (a := next((a for a in r.answers if a.id == question.id), None))}
        asked = None
        with suppress(ValueError, OSError):  # it need not be there any more, nor at all where words were asked
            asked = read_sound(question) if answers else None
        heard = None if asked is None else sounding("questions", asked.numpy(), question.id)
        for model, answer in answers.items():
            reply = folder / safe(model) / answer.reply_audio if answer.reply_audio else None
            spoken = None if reply is None else sounding("speech", str(reply), f"{model}: {question.id}")
            row = [model, answer.id, answer.kind, answer.question, heard, " / ".join(answer.references or [])]
            table.add_data(*row, answer.text, answer.spoken, spoken, json.dumps(answer.scores or {}))
    for result in done:
        for column in shown(suite, done):
            if found := column.interval(result.answers, seed):
                run.summary[f"{result.name}/{column.key}"] = found.value
    run.log({"answers": table, **{kind: held for kind, held in sounds.items() if held}})
    run.finish()
