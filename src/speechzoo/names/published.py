"""The models the zoo knows by name: `checkpoints/index.yaml`, and the folders beside it."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from speechzoo.system.files import sha256

CARD = "README.md"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def shelves() -> list[Path]:
    """The folders that hold an `index.yaml` and published models: `$SPEECHZOO_ZOO`, if it is set, before what is inside
    the installed package, or in the repository.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    found = []
    if own := os.environ.get("SPEECHZOO_ZOO"):
        found.append(Path(own).expanduser())
        if not (found[0] / "index.yaml").is_file():
            raise FileNotFoundError(f"SPEECHZOO_ZOO={own}: holds no index.yaml; `speechzoo publish --to` writes one")
    package = Path(__file__).parents[1]
    for root in (package / "checkpoints", package.parents[1] / "checkpoints"):
        if (root / "index.yaml").is_file():
            return [*found, root]
    raise FileNotFoundError("checkpoints/index.yaml is missing from this installation: reinstall speechzoo")


def index() -> dict[str, dict[str, Any]]:
    """All entries by name, in the order of the files; a name of `$SPEECHZOO_ZOO` hides ours.

    Raises:
        ValueError: a file is no index.
    """
    found: dict[str, dict[str, Any]] = {}
    for root in shelves():
        file = root / "index.yaml"
        found = {**_read(file, file.stat().st_mtime_ns), **found}
    return found


@lru_cache
def _read(file: Path, _: int) -> dict[str, dict[str, Any]]:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(found, dict) or not all(isinstance(about, dict) for about in found.values()):
        raise ValueError(f"{file}: not a table of models")
    return {name: {**about, "shelf": file.parent} for name, about in found.items()}


def is_name(path: str | Path) -> bool:
    """Whether this is a name of the index and not a path (a file or folder of that name goes first)."""
    return NAME.fullmatch(str(path)) is not None and not Path(path).exists() and str(path) in index()


def name_of(path: str | Path) -> str | None:
    """The name that is meant: itself, or that of a published model's folder; None for anything else."""
    if is_name(path):
        return str(path)
    about = index().get(Path(path).name)
    if about is None or "files" not in about or (about["shelf"] / Path(path).name).resolve() != Path(path).resolve():
        return None
    return Path(path).name


def entry(name: str) -> dict[str, Any]:
    """What the index says of a model, and its `shelf`, the folder of that index.

    Raises:
        ValueError: no model has this name; the message lists the nearest ones.
    """
    if name not in index():
        near = get_close_matches(name, index(), n=3, cutoff=0.4)
        raise ValueError(
            f"no model is called {name!r}; {'near: ' if near else 'there are '}{', '.join(near or index())}"
        )
    return index()[name]


def nearest(name: str) -> str:
    """For the message that there is no such model: names of the zoo that are like it; empty if none is."""
    near = get_close_matches(name, index(), n=3, cutoff=0.7)
    return f"; the zoo has {', '.join(near)}" if near else ""


def published(name: str) -> Path:
    """The folder of a published model, each file compared with its hash in the index.

    Raises:
        ValueError: no model has this name; it is not distributed by the zoo; or a file is missing, or not the one that
            was published.
    """
    about = entry(name)
    if "files" not in about:
        how = about.get("import", "it is listed for reference")
        raise ValueError(f"{name}: not distributed with speechzoo, take it from {about.get('source')}: {how}")
    folder = Path(about["shelf"]) / name
    for file, wanted in about["files"].items():
        found = sha256(folder / file) if (folder / file).is_file() else "no such file"
        if found != wanted:
            raise ValueError(
                f"{folder / file}: damaged or changed (sha256 {wanted} expected, found {found}): nothing was loaded; "
                "get it again with `git checkout`, or reinstall speechzoo"
            )
    return folder
