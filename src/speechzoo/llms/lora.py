"""LoRA through peft: the settings that a run can be saved with exactly, and the model with LoRA merged."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

DEFAULTS: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}

EXACT = frozenset(
    "r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform layers_pattern rank_pattern "
    "alpha_pattern use_rslora use_dora lora_bias bias fan_in_fan_out modules_to_save trainable_token_indices "
    "init_lora_weights task_type".split()
)
"""Settings of `peft.LoraConfig` with which a run comes back as it was (tests/interop/test_lora_forms.py)."""

INITS = (True, False, "gaussian", "orthogonal")
"""Initialisations that leave the base weights as they are and depend on no data."""


def add_lora(lm: PreTrainedModel, settings: dict[str, Any]) -> PeftModel:
    """The model with LoRA layers, the only ones left trainable, kept in float32 whatever the base's dtype.

    Checkpoints hold what was trained and stand on the base weights, so settings that put other numbers into the base,
    or compute in other ways than through its layers, are refused.

    Raises:
        ValueError: if a setting is unknown or one that a run could not be saved with; if a layer it names is none of
            the LLM's. The message names them.
    """
    _check(settings)
    names = set(lm.state_dict())
    try:
        config = LoraConfig(**{**DEFAULTS, **copy.deepcopy(settings)})  # peft writes into the lists it is given
    except (TypeError, ValueError) as error:
        raise ValueError(f"llm.lora: {error} (settings of peft.LoraConfig)") from error
    with warnings.catch_warnings():  # peft 0.21 asks by a name that transformers 5.24 calls old
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        # Tied tables under LoRA: `merged` unties them, and saving keeps LoRA's weights apart.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        try:
            model = get_peft_model(lm, config)
        except (TypeError, ValueError, IndexError, NotImplementedError) as error:  # of layers it cannot wrap
            raise ValueError(f"llm.lora: {error}") from error
    _refuse_unused(model, settings, names)
    held = {base for name in model.get_base_model().state_dict() if (base := base_name(name)) is not None}
    if held != names:
        raise ValueError(
            f"llm.lora: with these settings a run could not be saved exactly: {sorted(held ^ names)[:3]} would be "
            "lost or doubled (do not name a module both as a target and, or a part of it, in modules_to_save)"
        )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    return model


def _check(settings: dict[str, Any]) -> None:
    known = LoraConfig.__dataclass_fields__
    if refused := sorted(name for name in settings if name in known and name not in EXACT):
        raise ValueError(
            f"llm.lora: a run with {', '.join(refused)} could not be saved and loaded exactly: leave it out "
            f"(accepted: {', '.join(sorted(EXACT))})"
        )
    init = settings.get("init_lora_weights", True)
    if not any(init is one or (isinstance(init, str) and init == one) for one in INITS):
        raise ValueError(
            f"llm.lora: init_lora_weights={init} could not be loaded again: it changes the frozen weights, or computes "
            "LoRA's from them or from data, anew at each load; true, false, gaussian and orthogonal do not"
        )
    if settings.get("task_type", "CAUSAL_LM") != "CAUSAL_LM":
        raise ValueError(f"llm.lora: task_type is CAUSAL_LM here, not {settings['task_type']}")


def _refuse_unused(model: PeftModel, settings: dict[str, Any], weights: set[str]) -> None:
    """peft passes over a misspelt layer in silence as long as another one is found."""
    saved = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    for setting, found in (("target_modules", model.targeted_module_names), ("modules_to_save", saved)):
        asked = settings.get(setting) or []
        for wanted in [] if isinstance(asked, str) else sorted(asked):
            if not any(f".{name}".endswith(f".{wanted}") for name in found):
                known = sorted({name.split(".")[-2] for name in weights if name.endswith(".weight")})
                raise ValueError(f"llm.lora.{setting}: no layer is called {wanted!r} (there are {', '.join(known)})")
    layers = {name.rpartition(".")[0] for name in weights}
    excluded = settings.get("exclude_modules") or []
    for wanted in [excluded] if isinstance(excluded, str) else sorted(excluded):
        pattern = wanted if isinstance(excluded, str) else rf"(.*\.)?{re.escape(wanted)}"
        if not any(re.fullmatch(pattern, name) for name in layers):
            raise ValueError(f"llm.lora.exclude_modules: no layer is called {wanted!r}")
    for setting in ("rank_pattern", "alpha_pattern"):
        for pattern in settings.get(setting) or {}:
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in model.targeted_module_names):
                raise ValueError(f"llm.lora.{setting}: {pattern!r} is no layer with LoRA")
    if (asked := settings.get("layers_to_transform")) is not None:
        numbers = {int(found[1]) for name in model.targeted_module_names if (found := re.search(r"\.(\d+)\.", name))}
        if missing := sorted(({asked} if isinstance(asked, int) else set(asked)) - numbers):
            raise ValueError(f"llm.lora.layers_to_transform: no layer {missing[0]} with these modules")


def base_name(name: str) -> str | None:
    """What a tensor of a model with LoRA is called in the model without; None for one that LoRA brought.

    `q_proj.base_layer.weight` -> `q_proj.weight`, `q_proj.lora_A.default.weight` -> None
    """
    parts = name.split(".")
    if any(p == "modules_to_save" or p.startswith(("lora_", "trainable_tokens_")) for p in parts):
        return None
    return ".".join(part for part in parts if part not in ("base_layer", "original_module", "token_adapter"))


@torch.no_grad()
def merged(model: PeftModel) -> PreTrainedModel:
    """A copy without LoRA that computes the same, in float32: a narrower type would round LoRA's part away.

    Tables that LoRA made different are tied no more, and the copy's config says so.

    Raises:
        ValueError: if LoRA's weights have no place in the model's own (`lora_bias` on layers without bias).
    """
    alone = copy.deepcopy(model).float()
    tied = getattr(alone.get_base_model().config, "tie_word_embeddings", False)
    _untie(alone)  # else what is added to one table is added to the other too
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
            plain = alone.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"LoRA cannot be merged into the LLM: {reason}: leave out the merging") from error
    ends = [
        layer.weight for layer in (plain.get_input_embeddings(), plain.get_output_embeddings()) if layer is not None
    ]
    if tied and not (len(ends) == 2 and torch.equal(*ends)):
        plain.config.tie_word_embeddings = False
    return plain.eval()


def _untie(module: nn.Module) -> None:
    """Give each layer parameters of its own."""
    seen: set[int] = set()
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None and id(parameter) in seen:
                layer._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            elif parameter is not None:
                seen.add(id(parameter))
