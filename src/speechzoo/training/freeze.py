"""Which parameters learn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn


def freeze(module: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Turn off gradients of the parameters whose name a pattern matches (`re.search`); returns their names.

    Raises:
        ValueError: if a pattern matches nothing: a misspelt freeze would train the part in silence; or if it is no
            regular expression.
    """
    names = dict(module.named_parameters())
    frozen = []
    for pattern in patterns:
        regex = _regex(pattern, "freeze")
        hits = [name for name in names if regex.search(name)]
        if not hits:
            parts = sorted({name.split(".")[0] for name in names})
            raise ValueError(f"freeze pattern {pattern!r} matches no parameter (parts: {', '.join(parts)})")
        for name in hits:
            names[name].requires_grad_(False)
        frozen += hits
    return frozen


def is_frozen(module: nn.Module) -> bool:
    """True if the module has no trainable parameter."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def parameter_groups(module: nn.Module, lr_scale: dict[str, float], lr: float) -> list[dict[str, Any]]:
    """Optimizer groups: one per pattern of `lr_scale` (learning rate times its factor), one for the rest.

    Frozen parameters are included: without a gradient they get no state and cost no memory, and the numbering of the
    optimizer's state then does not depend on what is frozen.

    Raises:
        ValueError: if a pattern matches nothing, or is no regular expression.
    """
    groups: list[dict[str, Any]] = [{"params": [], "lr": lr * factor} for factor in lr_scale.values()]
    rest: list[nn.Parameter] = []
    patterns = [_regex(pattern, "lr_scale") for pattern in lr_scale]
    for name, parameter in module.named_parameters():
        index = next((i for i, pattern in enumerate(patterns) if pattern.search(name)), None)
        (rest if index is None else groups[index]["params"]).append(parameter)
    for pattern, group in zip(lr_scale, groups, strict=True):
        if not group["params"]:
            raise ValueError(f"lr_scale pattern {pattern!r} matches no parameter")
    return [*groups, {"params": rest, "lr": lr}] if rest else groups


def _regex(pattern: str, setting: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{setting} pattern {pattern!r} is no regular expression ({error})") from error
