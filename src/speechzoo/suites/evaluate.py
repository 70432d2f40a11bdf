"""The work of `speechzoo evaluate`: questions to answers to scores to tables; what is done is not done again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from speechzoo.audio import resample, write_audio
from speechzoo.bench.latency import measure
from speechzoo.evaluation.answers import Answer, load_answers
from speechzoo.evaluation.evaluated import SUITE
from speechzoo.evaluation.listening import Listener, rate
from speechzoo.metrics import quality_scorers
from speechzoo.suites import rules
from speechzoo.suites.catalogue import Suite
from speechzoo.suites.judge import Court, Judge
from speechzoo.suites.questions import Cell, Question
from speechzoo.suites.scoring import by_rule, judge
from speechzoo.suites.store import ANSWERS, Store, safe, same, same_questions
from speechzoo.suites.systems import Local, Reply, System
from speechzoo.system.endpoint import UnreachableError
from speechzoo.system.files import read_json, write_json
from speechzoo.system.locks import claim

Tell = Callable[[str], None]


@dataclass
class Evaluated:
    """What came of a model, as the tables need it."""

    name: str
    answers: list[Answer]
    faults: list[str]  # a line for each question without an answer
    stopped: str = ""  # why it was not asked to the end
    latency: dict[str, Any] | None = None


@dataclass
class Options:
    """How a suite is asked and scored.

    Attributes:
        judge: None: its columns are not measured.
        recogniser, device: see `Listener`; None: the suite's own.
        written: ask the words of the questions instead of their sound.
        limit: the first so many questions; None: all.
        latency: questions that the first sound is timed with, 0: none.
        overwrite: begin anew where folder holds another model or suite.
    """

    out: Path
    judge: Judge | None = None
    recogniser: str | None = None
    device: str | None = None
    written: bool = False
    limit: int | None = None
    latency: int = 10
    seed: int = 0
    overwrite: bool = False


def evaluate(
    name: str, suite: Suite, questions: Sequence[Question], systems: Sequence[System], options: Options, tell: Tell
) -> tuple[list[Evaluated], dict[str, Any]]:
    """Ask and score all systems.

    Returns:
        What came of each, and what is to be told of the judge (empty without one).

    Raises:
        ValueError: if the folder holds something else; nothing was written then.
        DiskFullError: what was written before is kept.
    """
    questions = questions[: options.limit]
    if "ifeval" in suite.rules:
        rules.check_instructions(questions)
    recogniser = options.recogniser or suite.recogniser
    settings = {"suite": name, "written": options.written, "words": suite.words, "recogniser": recogniser}
    identities = [system.identity() for system in systems]
    claim(options.out, "speechzoo evaluate")
    _another_recogniser(options.out, settings)
    same(options.out / SUITE, settings, options.overwrite, options.out)
    same_questions(options.out, questions, options.written, options.overwrite)
    places = [options.out / safe(system.name) for system in systems]
    pairs = zip(systems, identities, places, strict=True)
    stores = [Store(place, identity, questions, options.overwrite) for _, identity, place in pairs]
    done = [_ask(s, store, questions, suite, options, tell) for s, store in zip(systems, stores, strict=True)]
    _listen(stores, recogniser, suite.language, options, tell)
    by_id = {question.id: question for question in questions}
    for store in stores:
        for answer in store.all:
            store.put(replace(answer, scores=by_rule(answer, by_id[answer.id], suite.rules) or None))
    told = _judge(done, stores, questions, suite, options, tell)
    for result, store in zip(done, stores, strict=True):
        store.save()
        result.answers = store.all
    return done, told


def _another_recogniser(folder: Path, settings: dict[str, Any]) -> None:
    """Let another recogniser write down what none did yet: the weights of the first may not have been there."""
    there = read_json(folder / SUITE) if (folder / SUITE).is_file() else settings
    if there != settings == {**there, "recogniser": settings["recogniser"]}:
        answers = [answer for file in folder.glob(f"*/{ANSWERS}") for answer in load_answers(file)]
        if all(answer.spoken is None for answer in answers):
            write_json(folder / SUITE, settings)


def _ask(
    system: System, store: Store, questions: Sequence[Question], suite: Suite, options: Options, tell: Tell
) -> Evaluated:
    """Put the questions that have no answer yet, and time the first sound."""
    result = Evaluated(system.name, [], [])
    left = [question for question in questions if question.id not in store.answers]
    if options.written:
        mute, why = [q for q in left if not q.text], "its words are not known, so it cannot be asked in writing"
    else:
        mute, why = [q for q in left if suite.spoken and q.sound is None], "it has no sound; --written asks its words"
    result.faults += [f"{question.id}: {why}" for question in mute]
    left = [question for question in left if question not in mute]
    if left:
        tell(f"{system.name}: {len(left)} questions")
    try:
        for question, reply in system.answer(left, suite.words, options.written):
            if isinstance(reply, str):
                result.faults.append(f"{question.id}: {reply.removeprefix(f'{question.id}: ')}")
            else:
                store.put(_answer(question, reply, store.folder))
    except UnreachableError as error:
        result.stopped = str(error)
    finally:
        store.save()
    if isinstance(system, Local):
        result.latency = _latency(system, store, questions, suite, options)
        vars(system).pop("talker", None)  # its memory is for the next one
    return result


def _answer(question: Question, reply: Reply, folder: Path) -> Answer:
    file = None
    if reply.audio is not None and len(reply.audio):
        file = folder / "speech" / f"{safe(question.id)}.flac"
        write_audio(file, resample(reply.audio.numpy(), reply.rate))
    unseen = question.more.get("unseen")
    return Answer(
        id=question.id,
        kind=question.kind,
        question=question.text,
        reference=question.references[0] if question.references else "",
        references=list(question.references) or None,
        text=reply.text,
        heard=reply.heard,
        units=reply.units,
        seconds=reply.seconds,
        seen=None if unseen is None else not unseen,
        audio=None if question.sound is None or isinstance(question.sound, Cell) else question.sound,
        reply_audio=None if file is None else str(file.relative_to(folder)),
        reply_seconds=None if reply.audio is None else len(reply.audio) / reply.rate,
        stopped=reply.stopped,
    )


def _latency(
    system: Local, store: Store, questions: Sequence[Question], suite: Suite, options: Options
) -> dict[str, Any] | None:
    """Times to the first sound by Omega, measured once for a number of questions; None where nobody speaks. A voice
    has `offline` alone."""
    file = store.folder / "latency.json"
    asked = [q for q in questions if q.id in store.answers][: options.latency]
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if found and found["questions"] >= len(asked):
        return found
    spoke = any(answer.units or answer.reply_seconds for answer in store.answers.values())
    if not asked or not spoke or not system.talker.sounds:
        return None
    messages = [system.messages(question, suite.words, options.written) for question in asked]
    tokens = int(system.generate.get("max_new_tokens", 64))
    omegas = measure(system.talker, messages, tokens)
    device = str(next(system.talker.model.parameters()).device)
    told = {"questions": len(asked), "device": device, "max_new_tokens": tokens, "omegas": omegas}
    write_json(file, told)
    return told


def _listen(stores: Sequence[Store], recogniser: str, language: str, options: Options, tell: Tell) -> None:
    """Write down and rate the speech that is not yet."""
    unheard = {s.folder: [a for a in s.all if a.reply_seconds is not None and a.spoken is None] for s in stores}
    if number := sum(map(len, unheard.values())):
        tell(f"{number} spoken answers, written down by Whisper ({recogniser})")
        listener = Listener(recogniser, language, options.device)
        for store in stores:
            for answer in listener.write_down(unheard[store.folder], store.folder):
                store.put(answer)
            store.save()
    if any(answer.reply_audio for store in stores for answer in store.all) and (scorers := quality_scorers()):
        for store in stores:
            for answer in store.all:
                store.put(rate(answer, store.folder, scorers))
            store.save()


def _judge(
    done: Sequence[Evaluated],
    stores: Sequence[Store],
    questions: Sequence[Question],
    suite: Suite,
    options: Options,
    tell: Tell,
) -> dict[str, Any]:
    if options.judge is None or not suite.judge:
        return {}
    tell(f"judged by {options.judge.name}")
    court = Court(options.judge, options.out / "judge.jsonl", options.seed)
    answers = {result.name: store.answers for result, store in zip(done, stores, strict=True)}
    scores, told = judge(answers, questions, suite.judge, court)
    if "stopped" not in told:  # else some models' scores would be of fewer questions than others'
        for result, store in zip(done, stores, strict=True):
            for answer in store.all:
                if found := scores[result.name].get(answer.id):
                    store.put(replace(answer, scores={**(answer.scores or {}), **found}))
    return told
