"""The words and small facts that the quickstart's questions are made of, and the ways to ask for them."""

from __future__ import annotations

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


# Each kind of task: its ways to ask, and the one way to answer. {x} is what is asked about, {y} the answer to it.
TASKS: dict[str, tuple[dict[str, str], tuple[str, ...], str]] = {
    "capital": (
        CAPITALS,
        (
            "What is the capital of {x}?",
            "Which city is the capital of {x}?",
            "Tell me the capital of {x}.",
            "Do you know the capital of {x}?",
        ),
        "The capital of {x} is {y}.",
    ),
    "language": (
        LANGUAGES,
        (
            "What language do people speak in {x}?",
            "Which language is spoken in {x}?",
            "What do they speak in {x}?",
            "Tell me the language of {x}.",
        ),
        "They speak {y} in {x}.",
    ),
    "opposite": (
        both_ways(OPPOSITES),
        (
            "What is the opposite of {x}?",
            "Tell me the opposite of {x}.",
            "Which word is the opposite of {x}?",
            "Give me the opposite of {x}.",
        ),
        "The opposite of {x} is {y}.",
    ),
    "plural": (
        PLURALS,
        (
            "What is the plural of {x}?",
            "Tell me the plural of {x}.",
            "How do you say more than one {x}?",
            "Give me the plural form of {x}.",
        ),
        "One {x}, two {y}.",
    ),
    "past": (
        PASTS,
        (
            "What is the past tense of {x}?",
            "Tell me the past of {x}.",
            "Give me the past tense of {x}.",
            "What is the past form of {x}?",
        ),
        "Today I {x}, yesterday I {y}.",
    ),
    "color": (
        COLORS,
        (
            "What color is {x}?",
            "What is the color of {x}?",
            "Tell me the color of {x}.",
            "Which color does {x} have?",
        ),
        "The color of {x} is {y}.",
    ),
    "baby": (
        BABIES,
        (
            "What is a baby {x} called?",
            "What do you call a baby {x}?",
            "Tell me the name of a baby {x}.",
            "What is the word for a baby {x}?",
        ),
        "The baby {x} is called a {y}.",
    ),
    "kind": (
        CATEGORIES,
        (
            "What is a {x}?",
            "Tell me what a {x} is.",
            "What kind of thing is a {x}?",
            "Can you tell me what a {x} is?",
        ),
        "The {x} is {y}.",
    ),
    "legs": (
        LEGS,
        (
            "How many legs does a {x} have?",
            "Count the legs of a {x}.",
            "A {x} has how many legs?",
            "Tell me how many legs a {x} has.",
        ),
        "The {x} has {y} legs.",
    ),
    "place": (
        PLACES,
        (
            "Where does a {x} work?",
            "In which place does a {x} work?",
            "Tell me where a {x} works.",
            "Where can I find a {x}?",
        ),
        "The {x} works in a {y}.",
    ),
    "after": (
        successors(),
        (
            "What comes after {x}?",
            "Tell me what comes after {x}.",
            "What is next after {x}?",
            "Which one comes right after {x}?",
        ),
        "After {x} comes {y}.",
    ),
    "before": (
        {later: earlier for earlier, later in successors().items()},
        (
            "What comes before {x}?",
            "Tell me what comes before {x}.",
            "What is right before {x}?",
            "Which one comes just before {x}?",
        ),
        "Before {x} comes {y}.",
    ),
}
