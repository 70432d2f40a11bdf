"""The work of `speechzoo evaluate`: questions to answers to scores to tables; what is done is not done again."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import soundfile

from speechzoo.audio import SAMPLE_RATE, resample
from speechzoo.bench.latency import measure
from speechzoo.evaluation.answers import Answer, load_answers, save_answers
from speechzoo.metrics import quality_scorers
from speechzoo.suites import rules
from speechzoo.suites.catalogue import Suite
from speechzoo.suites.judge import Court, Judge
from speechzoo.suites.questions import Cell, Question
from speechzoo.suites.scoring import Listener, by_rule, judge, rate
from speechzoo.suites.systems import Local, Reply, System
from speechzoo.system.endpoint import UnreachableError
from speechzoo.system.files import discard, write_atomically, write_json
from speechzoo.system.locks import claim

SHARE = 0.05  # of the time that writing answers may take: a killed process loses what came since the last time
SETTINGS = "suite.json"
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


class Store:
    """The answers of one model in `FOLDER/answers.jsonl`, written again and again, always whole.

    Raises:
        ValueError: if the folder holds another model's answers.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], order: Sequence[Question], overwrite: bool) -> None:
        same(folder / "model.json", identity, overwrite, folder)
        self.folder, self.file = folder, folder / "answers.jsonl"
        self.rank = {question.id: number for number, question in enumerate(order)}
        found = load_answers(self.file) if self.file.is_file() else []
        self.answers = {answer.id: answer for answer in found}
        self._saved, self._took, self._changed = time.monotonic(), 0.0, False

    def put(self, answer: Answer) -> None:
        """Take an answer, in the place of an earlier one to the same question."""
        if self.answers.get(answer.id) != answer:
            self.answers[answer.id], self._changed = answer, True
        if time.monotonic() - self._saved > self._took / SHARE:
            self.save()

    def save(self) -> None:
        """Write what is new."""
        start = time.monotonic()
        if self._changed:
            # also those to questions that are not asked this time
            rest = [answer for answer in self.answers.values() if answer.id not in self.rank]
            save_answers(self.file, [*self.all, *rest])
            self._changed = False
        self._saved = time.monotonic()
        self._took = self._saved - start

    @property
    def all(self) -> list[Answer]:
        """All answers to questions of the suite, in its order."""
        return sorted((a for a in self.answers.values() if a.id in self.rank), key=lambda a: self.rank[a.id])


def same(file: Path, told: Mapping[str, Any], overwrite: bool, folder: Path) -> None:
    """See that a folder was made with these settings; write them where it is new.

    Raises:
        ValueError: naming what is otherwise; with `overwrite` the folder is emptied instead.
    """
    told = json.loads(json.dumps(told))
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        other = sorted(key for key in {*before, *told} if before.get(key) != told.get(key))
        if not other:
            return
        if not overwrite:
            shown = "; ".join(f"{key} was {_brief(before.get(key))}, is {_brief(told.get(key))}" for key in other)
            raise ValueError(f"{folder}: made otherwise ({shown}): give another --out, or --overwrite to begin anew")
        _empty(folder)
    write_json(file, told)


def same_questions(folder: Path, questions: Sequence[Question], overwrite: bool) -> None:
    """See that the questions a folder knows are still what they were; further ones may come.

    Raises:
        ValueError: naming one that is otherwise; with `overwrite` the folder is emptied instead.
    """
    file = folder / "questions.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    now = {question.id: digest for question in questions if (digest := question.digest()) is not None}
    changed = [name for name, digest in now.items() if before.get(name, digest) != digest]
    if changed and not overwrite:
        told = f"{len(changed)} questions are not what they were, such as {changed[0]!r}"
        raise ValueError(f"{folder}: {told}: give another --out, or --overwrite to begin anew")
    if changed:
        settings = (folder / SETTINGS).read_bytes()
        _empty(folder)
        write_atomically(folder / SETTINGS, settings)
        before = {}
    if before != {**before, **now}:
        write_json(file, {**before, **now})


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if not entry.name.startswith(".lock"):  # ours: see `claim`
            discard(entry)


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
    if "ifeval" in suite.rules:
        rules.instructions()  # before there are answers that nobody can score
    recogniser = options.recogniser or suite.recogniser
    settings = {"suite": name, "written": options.written, "words": suite.words, "recogniser": recogniser}
    identities = [system.identity() for system in systems]
    claim(options.out, "speechzoo evaluate")
    questions = questions[: options.limit]
    same(options.out / SETTINGS, settings, options.overwrite, options.out)
    same_questions(options.out, questions, options.overwrite)
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
        held = io.BytesIO()
        samples = resample(reply.audio.numpy(), reply.rate)
        soundfile.write(held, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        write_atomically(file, held.getvalue())
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
    """Milliseconds to the first sound by Omega, measured once; None where no unit decoder speaks."""
    file = store.folder / "latency.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    asked = [q for q in questions if q.id in store.answers][: options.latency]
    if not asked or not any(answer.units for answer in store.answers.values()) or "vocoder" not in system.talker.sound:
        return None
    messages = [system.messages(question, suite.words, options.written) for question in asked]
    tokens = int(system.generate.get("max_new_tokens", 64))
    omegas = measure(system.talker, messages, tokens)
    told = {"questions": len(asked), "device": str(next(system.talker.model.parameters()).device), "omegas": omegas}
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


def safe(name: str) -> str:
    """A name for a file or folder that tells ids apart, whatever characters they hold."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._")[:80]
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) < 60 else f"{text[:57]}..."
