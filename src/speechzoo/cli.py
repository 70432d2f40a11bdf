"""The command line: `speechzoo fit|validate|test|predict` is Lightning's CLI, the rest are plain functions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import speechzoo

# Imported so that their classes have short names on the command line.
from speechzoo import adaptors, callbacks, data, encoders, llms, models, training, units  # noqa: F401
from speechzoo.callbacks.checkpoints import separate
from speechzoo.callbacks.of_trainer import callbacks_of, is_trial, set_callbacks
from speechzoo.callbacks.run_folder import RunFolder, checkpoint_of
from speechzoo.commands.arguments import Parser
from speechzoo.commands.resolvers import register_resolvers
from speechzoo.evaluation.answer_scores import AnswerScores
from speechzoo.system.terminal import quiet, run_command
from speechzoo.text import ChatPrompt  # noqa: F401

COMMANDS = {
    "fit": "train a model: speechzoo fit --config recipes/... [--key value]",
    "doctor": "look at model, data and settings before training: speechzoo doctor --config recipes/...",
    "validate": "losses on the validation data",
    "test": "losses on the test data",
    "predict": "answer the questions of a manifest",
    "import": "bring a released LLaSM or LLaMA-Omni checkpoint in",
    "export": "write an imported model in its released layout",
    "checkpoint": "write a self-contained model from a run: speechzoo checkpoint expand RUN OUT",
    "verify": "compare our numbers with the official code's, held in a folder",
    "ask": "put a spoken or written question to a model, hear and read its answer",
    "demo": "a page in the browser: talk to one or several models",
    "bench": "measure streaming, latency, data loading or training on this machine",
    "sweep": "run a W&B sweep file on this machine, offline",
    "compare": "compare finished runs: tables, figures, a report",
    "quickstart": "train and compare both systems on real speech, 15 to 20 minutes on two CPU cores with AVX-512",
}

# Commands that are plain functions of their arguments; imported when asked for. The rest is Lightning's.
FUNCTIONS = {
    "doctor": "speechzoo.commands.doctor:main",
    "import": "speechzoo.interop.command:import_main",
    "export": "speechzoo.interop.command:export_main",
    "checkpoint": "speechzoo.interop.hub:checkpoint_main",
    "verify": "speechzoo.fidelity.command:verify_main",
    "ask": "speechzoo.talk.ask:main",
    "demo": "speechzoo.talk.demo:main",
    "bench": "speechzoo.bench.command:main",
    "sweep": "speechzoo.sweeps.command:main",
    "compare": "speechzoo.evaluation.runs_report:main",
    "quickstart": "speechzoo.quickstart.command:main",
}


class ZooCLI(LightningCLI):
    """Lightning's CLI for speech LLMs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="name of the run and of its folder")
        overwrite = "fit: delete an earlier run of that folder"
        parser.add_argument("--overwrite", type=bool, nargs="?", const=True, default=False, help=overwrite)
        parser.add_argument("--recipe", type=str, default="", help="free text: where the settings come from")
        parser.add_argument("--vars", type=dict, default={}, help="values that a recipe refers to as ${vars.x}")
        parser.add_lightning_class_args(callbacks.Doctor, "doctor")
        parser.add_lightning_class_args(callbacks.Preflight, "preflight")

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
        """Lightning's, with the checkpoint that is meant. Only `fit` makes a run that loggers should know of."""
        settings = super()._prepare_subcommand_kwargs(subcommand)
        if not is_trial(self.trainer) or settings["ckpt_path"] is not None:
            settings["ckpt_path"] = checkpoint_of(settings["ckpt_path"], self.trainer, subcommand)
        if subcommand != "fit":
            self.trainer.loggers = []
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


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
    more = "speechzoo COMMAND --help tells more, --debug where an error came from"
    return "\n".join([f"speechzoo {speechzoo.__version__}", "", *lines, "", more])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command `speechzoo`; returns the exit code."""
    # Last, so that a user's own classes are found and nothing of the same name is hidden by them.
    if str(here := Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.append(str(here))
    return run_command(_dispatch, list(sys.argv[1:] if argv is None else argv))


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(speechzoo.__version__)
        return 0
    if argv[0] in FUNCTIONS:
        module, _, function = FUNCTIONS[argv[0]].partition(":")
        return getattr(import_module(module), function)(argv[1:])
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        near = get_close_matches(argv[0], COMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"speechzoo: there is no command {argv[0]!r}; {meant}", file=sys.stderr)
        return 2
    run(argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
