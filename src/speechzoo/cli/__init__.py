"""The command line: what commands there are, and which function is called for each.

Nothing heavy is imported before it is known what was asked for: help and mistyped commands answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

import speechzoo
from speechzoo.system.terminal import run_command

COMMANDS = {
    "fit": "train a model: speechzoo fit --config recipes/... [--key value]",
    "doctor": "look at model, data and settings before training: speechzoo doctor --config recipes/...",
    "validate": "losses on the validation data",
    "test": "losses on the test data, and scores of answers to its questions",
    "predict": "answer the questions of a manifest",
    "data": "make training data: speechzoo data asr|instruct|released|units|... FOLDER ...",
    "import": "bring a released LLaSM or LLaMA-Omni checkpoint in",
    "export": "write an imported model in its released layout",
    "list": "the models of the zoo",
    "show": "what is known of a model of the zoo: speechzoo show NAME",
    "pull": "fetch the parts of a model and check it: speechzoo pull NAME",
    "publish": "put a trained model into the zoo, with its card: speechzoo publish RUN NAME",
    "checkpoint": "write a self-contained model from a run: speechzoo checkpoint expand RUN OUT",
    "verify": "compare our numbers with the official code's, held in a folder",
    "ask": "put a spoken or written question to a model, hear and read its answer",
    "demo": "a page in the browser: talk to one or several models",
    "bench": "measure streaming, latency, data loading or training on this machine",
    "sweep": "run a W&B sweep file on this machine, offline",
    "evaluate": "put a test suite to models: speechzoo evaluate MODEL --suite NAME|FILE",
    "compare": "compare finished runs: tables, figures, a report",
    "quickstart": "train and compare both systems on real speech, in minutes on two CPU cores",
}

# Functions of their arguments, imported when asked for; the rest is Lightning's, which reads the command's name too.
FUNCTIONS = {
    "doctor": "speechzoo.cli.doctor:main",
    "data": "speechzoo.cli.data:main",
    "import": "speechzoo.cli.released:import_main",
    "export": "speechzoo.cli.released:export_main",
    "list": "speechzoo.cli.zoo:list_main",
    "show": "speechzoo.cli.zoo:show_main",
    "pull": "speechzoo.cli.zoo:pull_main",
    "publish": "speechzoo.cli.zoo:publish_main",
    "checkpoint": "speechzoo.cli.checkpoint:main",
    "verify": "speechzoo.cli.verify:verify_main",
    "ask": "speechzoo.cli.ask:main",
    "demo": "speechzoo.cli.demo:main",
    "bench": "speechzoo.cli.bench:main",
    "sweep": "speechzoo.cli.sweep:main",
    "evaluate": "speechzoo.cli.evaluate:main",
    "compare": "speechzoo.cli.compare:main",
    "quickstart": "speechzoo.cli.quickstart:main",
}


def usage() -> str:
    """The list of commands."""
    lines = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
    more = "speechzoo COMMAND --help tells more, --debug where an error came from"
    return "\n".join([f"speechzoo {speechzoo.__version__}", "", *lines, "", more])


TRAINING = """speechzoo {name} --config FILE [--config FILE ...] [--key value ...]

{what}. Later configs and options replace what earlier ones say; lists take --key+=value.

  --config FILE            a recipe: recipes/quickstart, recipes/llasm, recipes/llama_omni, or your own
  --ckpt_path PATH         last, best, a .ckpt file, a run folder or a name of `speechzoo list`
  --overwrite              fit: delete an earlier run of that folder
  --name, --vars.KEY       name of the run; values that the recipe refers to as ${{vars.KEY}}
  --seed_everything N
  --model.init_args.KEY    as --model.init_args.optimizer.init_args.lr=1e-4; --model.help=LLaMAOmni, after a
                           --config, lists them
  --data.init_args.KEY     the same: --data.help=SpeechDataModule
  --trainer.KEY            of Lightning's Trainer
  --doctor.KEY             what is looked at before the first step
  --print_config           the whole configuration, as YAML

speechzoo {name} --help all lists every option (it imports torch and Lightning first)."""


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
        command: Callable[[list[str]], int] = getattr(import_module(module), function)
        return command(argv[1:])
    if argv[0] not in COMMANDS and not argv[0].startswith("-"):
        near = get_close_matches(argv[0], COMMANDS, n=1)
        meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"speechzoo: there is no command {argv[0]!r}; {meant}", file=sys.stderr)
        return 2
    if argv[0] in COMMANDS and argv[1:] in (["--help"], ["-h"]):
        print(TRAINING.format(name=argv[0], what=COMMANDS[argv[0]].partition(":")[0].capitalize()))
        return 0
    from speechzoo.commands.configs import wrong_config

    if (problem := wrong_config(argv)) is not None:
        print(f"speechzoo: {problem}", file=sys.stderr)
        return 2
    from speechzoo.commands.training import run

    run([*argv[:1], "--help"] if argv[1:] == ["--help", "all"] else argv)
    return 0
