"""The manifests of a split as a configuration gives them: one, several, or several by name."""

from __future__ import annotations

from collections.abc import Mapping

from speechzoo.data.sources import source_name

Paths = str | list[str] | None
NamedPaths = str | list[str] | dict[str, str] | None


def together(split: str, paths: Paths) -> dict[str, list[str]]:
    """All manifests of a split as one set of its name; none where none is given."""
    return {split: [paths] if isinstance(paths, str) else list(paths)} if paths else {}


def named(split: str, paths: NamedPaths) -> dict[str, list[str]]:
    """Manifests by name; the name of a file without its ending where none is given.

    Raises:
        ValueError: if two files are called the same.
    """
    if not paths:
        return {}
    if isinstance(paths, Mapping):
        return {str(name): [path] for name, path in paths.items()}
    files = [paths] if isinstance(paths, str) else list(paths)
    names = {source_name(file): [file] for file in files}
    if len(names) < len(files):
        raise ValueError(f"data.{split} holds files of the same name: give them names, {{name: path, ...}}")
    return names
