"""The parser of Lightning's commands: checks what was typed, and says what is wrong with it in one line."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from speechzoo import adaptors, callbacks, data, encoders, llms, models, training, units
from speechzoo.commands.configs import wrong_config
from speechzoo.names.spec import resolve
from speechzoo.system.terminal import debugging

try:
    from jsonargparse._actions import previous_config
except ImportError:  # it is private; without it the `vars` of a file replace those of the files before
    previous_config = ContextVar("previous_config", default=None)

PARTS = (adaptors, callbacks, data, encoders, llms, models, training, units)
NONE = re.compile(r"^(--[^=]+=)?None$")
UNKNOWN = re.compile(
    r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)|import path string: (\w+)|Key '([\w.]+)' is not"
)
KEY = re.compile(r'^(\s*).*?Parser key "([\w.]+)":', re.MULTILINE)
EXPECTED = re.compile(r"Expected an? (<class '[\w.]+'>|typing\.Literal\[[^\]]*\])")
GIVEN = re.compile(r"(?:Got|Given) value: (.*)")
ONE_UNIT = re.compile("[\x7f-\uffff]")
NAMES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list",
    "dict": "a mapping (key: value)", "NoneType": "null",
}  # fmt: skip


class Parser(LightningArgumentParser):
    """Says what is wrong and the nearest spelling; jsonargparse says it after a page of all options."""

    def parse_args(  # type: ignore[override]  # the rest of the arguments is jsonargparse's own
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Namespace:
        """As jsonargparse's, which reads YAML, with what Python writes understood too (see `in_yaml`)."""
        words = list(sys.argv[1:] if args is None else args)
        if problem := wrong_config(words):
            self.error(problem)
        return super().parse_args([in_yaml(word) for word in words], *rest, **options)

    def parse_path(self, cfg_path: Any, **options: Any) -> Namespace:
        """As jsonargparse's; `vars` of a further file are added to those before, which it would replace as a whole."""
        found: Namespace = super().parse_path(cfg_path, **options)
        before = previous_config.get()
        if before is not None and before.get("vars") and found.get("vars"):
            found["vars"] = {**before["vars"], **found["vars"]}
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        if debugging():
            traceback.print_exc()
        line = brief(message)
        if found := UNKNOWN.search(message):
            wrong = next(name for name in found.groups() if name).split(".init_args")[0]
            parser = getattr(ex, "subcommand_parser", None) or self
            known = {action.dest for action in parser._actions}
            known |= {name for kind in PARTS for name in kind.__all__}
            for class_path in re.findall(r"class_path[ =]'([\w.]+)'", message):
                for kind in inspect.getmro(resolve(class_path)):  # models hand most arguments on to their base
                    known |= set(inspect.signature(vars(kind).get("__init__", object.__init__)).parameters)
            if near := get_close_matches(wrong, known - {wrong}, n=1):
                line += f"; did you mean {near[0]!r} instead of {wrong!r}?"
        self.exit(2, f"speechzoo: {line}\n")


def in_yaml(word: str) -> str:
    """An argument as YAML, where Python wrote it: `None` alone, a list or a dict just as `repr` does.

    So W&B's agent writes values, and so jsonargparse hands a `null` on to the parser of a nested part. YAML would read
    `None` as a text, and two backslashes where Python means one.
    """
    key, _, value = word.partition("=")
    if NONE.match(word) or not (key.startswith("--") and value[:1] in ("[", "{")):
        return NONE.sub(r"\1null", word)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)  # the same before Python 3.12
            found = ast.literal_eval(value)
        # YAML would take JSON's pairs of halves for two halves, and U+2028 as it stands for the end of a line.
        text = ONE_UNIT.sub(lambda c: f"\\u{ord(c[0]):04x}", json.dumps(found, ensure_ascii=False))
        return f"{key}={text}" if repr(found) == value else word
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # YAML, then
        return word


def brief(message: str) -> str:
    """The line of jsonargparse's message that matters: which key has which wrong value, and what it may be.

    Its messages are trees with a branch for each type that a value may have; the first branch is the part that the
    class_path chose, so the first chain of keys leads to the culprit.
    """
    keys: list[str] = []
    tail, depth = message, -1
    for found in KEY.finditer(message):
        if len(found[1]) <= depth:
            break
        keys.append(found[2])
        tail, depth = message[found.end() :], len(found[1])
    where = ".".join(keys)
    if unknown := re.search(r"[Oo]ption '([\w.]+)' is not accepted", tail):
        owner = re.findall(r"given class_path '([\w.]+)'", message[: len(message) - len(tail) + unknown.end()])
        owner += re.findall(r"is not accepted\. Got value: Namespace\(class_path='([\w.]+)'", tail)
        name = owner[-1].rsplit(".", 1)[-1] if owner else "it" if where else "a run"
        return f"{where}{': ' if where else ''}{name} has no setting {unknown[1]!r}"
    if missing := re.search(r"No module named '[\w.]+'", tail):
        return f"{where}: {missing[0]} (a module of your own is looked for in the current folder)"
    given = GIVEN.search(tail)
    if not where or not given:
        return re.sub(r"\s+", " ", message)[:400]
    value = re.sub(r"\. (Got|Given) value: .*", "", given[1])
    value = re.sub(r"^NestedArg\(key='\w+', val='(.*)'\)$", r"\1", value)  # of --model.init_args.adaptor=NAME
    kinds = [_kind(kind) for kind in dict.fromkeys(EXPECTED.findall(tail[: given.start()]))]
    real = [kind for kind in kinds if kind != "null"]
    if real:
        return f"{where}: {value[:100]!r} is not {' or '.join(real)}"
    if "import path string" in tail:
        return f"{where}: there is no class {value[:100]!r}"
    return re.sub(r"\s+", " ", f"{where}: {tail.strip()}")[:400]


def _kind(expected: str) -> str:
    """`<class 'float'>` as `a number`, `typing.Literal['a', 'b']` as `one of 'a', 'b'`."""
    if "[" in expected:
        return f"one of {expected.split('[', 1)[1].rstrip(']')}"
    name = expected.split("'")[1]
    return NAMES.get(name, name)
