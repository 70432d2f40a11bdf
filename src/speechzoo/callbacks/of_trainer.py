"""What Lightning's Trainer has, and does not declare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, Trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Its callbacks, in their order."""
    callbacks: list[Callback] = vars(trainer)["callbacks"]
    return callbacks


def set_callbacks(trainer: Trainer, callbacks: Iterable[Callback]) -> None:
    """Give it other callbacks."""
    values: dict[str, Any] = vars(trainer)
    values["callbacks"] = list(callbacks)


def is_trial(trainer: Trainer) -> bool:
    """Whether it is a `fast_dev_run`, which leaves nothing behind."""
    return bool(vars(trainer).get("fast_dev_run"))
