"""One folder holds one run: it is taken before training, and first written to when training is certain to start."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info

from speechzoo.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, check_monitors
from speechzoo.callbacks.doctor import Doctor
from speechzoo.callbacks.of_trainer import callbacks_of, set_callbacks
from speechzoo.callbacks.preflight import Preflight
from speechzoo.models.checkpoint import find
from speechzoo.system.files import write_atomically
from speechzoo.system.locks import claim
from speechzoo.system.ranks import rank

# What a run leaves; `--overwrite` deletes this and nothing else.
RESULTS = ("*.ckpt", "summary.json")
FILES = (*RESULTS, "config.yaml", "csv", "wandb", "samples", "predictions*.jsonl", "answers*.jsonl", ".*.ckpt.*")


class _SetAside(list[Logger]):
    """No loggers for now, of a run that has some: callbacks ask at their setup."""

    def __bool__(self) -> bool:
        return True


class RunFolder(SaveConfigCallback):
    """Guards `trainer.default_root_dir` and writes `config.yaml` into it. Part of every `speechzoo fit`.

    A folder that holds a run is refused, unless that run is continued (`--ckpt_path last`) or given up (`--overwrite`).
    While it trains, a process holds the folder's lock. Loggers are set aside until the first step is about to be made,
    so that a run which ends before (wrong data, an error the doctor found) leaves nothing there. A continued run goes
    on in its own W&B run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True, "save_to_log_dir": False})
        self._folder = Path()
        self._lock: Any = None
        self._clear = self._is_new = self._continued = self._began = False
        self._loggers: list[Logger] = []
        self._wandb_id: str | None = None

    def take(self, trainer: Trainer, checkpoint: Path | None, overwrite: bool) -> None:
        """Make sure that the folder is free for this run, before any weights are loaded.

        Args:
            checkpoint: what the run goes on from; its own if it lies in the folder.
            overwrite: delete an earlier run there as soon as this one starts.

        Raises:
            ValueError: if the folder holds another run, or somebody's own `config.yaml`; or if another process trains
                there.
        """
        self._folder = folder = Path(trainer.default_root_dir)
        written = folder / self.config_filename
        if written.is_file() and not written.read_bytes().startswith(b"# lightning"):  # as all do that a run wrote
            raise ValueError(
                f"{written}: no run wrote this file, which the run would replace by all its settings: give your file "
                "another name, or the run another --name (or trainer.default_root_dir)"
            )
        kinds = (LastCheckpoint, BestCheckpoint)
        elsewhere = [c.file for c in trainer.checkpoint_callbacks if isinstance(c, kinds) and c.dirpath is not None]
        self._continued = self._began = False
        if checkpoint is not None:
            own, at = {file.resolve().parent for file in elsewhere}, checkpoint.resolve()
            self._continued = folder.resolve() in at.parents or at.parent in own
        if overwrite and checkpoint is not None:
            raise ValueError("--overwrite begins anew and --ckpt_path continues: give one of them")
        found = sorted(file.name for pattern in RESULTS for file in folder.glob(pattern))
        found += [str(file) for file in elsewhere if file.parent != folder and file.exists()]
        if found and not self._continued and not overwrite:
            raise ValueError(
                f"{folder} holds a run ({', '.join(found[:3])}): continue it with --ckpt_path last, give this one "
                "another --name (or trainer.default_root_dir), or delete the old one with --overwrite"
            )
        self._clear = overwrite
        if rank() == 0:
            self._is_new = not folder.exists()
            self._lock = claim(folder, "speechzoo fit")
        # The examinations first: they decide whether the run starts, and their time is not the stage's.
        callbacks = callbacks_of(trainer)
        first: list[Callback] = [c for c in callbacks if isinstance(c, (Doctor, Preflight))]
        first.append(self)
        set_callbacks(trainer, first + [c for c in callbacks if c not in first])
        self._loggers, trainer.loggers = trainer.loggers, _SetAside() if trainer.loggers else []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet; Lightning's own would write the configuration here."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The run starts: clear, write the configuration, begin to log.

        Raises:
            ValueError: see `check_monitors`.
        """
        check_monitors(trainer, pl_module)
        self._began = True
        if trainer.is_global_zero:
            for file in (file for pattern in FILES if self._clear for file in self._folder.glob(pattern)):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            self.save_config(trainer, pl_module, "fit")
        trainer.strategy.barrier("run folder")
        self._wandb_id = self._wandb_id or uuid4().hex[:8]
        trainer.loggers, self._loggers = self._loggers, []
        for logger in trainer.loggers:
            given = isinstance(logger, WandbLogger) and (logger._id or os.environ.get("WANDB_RUN_ID"))
            if isinstance(logger, WandbLogger) and not given and trainer.is_global_zero:
                logger._id = logger._wandb_init["id"] = self._wandb_id
            logger.log_hyperparams(self.config.clone().as_dict())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave no folder of a run that did no step.

        Raises:
            ValueError: if there was none to do, unless this is a finished run, continued.
        """
        if not self._began and not self._continued:
            raise ValueError(
                "nothing was trained: trainer.max_steps, max_epochs or limit_train_batches end this run at step "
                f"{trainer.global_step}, where it starts. To train a finished run further give more of them; to begin "
                "a new run with its weights give it as model.init_from instead of --ckpt_path"
            )

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write `config.yaml`, as of the start of the run: used again, it neither continues nor deletes anything."""
        config = self.config.clone()
        config["ckpt_path"], config["overwrite"] = None, False
        dumped = self.parser.dump(config, skip_none=False, skip_validation=True)
        write_atomically(self._folder / self.config_filename, dumped)

    def state_dict(self) -> dict[str, Any]:
        return {"folder": str(self._folder.resolve()), "wandb_id": self._wandb_id}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run that begins from a checkpoint of another folder is another run in W&B too."""
        if state_dict["folder"] == str(self._folder.resolve()):
            self._wandb_id = state_dict["wandb_id"]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            if self._is_new and [file.name for file in self._folder.iterdir()] == [".lock"]:
                shutil.rmtree(self._folder, ignore_errors=True)  # the run did not start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")


def checkpoint_of(given: str | None, trainer: Trainer, command: str) -> Path | str | None:
    """The checkpoint that `--ckpt_path` means: a file, a run folder, `last` or `best` of this run.

    `fit` begins anew without one, and where `last` is not there yet. The other commands take the run's `last.ckpt`
    without one; `untrained` asks for the weights as they are built.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if a command that needs trained weights finds none.
    """
    folder = Path(trainer.default_root_dir)
    if given in (None, "last", "best"):
        name = f"{given or 'last'}.ckpt"
        dirs = [found for c in trainer.checkpoint_callbacks if (found := getattr(c, "dirpath", None))]
        places = [Path(place) / name for place in (folder, *dirs)]
        if command == "fit" and given is None:
            return None
        for place in places:
            with suppress(FileNotFoundError):
                found = find(place)
                rank_zero_info(f"weights of {found}")
                return found
        if command == "fit" and given == "last":
            rank_zero_info(f"{places[0]} is not there yet: a new run")
            return None
        raise FileNotFoundError(
            f"{places[0]}: no such checkpoint. Give the trained weights with --ckpt_path (a .ckpt file or a run "
            "folder), or --ckpt_path=untrained for the model as it is built"
        )
    if given == "untrained" and command != "fit":
        return None
    return given if "://" in str(given) or str(given) in ("hpc", "registry") else find(str(given))
