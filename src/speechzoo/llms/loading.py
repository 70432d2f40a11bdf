"""A causal LM of transformers, read or only built."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from speechzoo.names.hugging_face import hub_options
from speechzoo.names.renamed import cache_argument
from speechzoo.names.shapes import lm_config, unread


def pretrained_lm(model: str, dtype: torch.dtype, attn_implementation: str | None) -> PreTrainedModel:
    """A pretrained LM; inside `names.shapes.without_reading` one of its configuration, with random numbers.

    Raises:
        ValueError: if it takes no cache of transformers: it would learn, and fail at its first answer; if more than one
            layer stands between its states and logits, as in BERT's kin: its loss would be another; or if its decoder
            and its head are one.
    """
    # None would ask on the terminal whether to run a model's own code, and do so after a y.
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if unread():
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(lm_config(model), **options)
    else:
        lm = AutoModelForCausalLM.from_pretrained(model, **hub_options(model), **options)
    takes_cache: Any = lm._supports_default_dynamic_cache  # for mypy a tensor, as all that a module may hold
    if not takes_cache() or cache_argument(lm.base_model) not in signature(lm.base_model.forward).parameters:
        raise ValueError(
            f"{model}: a {type(lm).__name__} has a cache of its own kind (or none), by which no answer can be made "
            "here: take another LLM"
        )
    if lm.base_model is lm:  # as of Llama 4's text model
        raise ValueError(f"{model}: a {type(lm).__name__} has no decoder apart from its head: take another LLM")
    known = {id(weight) for part in (lm.base_model, lm.get_output_embeddings()) for weight in part.parameters()}
    if further := [name for name, weight in lm.named_parameters() if id(weight) not in known]:
        raise ValueError(
            f"{model}: a {type(lm).__name__} makes logits by more than one layer ({further[0]}), which is not done "
            "here: take another LLM"
        )
    return lm
