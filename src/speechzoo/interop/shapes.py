"""The names and sizes of our parts' weights, from a release's config alone (nothing is allocated)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA = (
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads vocab_size rms_norm_eps "
    "max_position_embeddings tie_word_embeddings bos_token_id eos_token_id pad_token_id hidden_act initializer_range "
    "attention_bias attention_dropout mlp_bias head_dim"
).split()


def rope(config: dict[str, Any]) -> dict[str, Any] | None:
    """How positions are scaled, with its type under today's name and without the base; None where it is not said.

    transformers 5 writes `rope_parameters`, with the base in it; before, these were `rope_scaling` and `rope_theta`.

    Raises:
        ValueError: if it is no mapping.
    """
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"config.json: the rope's scaling is {scaling!r}, no mapping")
    scaling = {name: value for name, value in scaling.items() if name != "rope_theta"}
    if "type" in scaling:
        scaling.setdefault("rope_type", scaling.pop("type"))
    return scaling if scaling and scaling != {"rope_type": "default"} else None


def rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary embedding.

    Raises:
        ValueError: if it is no number.
    """
    held = config.get("rope_parameters") or {}
    base = held.get("rope_theta") or config.get("rope_theta") or 10_000.0
    if not isinstance(base, (int, float)):
        raise ValueError(f"config.json: rope_theta {base!r} is no number")
    return float(base)


def llama_config(config: dict[str, Any]) -> LlamaConfig:
    """The Llama inside a release's config, as transformers has it today.

    Raises:
        ValueError: one line, if the values cannot make a Llama.
    """
    settings = {name: config[name] for name in LLAMA if name in config}
    turn = {"rope_type": "default", **(rope(config) or {}), "rope_theta": rope_theta(config)}
    try:
        return LlamaConfig(**settings, rope_parameters=turn, architectures=["LlamaForCausalLM"])
    except Exception as error:  # transformers validates with exceptions of its own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"config.json does not describe a Llama: {reason}") from error


def llama_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the LLM."""
    shapes = shapes_of(lambda: LlamaForCausalLM(config))
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    return shapes


def shapes_of(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a module, built without memory.

    Raises:
        ValueError: one line, if its settings do not fit together.
    """
    try:
        with torch.device("meta"):
            module = make()
    except Exception as error:  # torch and transformers validate with exceptions of several kinds
        raise ValueError(f"config.json describes no such network: {' '.join(str(error).split())[:300]}") from error
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
