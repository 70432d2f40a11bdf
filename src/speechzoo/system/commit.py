"""Which version of the code runs: the commit of a checkout and a digest of what was changed since."""

from __future__ import annotations

import hashlib
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def code_version() -> str:
    """Commit of speechzoo's own checkout, such as `334b92f0c1` or `334b92f0c1 with changes 5e1d03aa`; where it is
    installed without one, `speechzoo 0.1.0`.

    The digest is of `git diff HEAD`: the same changes give the same one, files that git does not know give none.
    """
    try:
        # A site-packages folder may lie inside somebody's own repository, whose commit says nothing of our code.
        git(PACKAGE, "ls-files", "--error-unmatch", "__init__.py")
        head, diff = git(PACKAGE, "rev-parse", "HEAD")[:10], git(PACKAGE, "diff", "HEAD")
    except (OSError, subprocess.SubprocessError):
        try:
            return f"speechzoo {version('speechzoo')}"
        except PackageNotFoundError:
            return "not known"
    return f"{head} with changes {hashlib.sha256(diff.encode()).hexdigest()[:8]}" if diff else head


def git(folder: str | Path, *args: str) -> str:
    """What a git command says in a folder, without the space around it.

    Raises:
        OSError, subprocess.SubprocessError: if there is no git, no repository, or no answer within 10 s.
    """
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=True, timeout=10
    ).stdout.strip()
