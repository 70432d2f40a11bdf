"""What a run did, kept for tests of caches."""

from __future__ import annotations

from lightning.pytorch import Callback


class Keep(Callback):
    """Keeps the losses and the batches of a run."""

    def __init__(self) -> None:
        self.train, self.batches, self.val, self.asked = [], [], {}, []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.train.append(float(outputs["loss"]))
        self.batches.append(batch)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        self.asked.append(batch)

    def on_validation_end(self, trainer, module) -> None:
        self.val = {name: float(value) for name, value in trainer.callback_metrics.items() if "val" in name}
