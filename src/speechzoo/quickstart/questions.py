"""Question and answer texts of the quickstart corpus: small tasks, several ways to ask each, one way to answer each.

The answer's wording depends on the kind of task and its content alone, never on how it was asked, so an exact match
means that the question was understood. Only words are used (no digits), all of them in the pronunciation lexicon.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import permutations, product, starmap
from typing import TypeVar

from speechzoo.quickstart import facts

_T = TypeVar("_T")


@dataclass(frozen=True)
class Pair:
    """One question and its answer. ``unseen``: what is asked about occurs nowhere in the training split."""

    split: str  # "train" or "test"
    kind: str
    question: str
    answer: str
    unseen: bool


@dataclass(frozen=True)
class _Ask:
    question: str
    answer: str
    about: str  # the content: all ways to ask the same thing share it


# Kinds whose contents are combined freely; what the test split asks about is kept out of the training split.
_FREE_KINDS = ("sum", "name", "home", "greeting", "mine", "bigger", "repeat")
_SPLIT_SEED = (
    0  # what is asked in testing alone is the same whatever the seed: the zoo's adaptors learned from the rest
)
_HELD_OUT = 0.3  # of the names, cities, operand pairs and word pairs
KINDS: tuple[str, ...] = (*facts.TASKS, *_FREE_KINDS)


def make_pairs(train: int = 700, test: int = 100, seed: int = 0) -> list[Pair]:
    """Draw the question and answer texts of both splits; the same arguments always give the same list.

    What may be in which split does not depend on `seed`, so no draw tests what another one trains on.
    No question is in both splits. For the kinds sum, name, home, greeting, mine, bigger and repeat the names, cities,
    operands (in either order) or word pairs asked about in the test split occur nowhere in the training split
    (``unseen``); for the other kinds the fact is asked in training too, in other words.

    Raises:
        ValueError: more pairs are asked for than there are.
    """
    train_pools, test_pools = _pools(random.Random(_SPLIT_SEED))
    rng = random.Random(seed)
    for pools in (train_pools, test_pools):
        for asks in pools.values():
            rng.shuffle(asks)
    chosen = _draw(train_pools, train, "train")
    taught = {kind: {ask.about for ask in asks} for kind, asks in chosen.items()}
    for kind in facts.TASKS:
        test_pools[kind] = [ask for ask in test_pools[kind] if ask.about in taught[kind]]
    tested = _draw(test_pools, test, "test")
    pairs: list[Pair] = []
    for split, drawn in (("train", chosen), ("test", tested)):
        part = [
            Pair(split, kind, ask.question, ask.answer, unseen=split == "test" and kind in _FREE_KINDS)
            for kind, asks in drawn.items()
            for ask in asks
        ]
        rng.shuffle(part)
        pairs += part
    return pairs


def _pools(rng: random.Random) -> tuple[dict[str, list[_Ask]], dict[str, list[_Ask]]]:
    """Give each split everything it may ask, by kind and in random order."""
    train: dict[str, list[_Ask]] = {}
    test: dict[str, list[_Ask]] = {}
    for kind, (table, ways, form) in facts.TASKS.items():
        train[kind], test[kind] = [], []
        for x, y in table.items():
            asks = [_Ask(_sentence(way, x=x, y=y), _sentence(form, x=x, y=y), x) for way in ways]
            test[kind].append(asks.pop(rng.randrange(len(asks))))
            train[kind] += asks
    names, cities = _split(facts.NAMES, rng), _split(facts.CITIES, rng)
    sums = _split([(a, b) for a in range(1, 10) for b in range(a, 10)], rng)
    belongings = _split(list(product(facts.BELONGINGS, facts.PAINTS)), rng)
    sizes = _split([(a, b) for index, a in enumerate(facts.BY_SIZE) for b in facts.BY_SIZE[index + 3 :]], rng)
    remarks = _split([(noun, word) for noun, words in facts.REMARKS.items() for word in words], rng)
    for side, pools in enumerate((train, test)):
        # The other slot is always filled from the training side: one new thing a question.
        slots = {
            "sum": _sums(sums[side]),
            "name": ({"name": name, "city": city, "about": name} for name, city in product(names[side], cities[0])),
            "home": ({"name": name, "city": city, "about": city} for name, city in product(names[0], cities[side])),
            "greeting": ({"name": name, "about": name} for name in names[side]),
            "mine": ({"thing": x, "color": color, "about": f"{x} {color}"} for x, color in belongings[side]),
            "bigger": _sizes(sizes[side]),
            "repeat": ({"text": text, "about": text} for text in starmap("the {} is {}".format, remarks[side])),
        }
        pools |= {kind: list(_asks(kind, rows)) for kind, rows in slots.items()}
    return train, test


def _split(things: list[_T], rng: random.Random) -> tuple[list[_T], list[_T]]:
    shuffled = rng.sample(things, len(things))
    held_out = round(_HELD_OUT * len(things))
    return shuffled[held_out:], shuffled[:held_out]


def _asks(kind: str, rows: Iterable[dict[str, str]]) -> Iterator[_Ask]:
    """Each row of words in each way to ask; `about` is the content."""
    ways, answer = facts.FORMS[kind]
    for row, way in product(rows, ways):
        yield _Ask(_sentence(way, **row), _sentence(answer, **row), row["about"])


def _sums(pairs: list[tuple[int, int]]) -> Iterator[dict[str, str]]:
    for pair in pairs:
        for a, b in sorted(set(permutations(pair))):
            words = {"a": facts.NUMBERS[a], "b": facts.NUMBERS[b], "c": facts.NUMBERS[a + b]}
            yield {**words, "about": f"{pair}"}


def _sizes(pairs: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
    for pair in pairs:
        for a, b in permutations(pair):
            yield {"a": a, "b": b, "larger": pair[0], "about": f"{pair}"}


def _sentence(form: str, **slots: str) -> str:
    text = form.format(**slots)
    return text[0].upper() + text[1:]


def _draw(pools: dict[str, list[_Ask]], count: int, split: str) -> dict[str, list[_Ask]]:
    """Take ``count`` questions, as evenly over the kinds as their pools allow and over contents within a kind."""
    available = sum(len(asks) for asks in pools.values())
    if count > available:
        raise ValueError(f"{count} {split} pairs were asked for, there are only {available}: make fewer")
    quota = Counter({kind: 0 for kind in pools})
    while count > quota.total():
        open_kinds = [kind for kind in KINDS if quota[kind] < len(pools[kind])]
        for kind in open_kinds[: count - quota.total()]:
            quota[kind] += 1
    return {kind: _by_turns(pools[kind])[: quota[kind]] for kind in KINDS}


def _by_turns(asks: list[_Ask]) -> list[_Ask]:
    """Order questions so that every content comes once before any comes twice."""
    seen: Counter[str] = Counter()
    turns = []
    for ask in asks:
        turns.append(seen[ask.about])
        seen[ask.about] += 1
    return [ask for _, ask in sorted(zip(turns, asks, strict=True), key=lambda item: item[0])]
