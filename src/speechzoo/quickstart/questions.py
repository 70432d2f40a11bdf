"""Question and answer texts of the quickstart corpus: small tasks, several ways to ask each, one way to answer each.

The answer's wording depends on the kind of task and its content alone, never on how it was asked, so an exact match
means that the question was understood. Only words are used (no digits), all of them in the pronunciation lexicon.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
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
        pools["sum"] = list(_sums(sums[side]))
        # The other slot is always filled from the training side: one new thing a question.
        pools["name"] = list(_names(names[side], cities[0]))
        pools["home"] = list(_homes(names[0], cities[side]))
        pools["greeting"] = list(_greetings(names[side]))
        pools["mine"] = list(_belongings(belongings[side]))
        pools["bigger"] = list(_sizes(sizes[side]))
        pools["repeat"] = list(_remarks(remarks[side]))
    return train, test


def _split(things: list[_T], rng: random.Random) -> tuple[list[_T], list[_T]]:
    shuffled = rng.sample(things, len(things))
    held_out = round(_HELD_OUT * len(things))
    return shuffled[held_out:], shuffled[:held_out]


def _sums(pairs: list[tuple[int, int]]) -> Iterator[_Ask]:
    ways = (
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "Please add {a} and {b}.",
        "What do {a} and {b} make?",
    )
    for pair in pairs:
        for (a, b), way in product(sorted(set(permutations(pair))), ways):
            words = {"a": facts.NUMBERS[a], "b": facts.NUMBERS[b], "c": facts.NUMBERS[a + b]}
            yield _Ask(_sentence(way, **words), _sentence("{a} plus {b} is {c}.", **words), f"{pair}")


def _names(names: list[str], cities: list[str]) -> Iterator[_Ask]:
    ways = (
        "I am {name} and I live in {city}. What is my name?",
        "I am {name} from {city}. What is my name?",
        "This is {name} from {city}. Who am I?",
    )
    for name, city, way in product(names, cities, ways):
        yield _Ask(way.format(name=name, city=city), f"Your name is {name}.", name)


def _homes(names: list[str], cities: list[str]) -> Iterator[_Ask]:
    ways = (
        "I am {name} and I live in {city}. Where do I live?",
        "I am {name} from {city}. Where do I live?",
        "This is {name} from {city}. Which city is my home?",
    )
    for name, city, way in product(names, cities, ways):
        yield _Ask(way.format(name=name, city=city), f"You live in {city}.", city)


def _greetings(names: list[str]) -> Iterator[_Ask]:
    ways = (
        "Hello, my name is {name}.",
        "Hi, I am {name}.",
        "Good morning, I am {name}.",
        "Nice to meet you, I am {name}.",
    )
    for name, way in product(names, ways):
        yield _Ask(way.format(name=name), f"Hello {name}, nice to meet you.", name)


def _belongings(pairs: list[tuple[str, str]]) -> Iterator[_Ask]:
    ways = (
        "I have a {color} {thing}. What color is it?",
        "My {thing} is {color}. What color is my {thing}?",
        "I bought a {color} {thing}. Which color is it?",
    )
    for (thing, color), way in product(pairs, ways):
        yield _Ask(way.format(thing=thing, color=color), f"Your {thing} is {color}.", f"{thing} {color}")


def _sizes(pairs: list[tuple[str, str]]) -> Iterator[_Ask]:
    ways = (
        "Which is bigger, the {a} or the {b}?",
        "What is bigger, the {a} or the {b}?",
        "Tell me which is bigger, the {a} or the {b}.",
    )
    for pair in pairs:
        for (a, b), way in product(permutations(pair), ways):
            yield _Ask(way.format(a=a, b=b), f"The {pair[0]} is bigger.", f"{pair}")


def _remarks(pairs: list[tuple[str, str]]) -> Iterator[_Ask]:
    ways = ("Please repeat, {text}.", "Say after me, {text}.", "Repeat after me, {text}.", "Please say, {text}.")
    for (noun, word), way in product(pairs, ways):
        text = f"the {noun} is {word}"
        yield _Ask(way.format(text=text), _sentence("{text}.", text=text), text)


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
