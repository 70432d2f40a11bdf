"""Trainers for the tests of callbacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A quiet CPU trainer whose run folder is `tmp_path`; keyword arguments replace its settings."""

    def make(**kwargs: Any) -> Trainer:
        settings = {
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "max_epochs": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        }
        return Trainer(default_root_dir=tmp_path, **(settings | kwargs))

    return make
