"""`speechzoo quickstart`: arguments of the main job."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from speechzoo.quickstart.scale import SCALES

NEEDS = {
    "gguf": "gguf",
    "inflect": "inflect",
    "onnxruntime": "onnxruntime",
    "sklearn": "scikit-learn",
    "matplotlib": "matplotlib",
}


def main(argv: Sequence[str]) -> int:
    """Parse arguments and run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="speechzoo quickstart",
        description="Train LLaSM and LLaMA-Omni on real speech with small real parts, and compare them with a cascade.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, default=Path("checkpoints/quickstart"), help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    told = "zoo: hours, as the published models were trained; smoke: three steps a stage, to see that everything runs"
    parser.add_argument("--scale", choices=SCALES, default="default", help=told)
    parser.add_argument("--smoke", dest="scale", action="store_const", const="smoke", help="the same as --scale=smoke")
    told = "train adaptors, units and vocoder too, instead of taking the zoo's"
    parser.add_argument("--from-scratch", action="store_true", help=told)
    parser.add_argument(
        "--only", metavar="STAGE", help="stop after this stage (parts, corpus, units, llasm_finetune, ...)"
    )
    args = parser.parse_args(argv)
    console = Console()
    missing = [package for module, package in NEEDS.items() if not _importable(module)]
    if missing:
        console.print(f"[red]quickstart needs {', '.join(missing)}: pip install 'speechzoo\\[quickstart]'[/]")
        return 1
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from speechzoo.quickstart.pipeline import Quickstart

    try:
        scale = SCALES[args.scale]
        if args.from_scratch:
            scale = replace(scale, from_scratch=True)
        report = Quickstart(args.out, scale, args.seed, console).run(args.only)
    except (ValueError, OSError, RuntimeError) as error:
        console.print(f"[red]quickstart stopped:[/] {escape(str(error))}", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nstopped; the same command goes on from here")
        return 130
    if args.only is None:
        console.print(f"\n[bold]Done.[/] Open {report} (or {report.with_suffix('.md')})")
    return 0


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
