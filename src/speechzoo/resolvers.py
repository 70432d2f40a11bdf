"""What `${...}` may stand for in a configuration, besides its own keys and environment variables."""

from __future__ import annotations

from omegaconf import OmegaConf

from speechzoo.cpu import fast_bfloat16
from speechzoo.quickstart import parts


def register_resolvers() -> None:
    """Make known to OmegaConf:

    * `${part:NAME}`: the local path of a small pretrained part, fetched if it is not there yet;
    * `${cpu:precision}` and `${cpu:dtype}`: the Trainer's precision, and the type of frozen weights, that suit this
      machine's CPU (`fast_bfloat16`).
    """
    OmegaConf.register_resolver("part", _part, replace=True)
    OmegaConf.register_resolver("cpu", _cpu, replace=True)


def _part(name: str) -> str:
    return str(parts.fetch(name))


def _cpu(setting: str) -> str:
    values = {"precision": ("32-true", "bf16-mixed"), "dtype": ("float32", "bfloat16")}
    if setting not in values:
        raise ValueError(f"${{cpu:{setting}}}: only {' and '.join(f'${{cpu:{name}}}' for name in values)} are known")
    return values[setting][fast_bfloat16()]
