"""What this machine's CPU is good at, and what room it has."""

from __future__ import annotations

import os
from pathlib import Path

import torch


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 at a useful speed.

    That takes AVX-512. Without it they are emulated: 9 instead of 86 GFLOP/s in float32 on an AVX2 core (torch 2.13).
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def training_precision() -> str:
    """Lightning's name of the precision to train in on this CPU."""
    return "bf16-mixed" if fast_bfloat16() else "32-true"


def host_bytes(processes: int = 1) -> int:
    """This process's part of what is available on the machine (or in its container), and what it has; 0 unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration):
        return 0
    total = available // processes + held
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return total
