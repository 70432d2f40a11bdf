"""Which version of the code ran: the commit, and a digest of what was changed since."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechzoo.system import commit


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in a repository of its own, instead of ours."""
    folder = tmp_path / "src" / "speechzoo"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    commit.git(tmp_path, "init", "-q")
    monkeypatch.setattr(commit, "PACKAGE", folder)
    return folder


def record(folder: Path) -> str:
    commit.git(folder, "add", "-A")
    commit.git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    return commit.git(folder, "rev-parse", "HEAD")[:10]


def test_a_commit_and_the_changes_since(package: Path) -> None:
    head = record(package.parents[1])
    assert commit.code_version() == head and len(head) == 10
    (package / "new.py").write_text("git does not know it")
    assert commit.code_version() == head
    told = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (package / "__init__.py").write_text(text)
        told.append(commit.code_version())
    assert told[0].startswith(f"{head} with changes ") and told[0] == told[2] != told[1]


def test_another_repository_around_an_installed_package_says_nothing(package: Path) -> None:
    (package.parents[1] / "own.py").write_text("")
    (package.parents[1] / ".gitignore").write_text("src/\n")
    record(package.parents[1])
    assert commit.code_version().startswith("speechzoo ")
