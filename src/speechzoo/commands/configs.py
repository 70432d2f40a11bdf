"""The configuration files of a command line, looked at before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from speechzoo.names.recipes import recipe
from speechzoo.system.yaml_text import read_yaml

CONFIG = re.compile(r"^(?:-c|--config)(?:=(.*))?$")


def wrong_config(words: Sequence[str]) -> str | None:
    """What is wrong with the configuration files of a command line such as `fit --config FILE`; None if nothing is."""
    if not words or words[0] not in ("fit", "validate", "test", "predict"):
        return None
    files = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if match := CONFIG.match(word):
            files.append(following if match[1] is None else match[1])
    helped = {"-h", "--help", "--print_config"} & {word.split("=")[0] for word in words}
    if not files and not helped and not any(word.split("=")[0] == "--model" for word in words):
        example = "recipes/quickstart/llasm_pretrain.yaml"
        return f"{words[0]} needs a configuration: --config {example}, or one of your own"
    for file in files:
        if not Path(file).is_file():
            return f"--config {file}: {'is a folder' if Path(file).is_dir() else f'no such file{_near(file)}'}"
        try:
            content = read_yaml(file)
        except ValueError as error:
            return f"--config {error}"
        except OSError as error:
            return f"--config {file}: {error.strerror}"
        if not isinstance(content, dict):
            held = "nothing" if content is None else f"a {type(content).__name__}"
            return f"--config {file}: holds {held}, not the settings of a run (key: value)"
        if empty := _empty(content):
            return f"--config {file}: {empty} is empty, which would take out all that is set there: leave it out"
    return None


def _empty(content: Any, path: str = "") -> str | None:
    """The first section that says nothing, such as one whose lines are all commented out."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        name = f"{path}.{key}" if path else str(key)
        if value is None and (name in ("model", "data", "trainer") or key == "init_args"):
            return name
        if found := _empty(value, name):
            return found
    return None


def _near(file: str) -> str:
    """The shipped recipe that is meant: mistyped, or asked for from another folder than the repository's."""
    root = recipe("README.md").parent
    shipped = {f"recipes/{path.relative_to(root).as_posix()}": path for path in root.rglob("*.yaml")}
    near = get_close_matches(file, shipped, n=1, cutoff=0.8)
    return f"; did you mean {shipped[near[0]]}?" if near else ""
