"""What `${...}` may stand for in a configuration, besides its own keys and environment variables."""

from __future__ import annotations

import torch
from omegaconf import OmegaConf


def register_resolvers() -> None:
    """Make known to OmegaConf:

    * `${part:NAME}`: the local path of a small pretrained part, fetched if it is not there yet;
    * `${cpu:precision}` and `${cpu:dtype}`: the Trainer's precision, and the type of frozen weights, that suit this
      machine's CPU (`fast_bfloat16`).
    """
    OmegaConf.register_resolver("part", _part, replace=True)
    OmegaConf.register_resolver("cpu", _cpu, replace=True)


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 at a useful speed.

    That takes AVX-512. Without it they are emulated: 9 instead of 86 GFLOP/s in float32 on an AVX2 core (torch 2.13).
    """
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _part(name: str) -> str:
    from speechzoo.quickstart.parts import fetch

    return str(fetch(name))


def _cpu(setting: str) -> str:
    values = {"precision": ("32-true", "bf16-mixed"), "dtype": ("float32", "bfloat16")}
    if setting not in values:
        raise ValueError(f"${{cpu:{setting}}}: only {' and '.join(f'${{cpu:{name}}}' for name in values)} are known")
    return values[setting][fast_bfloat16()]
