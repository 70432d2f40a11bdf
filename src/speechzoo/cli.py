"""The command line: `speechzoo fit|validate|test|predict` is Lightning's CLI, the rest are plain functions."""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

import speechzoo

# Imported so that their classes have short names on the command line.
from speechzoo import adaptors, callbacks, data, encoders, llms, models, training, units  # noqa: F401
from speechzoo.evaluation.answer_scores import AnswerScores
from speechzoo.resolvers import register_resolvers
from speechzoo.spec import resolve
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
    "doctor": "speechzoo.doctor_command:main",
    "import": "speechzoo.interop.command:import_main",
    "export": "speechzoo.interop.command:export_main",
    "checkpoint": "speechzoo.hub:checkpoint_main",
    "verify": "speechzoo.interop.command:verify_main",
    "ask": "speechzoo.talk.ask:main",
    "demo": "speechzoo.talk.demo:main",
    "bench": "speechzoo.bench.command:main",
    "sweep": "speechzoo.sweeps.command:main",
    "compare": "speechzoo.evaluation.runs_report:main",
    "quickstart": "speechzoo.quickstart.command:main",
}

PARTS = (adaptors, callbacks, data, encoders, llms, models, training, units)
NONE = re.compile(r"^(--[^=]+=)?None$")
UNKNOWN = re.compile(r"[Oo]ption '([\w.]+)'|unrecognized arguments: --([\w.]+)|import path string: (\w+)")


class Parser(LightningArgumentParser):
    """Says what is wrong and the nearest spelling; jsonargparse says it after a page of all options."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *rest: Any, **options: Any
    ) -> Namespace:
        """As jsonargparse's, with `None` for `null`: so W&B's agent writes it, and so jsonargparse itself hands a
        `null` on to the parser of a nested part, which would read a text."""
        words = sys.argv[1:] if args is None else args
        return super().parse_args([NONE.sub(r"\1null", word) for word in words], *rest, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error and exit with 2."""
        if not self.exit_on_error:
            super().error(message, ex)
        # The last lines of a message may be the whole config.
        lines = [line if len(line) < 400 else f"{line[:400]} ..." for line in message.splitlines()]
        if found := UNKNOWN.search(message):
            wrong = next(name for name in found.groups() if name).split(".init_args")[0]
            parser = getattr(ex, "subcommand_parser", None) or self
            known = {action.dest for action in parser._actions}
            known |= {name for kind in PARTS for name in kind.__all__}
            for class_path in re.findall(r"class_path[ =]'([\w.]+)'", message):
                for kind in inspect.getmro(resolve(class_path)):  # models hand most arguments on to their base
                    known |= set(inspect.signature(kind.__init__).parameters)
            if near := get_close_matches(wrong, known, n=1):
                lines.append(f"did you mean {near[0]!r} instead of {wrong!r}?")
        self.exit(2, "speechzoo: " + "\n".join(lines) + "\n")


class SaveConfig(SaveConfigCallback):
    """Writes the resolved config into the run folder (`trainer.default_root_dir`) and gives it to every logger."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True, "save_to_log_dir": False})

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        dumped = self.parser.dump(self.config, skip_none=False, skip_validation=True)
        (folder / self.config_filename).write_text(dumped)
        for logger in trainer.loggers:
            logger.log_hyperparams(self.config.clone().as_dict())


class ZooCLI(LightningCLI):
    """Lightning's CLI for speech LLMs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str, default="run", help="name of the run and of its folder")
        parser.add_argument("--recipe", type=str, default="", help="free text: where the settings come from")
        parser.add_argument("--vars", type=dict, default={}, help="values that a recipe refers to as ${vars.x}")
        parser.add_lightning_class_args(callbacks.Doctor, "doctor")
        parser.add_lightning_class_args(callbacks.Preflight, "preflight")

    def before_fit(self) -> None:
        """A trial run leaves no checkpoint; Lightning writes `last.ckpt` at the end of a `fast_dev_run` too."""
        if self.trainer.fast_dev_run:
            for callback in self.trainer.checkpoint_callbacks:
                callback.save_last = False

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let a checkpoint's hyper-parameters replace YAML and command line in silence."""


def run(args: ArgsType = None, cli: type[ZooCLI] = ZooCLI) -> ZooCLI:
    """Run fit, validate, test or predict with command-line arguments; the CLI object holds model and trainer."""
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    register_resolvers()
    # Python users and `speechzoo quickstart` give arguments while sys.argv holds something else: both are meant.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    return cli(
        LightningModule,  # a SpeechLLM, or what trains a part alone, such as LatentVocoderTraining
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        parser_kwargs={"parser_mode": "omegaconf+", "allow_abbrev": False},
        parser_class=Parser,
        auto_configure_optimizers=False,
        save_config_callback=SaveConfig,
        save_config_kwargs={"config_filename": "config.yaml"},
        seed_everything_default=0,
        trainer_defaults={"callbacks": [callbacks.ExactResume(), AnswerScores()]},
        args=args,
    )


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
    return "\n".join([f"speechzoo {speechzoo.__version__}", "", *lines, "", "speechzoo COMMAND --help tells more"])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the command `speechzoo`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(speechzoo.__version__)
        return 0
    if argv[0] in FUNCTIONS:
        module, _, function = FUNCTIONS[argv[0]].partition(":")
        return getattr(import_module(module), function)(argv[1:])
    try:
        run(argv)
    except (ValueError, FileNotFoundError) as error:
        print(f"speechzoo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
