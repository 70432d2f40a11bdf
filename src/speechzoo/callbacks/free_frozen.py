"""Memory of a frozen LLM, given back while its cached states stand in for it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info


class FreeFrozen(Callback):
    """Frees encoder, adaptor and LLM when training starts, for runs with `data.state_cache`.

    They are loaded (their weights are part of what the cache is known by) and freed once the states are there. The
    model then learns and validates, but cannot answer: leave `SampleTable` out. What was trained is saved as ever.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free them.

        Raises:
            ValueError: if the data comes without cached states, or the weights are sharded.
        """
        if isinstance(trainer.strategy, ModelParallelStrategy):
            raise ValueError("FreeFrozen is for whole models (ddp, one device): leave it out under fsdp2, or use ddp")
        if getattr(getattr(trainer, "datamodule", None), "state_cache", None) is None:
            raise ValueError("FreeFrozen needs data.state_cache: without cached states the LLM is needed in each step")
        module: Any = pl_module
        rank_zero_info(f"freed {module.free_frozen() / 1e9:.2f} GB of frozen weights")
