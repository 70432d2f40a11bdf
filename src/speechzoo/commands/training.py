"""`speechzoo fit|validate|test|predict`: Lightning's CLI for speech LLMs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Callback,
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
)
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

# Imported so that their classes have short names on the command line.
from speechzoo import adaptors, callbacks, data, encoders, llms, models, training, units  # noqa: F401
from speechzoo.callbacks.checkpoints import separate
from speechzoo.callbacks.of_trainer import callbacks_of, is_trial, set_callbacks
from speechzoo.callbacks.run_folder import RunFolder, checkpoint_of
from speechzoo.commands.arguments import Parser
from speechzoo.evaluation.answer_scores import AnswerScores
from speechzoo.names.resolvers import register_resolvers
from speechzoo.system.terminal import quiet
from speechzoo.text import ChatPrompt  # noqa: F401

LOGGING = (DeviceStatsMonitor, LearningRateMonitor)
LOST = re.compile(r"(\w+)='Unable to serialize instance ([^']*)'")  # what jsonargparse writes for it


class ZooCLI(LightningCLI):
    """Lightning's CLI for speech LLMs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        words = sys.argv[1:] if options.get("args") is None else options["args"]
        self._words = words if isinstance(words, list) else []
        super().__init__(*args, **options)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method of Lightning's
        """The command that is asked for, since the parsers of all four take their time; all where none is."""
        known = LightningCLI.subcommands()
        asked = next((word for word in self._words if word in known), None)
        return known if asked is None else {asked: known[asked]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="name of the run and of its folder")
        overwrite = "fit: delete an earlier run of that folder"
        parser.add_argument("--overwrite", type=bool, nargs="?", const=True, default=False, help=overwrite)
        parser.add_argument("--recipe", type=str, default="", help="free text: where the settings come from")
        parser.add_argument("--vars", type=dict, default={}, help="values that a recipe refers to as ${vars.x}")
        parser.add_lightning_class_args(callbacks.Doctor, "doctor")
        parser.add_lightning_class_args(callbacks.Preflight, "preflight")

    def before_instantiate_classes(self) -> None:
        """Refuse a default that got lost on its way through YAML, which would end a run when it is first used; and
        processes that are started with a copy of the run, which cannot be made.

        Raises:
            ValueError: naming it.
        """
        strategy = self.config[self.subcommand or "fit"]["trainer"]["strategy"]
        if "spawn" in str(strategy):
            raise ValueError("trainer.strategy: processes cannot be started by ddp_spawn here: give ddp, or fsdp2")
        if lost := LOST.search(str(self.config)):
            raise ValueError(f"no configuration can hold the default of {lost[1]}: give {lost[1]}={lost[2]} beside it")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Lightning's, without callbacks that have nothing to do where a command line switches off what they show or
        log by: they would end the run, and are in every recipe."""
        settings = {**self._get(self.config_init, "trainer"), **kwargs}
        idle: list[type[Callback]] = [] if settings["logger"] or settings["logger"] is None else [*LOGGING]
        idle += [ProgressBar] if settings["enable_progress_bar"] is False else []
        given = settings["callbacks"] or []
        kept = [one for one in (given if isinstance(given, list) else [given]) if not isinstance(one, tuple(idle))]
        return super().instantiate_trainer(**{**kwargs, "callbacks": kept})

    def before_fit(self) -> None:
        """Take the run folder. A trial run leaves no checkpoint; Lightning writes `last.ckpt` after it too."""
        trainer = self.trainer
        if is_trial(trainer):
            for callback in trainer.checkpoint_callbacks:
                cast(ModelCheckpoint, callback).save_last = False
            return
        set_callbacks(trainer, separate(callbacks_of(trainer)))
        settings = self.config_init["fit"]
        folder = next(callback for callback in callbacks_of(trainer) if isinstance(callback, RunFolder))
        found = checkpoint_of(settings["ckpt_path"], trainer, "fit")
        folder.take(trainer, None if found is None else Path(found), settings["overwrite"])

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Lightning's, with the checkpoint that is meant. Only `fit` makes a run that loggers should know of.

        What a trial run writes goes to a folder that ends with it, and takes the place of nothing of the real run.
        """
        settings = super()._prepare_subcommand_kwargs(subcommand)
        if not is_trial(self.trainer) or settings["ckpt_path"] is not None:
            settings["ckpt_path"] = checkpoint_of(settings["ckpt_path"], self.trainer, subcommand)
        if subcommand != "fit":
            self.trainer.loggers = []
        if is_trial(self.trainer):
            self._scratch = TemporaryDirectory(prefix="speechzoo-trial-")
            vars(self.trainer)["_default_root_dir"] = self._scratch.name
        return settings

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let a checkpoint's hyper-parameters replace YAML and command line in silence."""


def run(args: ArgsType = None, cli: type[ZooCLI] = ZooCLI) -> ZooCLI:
    """Run fit, validate, test or predict with command-line arguments; the CLI object holds model and trainer."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    register_resolvers()
    quiet()
    return cli(
        LightningModule,  # a SpeechLLM, or what trains a part alone, such as LatentVocoderTraining
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},
        parser_class=Parser,
        auto_configure_optimizers=False,
        save_config_callback=RunFolder,
        save_config_kwargs={"config_filename": "config.yaml"},
        seed_everything_default=0,
        trainer_defaults={"callbacks": [callbacks.ExactResume(), AnswerScores()]},
        args=args,
    )
