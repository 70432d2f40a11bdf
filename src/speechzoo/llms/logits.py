"""What some LLMs make of the numbers that their vocabulary head gives: logits that are scaled, or capped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def finish(logits: Tensor, config: Any) -> Tensor:
    """The logits of an LLM's own `forward`, from those of its vocabulary head. Shape: `[..., V] -> [..., V]`.

    Args:
        config: of transformers.
    """
    scale = getattr(config, "logits_scaling", None) or 1.0  # Granite's, a divisor; HyperCLOVA X multiplies by it
    factor = scale if config.model_type == "hyperclovax" else 1.0 / scale
    for name in ("logit_scale", "lm_head_multiplier"):  # Cohere's, Falcon-H1's
        factor *= getattr(config, name, None) or 1.0
    logits = logits if factor == 1.0 else logits * factor
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)  # Gemma's
    return torch.tanh(logits / cap) * cap if cap else logits
