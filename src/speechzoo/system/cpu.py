"""What this machine's CPU is good at."""

from __future__ import annotations

import torch


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 at a useful speed.

    That takes AVX-512. Without it they are emulated: 9 instead of 86 GFLOP/s in float32 on an AVX2 core (torch 2.13).
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")
