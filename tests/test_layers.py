"""Imports go one way, and files stay short enough to read at a sitting."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "speechzoo"

# Each layer may import from the ones above it; inside a layer packages do not know each other.
LAYERS = [
    {"types", "system"},
    {"parts"},
    {"names"},
    {"audio", "text"},
    {"generation"},
    {"encoders", "adaptors", "llms", "units", "vocoders", "training"},
    {"models"},
    {"data"},
    {"doctor"},
    {"metrics", "callbacks"},
    {"evaluation", "generation.conversation"},
    {"interop"},
    {"fidelity"},
    {"quickstart", "sweeps", "zoo"},
    {"corpora"},
    {"commands"},
    {"talk"},
    {"bench"},
    {"suites"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The quickstart trains by the command itself, so that it runs what a reader would type. What users call to ask a whole
# model stands in the room of the road to its answer.
ALLOWED = {("quickstart", "commands"), ("generation", "generation.conversation")}
LONGEST = 350  # lines


@cache
def modules() -> dict[str, Path]:
    """Dotted name of every module -> its file."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["speechzoo", *path.relative_to(SOURCE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name: str) -> set[str]:
    """Modules of the package that a module imports, inside functions too; not those that only types need."""
    tree = ast.parse(modules()[name].read_text())
    found = set()
    stack = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue  # types only
        stack += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "speechzoo"}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import on line {node.lineno}"
            if (node.module or "").split(".")[0] == "speechzoo":
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {target if target in modules() else node.module for target in whole}
    return found - {name}


def package(name: str) -> str:
    """The room a module belongs to, or the module where it has a layer of its own; '' for the root's `__init__`."""
    below = name.removeprefix("speechzoo.")
    return below if below in RANK else (name.split(".") + [""])[1]


def test_every_package_has_its_layer():
    assert {package(name) for name in modules()} - {""} <= set(RANK)


@pytest.mark.parametrize("name", sorted(set(modules()) - {"speechzoo"}))
def test_imports_go_up_the_layers_only(name: str):
    here = package(name)
    for target in imports(name):
        there = package(target)
        if there in ("", here) or (here, there) in ALLOWED:
            continue
        assert RANK[there] < RANK[here], f"{name} imports {target}"


def test_no_import_cycle():
    """A package's `__init__` only names what is in it; imports inside functions count too."""
    graph = {name: imports(name) for name in modules()}
    for name, path in modules().items():
        if path.name == "__init__.py":
            graph[name] = {target for target in graph[name] if not target.startswith(name + ".")}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("name", sorted(modules()))
def test_files_are_short_and_say_their_subject(name: str):
    text = modules()[name].read_text()
    assert text.count("\n") <= LONGEST
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "no docstring"
