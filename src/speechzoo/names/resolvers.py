"""What `${...}` may stand for in a configuration, besides its own keys and environment variables."""

from __future__ import annotations

import os

from omegaconf import OmegaConf

from speechzoo.parts import registry as parts
from speechzoo.system.cpu import fast_bfloat16, training_precision


def register_resolvers() -> None:
    """Make known to OmegaConf:

    * `${part:NAME}`: the local path of a small pretrained part, fetched if it is not there yet;
    * `${cpu:precision}` and `${cpu:dtype}`: the Trainer's precision, and the type of frozen weights, that suit this
      machine's CPU (`fast_bfloat16`);
    * `${wandb:mode}`: $WANDB_MODE; where it is not set, online for a trial of `wandb agent`, which would else wait for
      results in vain, and offline for all others.
    """
    OmegaConf.register_resolver("part", _part, replace=True)
    OmegaConf.register_resolver("cpu", _cpu, replace=True)
    OmegaConf.register_resolver("wandb", _wandb, replace=True)


def _part(name: str) -> str:
    return str(parts.fetch(name))


def _cpu(setting: str) -> str:
    values = {"precision": training_precision(), "dtype": "bfloat16" if fast_bfloat16() else "float32"}
    if setting not in values:
        raise ValueError(f"${{cpu:{setting}}}: only {' and '.join(f'${{cpu:{name}}}' for name in values)} are known")
    return values[setting]


def _wandb(setting: str) -> str:
    if setting != "mode":
        raise ValueError(f"${{wandb:{setting}}}: only ${{wandb:mode}} is known")
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_SWEEP_ID") else "offline")
