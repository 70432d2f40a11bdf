"""The words and small facts that the quickstart's questions are made of, and the ways to ask for them."""

from __future__ import annotations

import re
from itertools import pairwise

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "England": "London", "Ireland": "Dublin", "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw",
    "Hungary": "Budapest", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Belgium": "Brussels", "Russia": "Moscow", "Turkey": "Ankara", "Egypt": "Cairo", "Japan": "Tokyo",
    "China": "Beijing", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Iraq": "Baghdad", "Iran": "Tehran",
}  # fmt: skip
LANGUAGES = {
    "France": "French", "Germany": "German", "Italy": "Italian", "Spain": "Spanish", "Portugal": "Portuguese",
    "England": "English", "Greece": "Greek", "Poland": "Polish", "Hungary": "Hungarian", "Sweden": "Swedish",
    "Norway": "Norwegian", "Finland": "Finnish", "Denmark": "Danish", "Russia": "Russian", "Turkey": "Turkish",
    "Egypt": "Arabic", "Japan": "Japanese", "China": "Chinese", "Mexico": "Spanish", "Brazil": "Portuguese",
    "Austria": "German", "Australia": "English",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "high": "low", "old": "new", "happy": "sad", "early": "late",
    "rich": "poor", "hard": "soft", "light": "dark", "full": "empty", "open": "closed", "long": "short",
    "clean": "dirty", "wet": "dry", "strong": "weak", "loud": "quiet", "thick": "thin", "near": "far",
    "good": "bad", "up": "down", "left": "right", "day": "night", "black": "white", "first": "last",
    "easy": "difficult", "cheap": "expensive",
}  # fmt: skip
PLURALS = {
    "dog": "dogs", "cat": "cats", "child": "children", "mouse": "mice", "foot": "feet", "tooth": "teeth",
    "man": "men", "woman": "women", "box": "boxes", "city": "cities", "leaf": "leaves", "knife": "knives",
    "goose": "geese", "baby": "babies", "book": "books", "tree": "trees", "wolf": "wolves", "party": "parties",
    "flower": "flowers", "wife": "wives", "lady": "ladies",
}  # fmt: skip
PASTS = {
    "go": "went", "drink": "drank", "take": "took", "come": "came", "run": "ran", "speak": "spoke", "sing": "sang",
    "swim": "swam", "think": "thought", "give": "gave", "find": "found", "sleep": "slept", "make": "made",
    "fall": "fell", "teach": "taught", "begin": "began", "break": "broke", "drive": "drove", "forget": "forgot",
    "leave": "left", "keep": "kept", "understand": "understood",
}  # fmt: skip
COLORS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "a banana": "yellow",
    "a lemon": "yellow", "a strawberry": "red", "milk": "white", "a frog": "green", "a carrot": "orange",
    "the sun": "yellow", "chocolate": "brown", "an elephant": "gray", "the sea": "blue", "a tomato": "red",
    "a crow": "black", "a flamingo": "pink", "a swan": "white", "a cucumber": "green", "a pumpkin": "orange",
    "a mouse": "gray",
}  # fmt: skip
BABIES = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "duck": "duckling", "horse": "foal",
    "lion": "cub", "hen": "chick", "frog": "tadpole", "pig": "piglet", "goat": "kid", "kangaroo": "joey",
    "bear": "cub",
}  # fmt: skip
CATEGORIES = {
    "rose": "a flower", "lily": "a flower", "daisy": "a flower", "dog": "an animal", "horse": "an animal",
    "tiger": "an animal", "banana": "a fruit", "melon": "a fruit", "peach": "a fruit", "carrot": "a vegetable",
    "potato": "a vegetable", "cabbage": "a vegetable", "hammer": "a tool", "saw": "a tool", "shovel": "a tool",
    "piano": "an instrument", "violin": "an instrument", "guitar": "an instrument", "chair": "a piece of furniture",
    "table": "a piece of furniture", "bed": "a piece of furniture", "salmon": "a fish", "shark": "a fish",
    "hawk": "a bird", "parrot": "a bird", "robin": "a bird", "shirt": "a piece of clothing",
    "jacket": "a piece of clothing",
}  # fmt: skip
LEGS = {
    "dog": "four", "spider": "eight", "bird": "two", "cow": "four", "bee": "six", "butterfly": "six",
    "chicken": "two", "horse": "four", "snake": "no", "fish": "no", "duck": "two", "cat": "four", "beetle": "six",
    "worm": "no",
}  # fmt: skip
PLACES = {
    "teacher": "school", "doctor": "hospital", "nurse": "hospital", "singer": "theater", "baker": "bakery",
    "farmer": "field", "waiter": "restaurant", "judge": "court", "soldier": "camp", "librarian": "library",
    "priest": "church", "dentist": "clinic", "painter": "studio", "clerk": "bank",
}  # fmt: skip

NAMES = (
    "Anna Peter Maria David Laura Thomas Julia Martin Sarah Robert Emma Daniel Alice George Helen Frank Susan "
    "Kevin Linda Oliver Nancy Victor Sophie Henry Carol Simon Betty Oscar Rachel Samuel Diana Patrick Monica "
    "Albert Barbara Edward Teresa Benjamin Olivia Arthur"
).split()
CITIES = (
    "Boston Chicago Dallas Denver Seattle Houston Miami Phoenix Milan Munich Sydney Liverpool Manchester Florence "
    "Venice Geneva Glasgow Hamburg Barcelona Toronto Montreal Detroit Atlanta Portland Memphis Cleveland Orlando "
    "Austin"
).split()
BELONGINGS = "car bike hat bag house table door boat book phone".split()
PAINTS = "red blue green black white yellow brown pink".split()
BY_SIZE = "mountain house bus elephant car horse sheep dog cat rabbit mouse spider".split()
REMARKS = {
    "water": ("cold", "warm", "deep", "clear"),
    "train": ("late", "fast", "full", "slow"),
    "forest": ("green", "quiet", "lovely", "dark"),
    "soup": ("hot", "ready", "good", "cold"),
    "window": ("open", "closed", "clean", "broken"),
    "music": ("loud", "soft", "lovely", "slow"),
    "street": ("empty", "long", "busy", "dark"),
    "teacher": ("kind", "tired", "happy", "young"),
    "weather": ("good", "bad", "cold", "warm"),
    "room": ("clean", "dirty", "small", "warm"),
}


def both_ways(table: dict[str, str]) -> dict[str, str]:
    """Return the table with every pair also the other way round."""
    return table | {y: x for x, y in table.items()}


def successors() -> dict[str, str]:
    """Return what follows each day, month and number; days and months go round."""
    rounds = [pairwise([*DAYS, DAYS[0]]), pairwise([*MONTHS, MONTHS[0]]), pairwise(NUMBERS)]
    return {earlier: later for steps in rounds for earlier, later in steps}


_FORMS = """
capital: The capital of {x} is {y}.
    What is the capital of {x}?
    Which city is the capital of {x}?
    Tell me the capital of {x}.
    Do you know the capital of {x}?
language: They speak {y} in {x}.
    What language do people speak in {x}?
    Which language is spoken in {x}?
    What do they speak in {x}?
    Tell me the language of {x}.
opposite: The opposite of {x} is {y}.
    What is the opposite of {x}?
    Tell me the opposite of {x}.
    Which word is the opposite of {x}?
    Give me the opposite of {x}.
plural: One {x}, two {y}.
    What is the plural of {x}?
    Tell me the plural of {x}.
    How do you say more than one {x}?
    Give me the plural form of {x}.
past: Today I {x}, yesterday I {y}.
    What is the past tense of {x}?
    Tell me the past of {x}.
    Give me the past tense of {x}.
    What is the past form of {x}?
color: The color of {x} is {y}.
    What color is {x}?
    What is the color of {x}?
    Tell me the color of {x}.
    Which color does {x} have?
baby: The baby {x} is called a {y}.
    What is a baby {x} called?
    What do you call a baby {x}?
    Tell me the name of a baby {x}.
    What is the word for a baby {x}?
kind: The {x} is {y}.
    What is a {x}?
    Tell me what a {x} is.
    What kind of thing is a {x}?
    Can you tell me what a {x} is?
legs: The {x} has {y} legs.
    How many legs does a {x} have?
    Count the legs of a {x}.
    A {x} has how many legs?
    Tell me how many legs a {x} has.
place: The {x} works in a {y}.
    Where does a {x} work?
    In which place does a {x} work?
    Tell me where a {x} works.
    Where can I find a {x}?
after: After {x} comes {y}.
    What comes after {x}?
    Tell me what comes after {x}.
    What is next after {x}?
    Which one comes right after {x}?
before: Before {x} comes {y}.
    What comes before {x}?
    Tell me what comes before {x}.
    What is right before {x}?
    Which one comes just before {x}?
sum: {a} plus {b} is {c}.
    What is {a} plus {b}?
    How much is {a} plus {b}?
    Please add {a} and {b}.
    What do {a} and {b} make?
name: Your name is {name}.
    I am {name} and I live in {city}. What is my name?
    I am {name} from {city}. What is my name?
    This is {name} from {city}. Who am I?
home: You live in {city}.
    I am {name} and I live in {city}. Where do I live?
    I am {name} from {city}. Where do I live?
    This is {name} from {city}. Which city is my home?
greeting: Hello {name}, nice to meet you.
    Hello, my name is {name}.
    Hi, I am {name}.
    Good morning, I am {name}.
    Nice to meet you, I am {name}.
mine: Your {thing} is {color}.
    I have a {color} {thing}. What color is it?
    My {thing} is {color}. What color is my {thing}?
    I bought a {color} {thing}. Which color is it?
bigger: The {larger} is bigger.
    Which is bigger, the {a} or the {b}?
    What is bigger, the {a} or the {b}?
    Tell me which is bigger, the {a} or the {b}.
repeat: {text}.
    Please repeat, {text}.
    Say after me, {text}.
    Repeat after me, {text}.
    Please say, {text}.
"""
"""Each kind of task with its one way to answer, below it its ways to ask."""


def forms(text: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return ways to ask and the way to answer of each kind."""
    found = {}
    for block in re.split(r"\n(?=\w)", text.strip()):
        head, *ways = block.splitlines()
        kind, _, answer = head.partition(": ")
        found[kind] = tuple(way.strip() for way in ways), answer
    return found


FORMS = forms(_FORMS)

TABLES = {
    "capital": CAPITALS,
    "language": LANGUAGES,
    "opposite": both_ways(OPPOSITES),
    "plural": PLURALS,
    "past": PASTS,
    "color": COLORS,
    "baby": BABIES,
    "kind": CATEGORIES,
    "legs": LEGS,
    "place": PLACES,
    "after": successors(),
    "before": {later: earlier for earlier, later in successors().items()},
}

TASKS: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    kind: (table, *FORMS[kind]) for kind, table in TABLES.items()
}
"""Kinds with a table of facts; in their forms {x} is what is asked about, {y} the answer to it."""
