"""What transformers calls things in the release that is installed; 5.24 began to rename some of them."""

from __future__ import annotations

from inspect import signature

from torch import nn
from transformers import PreTrainedModel


def cache_argument(model: nn.Module) -> str:
    """The argument of a model's `forward` for keys and values: `cache`, in older releases `past_key_values`."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def recompute_layers(model: PreTrainedModel) -> None:
    """Have the layers computed again in the backward pass instead of keeping what is inside them."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
