"""When a run is saved: `last.ckpt` is where training stands and ends, `best.ckpt` the step that validation liked most.

Lightning's `ModelCheckpoint` does both at once. With a `monitor` and a save every so many steps it writes nothing
before the first validation, names a step's checkpoint with the score of an earlier one, and leaves what came after the
last multiple out. So there are two callbacks here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from speechzoo.callbacks.of_trainer import callbacks_of
from speechzoo.models.learning import Learning
from speechzoo.training.checkpoint_file import map_file
from speechzoo.training.sharded_folder import is_sharded_folder, read_plain


class LastCheckpoint(ModelCheckpoint):
    """Writes `last.ckpt` every so often, and always when training ends, whatever ended it.

    Args:
        every_n_train_steps: optimizer steps between saves; without any interval it saves at the end of each epoch.
        every_n_epochs: epochs between saves.
        train_time_interval: time between saves.
        dirpath: folder; default: the run folder, `trainer.default_root_dir`.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        dirpath: str | None = None,
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            save_last=True,
            save_top_k=0,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            enable_version_counter=False,  # the one `last.ckpt` of a run
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = self.dirpath or trainer.default_root_dir
        super().setup(trainer, pl_module, stage)

    @property
    def file(self) -> Path:
        """What it writes, once its folder is known."""
        return Path(str(self.dirpath)) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}"

    def save(self, trainer: Trainer) -> None:
        """Write `last.ckpt`, unless it holds this step already; a collective call."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        # An end in the middle of an epoch is saved here, as Lightning counts the epoch as done right after.
        loop = trainer.fit_loop.epoch_loop
        if _ends(trainer) and not loop.batch_progress.is_last_batch and not loop._should_accumulate():
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if this validation is what ends training (early stopping)."""
        if trainer.should_stop:
            self.save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        due = self._every_n_epochs >= 1 and done % self._every_n_epochs == 0
        if due or _ends(trainer) or done == trainer.max_epochs:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.save(trainer)


def _ends(trainer: Trainer) -> bool:
    """Whether this step is the last, as far as limits of steps and other callbacks say."""
    return 0 <= trainer.max_steps <= trainer.global_step or trainer.should_stop


class BestCheckpoint(ModelCheckpoint):
    """Writes `best.ckpt` at each validation whose score is better than all before, with that score.

    Args:
        monitor: name of the score.
        mode: "min" or "max".
        dirpath: folder; default: the run folder, `trainer.default_root_dir`.
        filename: of the checkpoint, without its ending.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: str = "min", dirpath: str | None = None, filename: str = "best"
    ) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            every_n_epochs=1,
            save_on_train_epoch_end=False,  # at validations
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = self.dirpath or trainer.default_root_dir
        super().setup(trainer, pl_module, stage)

    @property
    def file(self) -> Path:
        """What it writes, once its folder is known."""
        return Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the score to beat from the file itself.

        What a run goes on from may have been written before the validation of the same step, and not know of it.
        """
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 or not self.file.exists():
            return
        saved = read_plain(self.file) if is_sharded_folder(self.file) else map_file(self.file)
        if (own := saved["callbacks"].get(self.state_key)) is not None:
            self.load_state_dict({**own, "dirpath": self.dirpath})


def check_monitors(trainer: Trainer, module: LightningModule) -> None:
    """Refuse a score that validation will not have: Lightning would end the run at its first validation for it.

    Nothing is said of models and callbacks of somebody else's, which may log more.

    Raises:
        ValueError: naming the callback, and the scores there are.
    """
    callbacks = callbacks_of(trainer)
    strange = {type(one).__module__.partition(".")[0] for one in (module, *callbacks)} - {"speechzoo", "lightning"}
    if strange or not isinstance(module, Learning):
        return
    for callback in callbacks:
        monitor, there = getattr(callback, "monitor", None), module.validation_scores()
        if isinstance(monitor, str) and monitor.startswith("val") and monitor not in there:
            raise ValueError(
                f"{type(callback).__name__}.monitor: validation has no score {monitor!r}, it has {', '.join(there)}"
            )


def separate(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks, with a `ModelCheckpoint` that does the work of both split into `LastCheckpoint` and the best one.

    So older configurations, and those written for Lightning alone, lose neither the end of a run nor its best step.
    """
    result: list[Callback] = []
    for callback in callbacks:
        if type(callback) is not ModelCheckpoint:
            result.append(callback)
            continue
        every: dict[str, Any] = {
            "every_n_train_steps": callback._every_n_train_steps or None,
            "every_n_epochs": callback._every_n_epochs or None,
            "train_time_interval": callback._train_time_interval,
        }
        folder = None if callback.dirpath is None else str(callback.dirpath)
        if callback.monitor and not callback.monitor.startswith("train") and not callback._every_n_epochs:
            # A score of validation, saved when it is new.
            callback._every_n_train_steps, callback._train_time_interval, callback._every_n_epochs = 0, None, 1
            callback._save_on_train_epoch_end = False
            rank_zero_info(f"ModelCheckpoint(monitor={callback.monitor!r}) saves at validations")
        if callback.save_last:
            result.append(LastCheckpoint(dirpath=folder, **every))
            callback.save_last = False
        if callback.save_top_k != 0:
            result.append(callback)
    return result
