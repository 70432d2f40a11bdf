"""LoRA through peft."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

DEFAULTS: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def add_lora(lm: PreTrainedModel, settings: dict[str, Any]) -> PeftModel:
    """The model with LoRA layers, the only ones left trainable, kept in float32 whatever the base's dtype.

    Raises:
        ValueError: if peft does not know a setting, or finds none of the target modules; its message names them.
    """
    try:
        config = LoraConfig(**{**DEFAULTS, **settings})
    except TypeError as error:
        raise ValueError(f"llm.lora: {error} (settings of peft.LoraConfig)") from error
    with warnings.catch_warnings():  # peft 0.21 asks by a name that transformers 5.24 calls old
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        model = get_peft_model(lm, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model
