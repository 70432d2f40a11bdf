"""YAML in which no key stands twice in one mapping: PyYAML takes the last of them and says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError


class _Once(yaml.SafeLoader):
    """Refuses a second key of the same name, as YAML itself does; what `<<` brings in may be replaced."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    told = f"the key {key.value!r} stands twice"
                    raise ConstructorError("in a mapping", node.start_mark, told, key.start_mark)
                seen.add((key.tag, key.value))
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds: plain data.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no YAML, or a key stands twice in a mapping; one line with file and line.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _Once)  # a SafeLoader, which runs nothing
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ValueError(f"{path}{f':{mark.line + 1}' if mark else ''}: not YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
