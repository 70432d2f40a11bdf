"""What a run was made with: versions and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("speechzoo", "torch", "lightning", "transformers", "openai-whisper", "peft", "torchmetrics", "numpy")


def describe_environment() -> dict[str, str]:
    """Versions and machine, in words; packages that are not installed are left out."""
    facts = {"python": platform.python_version()}
    for package in PACKAGES:
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
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
