"""Where the recipes are: in the repository, or inside the installed package."""

from __future__ import annotations

from pathlib import Path


def recipe(name: str) -> Path:
    """Path of a shipped recipe such as `quickstart/llasm_pretrain.yaml`.

    Raises:
        FileNotFoundError: listing the recipes there are.
    """
    package = Path(__file__).parents[1]
    for root in (package / "recipes", package.parents[1] / "recipes"):
        if root.is_dir():
            if (root / name).is_file():
                return root / name
            known = sorted(str(path.relative_to(root)) for path in root.rglob("*.yaml"))
            raise FileNotFoundError(f"no recipe {name!r}; there are {', '.join(known)}")
    raise FileNotFoundError("the recipes are missing from this installation: reinstall speechzoo")
