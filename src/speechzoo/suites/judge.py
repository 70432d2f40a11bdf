"""An LLM that scores answers: versioned prompts of our own, every verdict kept, asked twice to see how sure it is."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from speechzoo.corpora.llm import LLM
from speechzoo.system.endpoint import ReplyError
from speechzoo.system.files import cut_half_line, json_line, read_jsonl, telling_room

VERSION = "1"
"""Of the prompts. A change of wording gets a new one: verdicts of another version are not mixed with these."""

RUNS = 2
TRIES = 3  # for a verdict that can be read

# What LLaMA-Omni's paper has GPT-4o look at (section 4.3 and appendix), in our own words.
INSTRUCTION = """\
A voice assistant was spoken to. Below are the words of the user and the words of its answer. Judge how well the \
answer serves somebody who listens to it: does it do what was asked, is it right, is it to the point, and can it be \
spoken aloud as it is, without lists, markup or needless length?

Give one whole number:
{scale}

User: {question}

Answer: {answer}

Reply with the number alone."""

SCALE = (
    "1: it misses what was asked, or what it says is wrong",
    "2: it has to do with the question, but is wrong or incomplete in important parts",
    "3: it is mostly right, but rambles, leaves something out, or is awkward to listen to",
    "4: it is right, clear and fit to be spoken",
    "5: it is exactly what the user needs, right, brief and natural to listen to",
)

ANSWER = """\
Below are a question, {order} its right answer and what somebody answered. Say whether the given answer agrees with \
the right one on what the question asks for; other words and further facts do not matter.

Question: {question}

{answers}

Reply with yes or no alone."""


@dataclass(frozen=True)
class Task:
    """One thing to judge.

    Attributes:
        kind: `instruction` (1 to 5) or `answer` (yes or no, 1 or 0).
        what: name of the score it is for, such as `s2tif`.
        turn: which of the runs; the second one sees scale or answers in the other order than the first.
    """

    model: str
    id: str
    what: str
    kind: str
    question: str
    answer: str
    references: tuple[str, ...] = ()
    turn: int = 0

    def prompt(self, seed: int) -> str:
        """What the judge reads; the order in the first run is drawn by seed and question, the second's is the other."""
        first = random.Random(f"{seed} {self.id} {self.what}").random() < 0.5
        flipped = first if self.turn % 2 == 0 else not first
        if self.kind == "instruction":
            scale = SCALE[::-1] if flipped else SCALE
            return INSTRUCTION.format(scale="\n".join(scale), question=self.question, answer=self.answer)
        both = [f"Right answer: {' or '.join(self.references)}", f"Given answer: {self.answer}"]
        answers = "\n\n".join(both[::-1] if flipped else both)
        return ANSWER.format(order="in any order" if flipped else "then", question=self.question, answers=answers)


THOUGHT = re.compile(r".*</think>|<think>.*", re.DOTALL)
"""Up to its end, also where the template began it; one that was cut off has no verdict after it."""
YES_OR_NO = re.compile(r"^\W*(yes|no)\b|(?<!\bnot )(?<!\bor )(?<!\bnor )\b(yes|no)\b(?!\s+\w)")
"""At the beginning, or with no word after it: "there is no doubt" is none, nor are "not yes" and "yes or no"."""


def verdict(kind: str, reply: str) -> float | None:
    """The score in a reply; None if there is none, or more than one."""
    reply = THOUGHT.sub("", reply).strip()
    if kind == "answer":
        found = {first or last for first, last in YES_OR_NO.findall(reply.lower())}
        return float(found.pop() == "yes") if len(found) == 1 else None
    reply = re.sub(r"(?<![\d.])([1-5])\s*(?:/|out of)\s*5(?!\d)", r"\1", reply)
    numbers = set(map(float, re.findall(r"-?\d+(?:\.\d+)?", re.sub("[−–]", "-", reply))))
    number = numbers.pop() if len(numbers) == 1 else 0.0
    return number if number in (1, 2, 3, 4, 5) else None


class Judge(Protocol):
    """Whoever replies to a prompt."""

    parallel: int

    @property
    def name(self) -> str: ...

    def reply(self, prompt: str, seed: int) -> str:
        """Its reply.

        Raises:
            UnreachableError: it cannot be asked at all.
            ReplyError: it replied nothing that is a text.
        """
        ...


@dataclass
class LLMJudge:
    """An LLM at temperature 0: an endpoint, or a local model."""

    llm: LLM
    parallel: int = 4
    tokens: int = 512  # room for a thought before the verdict

    @property
    def name(self) -> str:
        return self.llm.model

    def reply(self, prompt: str, seed: int) -> str:
        """See `Judge`."""
        asked = [{"role": "user", "content": prompt}]
        return self.llm.chat(asked, temperature=0, seed=seed, max_tokens=self.tokens).text


@dataclass
class Verdict:
    """What a judge said to a task; `score` is None where its reply holds none."""

    key: str
    judge: str
    version: str
    model: str
    id: str
    what: str
    turn: int
    score: float | None
    reply: str


class Court:
    """Verdicts of one judge, kept in a JSONL file: what was judged once is not asked again.

    Args:
        file: grows by a line for each verdict; one that a killed process cut off is dropped.
        seed: of the order in which tasks are asked, and of the orders inside prompts.
    """

    def __init__(self, judge: Judge, file: Path, seed: int = 0) -> None:
        self.judge, self.file, self.seed = judge, file, seed
        self.known: dict[str, Verdict] = {}
        for line in read_jsonl(file) if cut_half_line(file) else []:
            found = Verdict(**line)
            if found.score is not None:
                self.known[found.key] = found
        self.faults: list[str] = []

    def key(self, task: Task) -> str:
        """Hash of everything that a verdict depends on."""
        told = [self.judge.name, VERSION, task.kind, task.turn, self.seed, task.prompt(self.seed)]
        return hashlib.sha256(json.dumps(told, ensure_ascii=False).encode()).hexdigest()

    def hear(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, float | None]]:
        """Each task and its score; those that are not known yet are asked in an order drawn by the seed, so that a
        judge that changes with time changes for all models alike.

        Raises:
            UnreachableError: the judge is not there; verdicts so far are kept.
        """
        left: dict[str, list[Task]] = {}
        for task in tasks:
            found = self.known.get(key := self.key(task))
            # What was replied is read again: an earlier release may have read another score in it.
            if found is not None and (score := verdict(task.kind, found.reply)) is not None:
                yield task, score
            else:
                left.setdefault(key, []).append(task)
        order = list(left.values())
        random.Random(self.seed).shuffle(order)
        pool = ThreadPoolExecutor(self.judge.parallel)
        try:
            for alike, said in zip(order, pool.map(lambda alike: self._ask(alike[0]), order), strict=True):
                self._keep(said)
                for task in alike:
                    if said.score is None:
                        self.faults.append(f"{task.model}: {task.id}, {task.what}: no score in {said.reply[:80]!r}")
                    yield task, said.score
        finally:
            pool.shutdown(cancel_futures=True)

    def _ask(self, task: Task) -> Verdict:
        prompt, reply, score = task.prompt(self.seed), "", None
        for attempt in range(TRIES):
            try:
                reply = self.judge.reply(prompt, self.seed + task.turn + RUNS * attempt)
            except ReplyError as error:
                reply = str(error)
            else:
                score = verdict(task.kind, reply)
            if score is not None:
                break
        told = (self.key(task), self.judge.name, VERSION, task.model, task.id, task.what, task.turn)
        return Verdict(*told, score=score, reply=reply)

    def _keep(self, said: Verdict) -> None:
        if said.score is not None:
            self.known[said.key] = said
        self.file.parent.mkdir(parents=True, exist_ok=True)
        line = json_line(asdict(said))
        with telling_room(self.file, len(line)), self.file.open("a", encoding="utf-8") as file:
            file.write(line)


def agreement(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """How far two runs agree: share of equal scores, mean difference, and how many there are."""
    if not pairs:
        return {"n": 0}
    apart = [abs(a - b) for a, b in pairs]
    return {
        "n": len(pairs),
        "equal": sum(d == 0 for d in apart) / len(apart),
        "mean_difference": sum(apart) / len(apart),
    }
