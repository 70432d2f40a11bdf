"""Brings the documents that stand elsewhere in the repository, and a page of API for each room, into the site."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "checkpoints/README.md": "checkpoints.md",
    "benchmarks/README.md": "benchmarks.md",
    "recipes/README.md": "recipes/index.md",
    **{
        f"recipes/{name}/README.md": f"recipes/{name}.md"
        for name in "quickstart zoo llasm llama_omni llama_omni2 ultravox cluster sweeps study".split()
    },
    **{f"docs/{path.name}": path.name for path in (ROOT / "docs").glob("*.md")},
}
ROOMS = (
    "types", "models", "encoders", "adaptors", "llms", "units", "vocoders", "generation", "generation.conversation",
    "text", "audio", "data", "training", "callbacks", "metrics", "evaluation", "interop",
)  # fmt: skip
LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The rooms' pages in the navigation."""
    config.nav.append({"API": [{room: f"api/{room}.md"} for room in ROOMS]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of the site, and the files that they link to; those in docs/ are there already."""
    linked: set[str] = set()
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        linked |= {target for target in _targets(text, source) if target not in PAGES and (ROOT / target).is_file()}
        if not source.startswith("docs/"):
            files.append(File.generated(config, page, content=_relinked(text, source)))
    for target in sorted(linked):
        files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=_api(room)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the pages in docs/ to files outside of it."""
    source = f"docs/{page.file.src_uri}"
    return _relinked(markdown, source) if source in PAGES else markdown


def _targets(text: str, source: str) -> list[str]:
    """Paths in the repository that a document links to."""
    return [_target(found[2], source) for found in LINK.finditer(text)]


def _target(link: str, source: str) -> str:
    target = os.path.normpath(os.path.join(os.path.dirname(source), link))
    return f"{target}/README.md" if f"{target}/README.md" in PAGES else target


def _relinked(text: str, source: str) -> str:
    """Links from file to file of the repository, as links from page to page."""
    here = os.path.dirname(PAGES[source]) or "."

    def link(found: re.Match[str]) -> str:
        target = _target(found[2], source)
        if not (ROOT / target).is_file():
            return found[0]  # mkdocs tells that it leads nowhere
        return f"{found[1]}{os.path.relpath(PAGES.get(target, target), here)}{found[3] or ''}{found[4]}"

    return LINK.sub(link, text)


def _api(room: str) -> str:
    """What a room offers: the names its `__init__` exports, or all that are public in a module."""
    path = ROOT / "src/speechzoo" / room.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = _exported(tree) or [
        node.name
        for node in tree.body
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_")
    ]
    head = f"# speechzoo.{room}\n\n{ast.get_docstring(tree)}\n\n"
    return head + "\n".join(f"::: speechzoo.{room}.{name}\n    options: {{heading_level: 2}}\n" for name in names)


def _exported(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    return []
