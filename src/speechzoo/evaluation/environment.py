"""What a run was made with: versions, processor, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from speechzoo.system.commit import git

PACKAGES = ("speechzoo", "torch", "lightning", "transformers", "openai-whisper", "peft", "torchmetrics", "numpy")


def describe_environment(repository: str | Path | None = None, packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions and machine, in words; packages that are not installed are left out.

    Args:
        repository: folder whose git commit is named ("with local changes" if it has any); None looks for none.
        packages: distributions whose versions are named.
    """
    facts = {"python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    facts["system"] = f"{platform.system()} {platform.machine()}"
    facts["processor"] = _processor()
    facts["cores"] = str(os.cpu_count())
    facts["torch threads"] = str(torch.get_num_threads())
    if torch.cuda.is_available():
        facts["accelerator"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    commit = _commit(repository)
    if commit:
        facts["git commit"] = commit
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _commit(repository: str | Path | None) -> str | None:
    if repository is None:
        return None
    try:
        head = git(repository, "rev-parse", "HEAD")
        changed = git(repository, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head} with local changes" if changed else head
