"""The options that every command that asks a model has in common. Nothing heavy is imported for them."""

from __future__ import annotations

import argparse
from typing import Any

MODEL = (
    "name of `speechzoo list`, run folder, .ckpt, folder of the saved form or its hub name; cascade:RUN; or a YAML "
    "file that describes a cascade (recognizer, llm, prompt, voice)"
)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What every command that asks a model has in common."""
    told = "vocoder for the model's units, a folder or a name; default: that of a published model or a saved form"
    parser.add_argument("--vocoder", metavar="DIR", help=told)
    parser.add_argument("--chunk-units", type=int, metavar="N", help="units the vocoder waits for (default 40)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the model's)")
    parser.add_argument("--temperature", type=float, help="draw tokens at this temperature (default: the likeliest)")
    parser.add_argument("--top-p", type=float, help="draw from the likeliest tokens of so much probability")
    parser.add_argument("--seed", type=int, help="of the draws")
    parser.add_argument("--trust-code", action="store_true", help="import other people's classes that the model names")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `Session.ask` that were given."""
    names = ("chunk_units", "max_new_tokens", "temperature", "top_p", "seed")
    return {name: value for name in names if (value := getattr(args, name)) is not None}
