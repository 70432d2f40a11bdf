"""`speechzoo import` and `export`: arguments and exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def import_main(argv: Sequence[str]) -> int:
    """`speechzoo import llasm|llama-omni SRC --speech-encoder X --output OUT`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="speechzoo import", description="Bring a released checkpoint into speechzoo's form.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="system", required=True)
    for system in ("llasm", "llama-omni"):
        sub = kinds.add_parser(system, allow_abbrev=False)
        sub.add_argument("source", help="folder in the released layout, or its hub name")
        whisper = "an openai-whisper file" + (", a folder or a hub name" if system == "llasm" else "")
        sub.add_argument("--speech-encoder", required=True, help=f"Whisper: {whisper}")
        sub.add_argument("--output", required=True, type=Path, help="new folder")
        sub.add_argument("--tokenizer", help="folder of the tokenizer, if the source has none")
        if system == "llama-omni":
            sub.add_argument("--vocoder", help="folder with config.json and g_00500000")
        else:
            sub.add_argument("--template", choices=("cllama2", "baichuan"), help="default: by the vocabulary")
    args = vars(parser.parse_args(argv))
    system, console = args.pop("system"), Console()
    from speechzoo.interop import import_llama_omni, import_llasm, llama_omni, llasm

    run = import_llasm if system == "llasm" else import_llama_omni
    found = run(**args)
    licence = llasm.LICENCE if system == "llasm" else llama_omni.LICENCE
    console.print(f"{args['output']}: imported. {licence['text']}", markup=False)
    if found.get("encoder_tensors_that_differ"):
        console.print(
            f"[yellow]{found['encoder_tensors_that_differ']} speech-encoder tensors inside the checkpoint differ "
            "from --speech-encoder, which is used, as the released loader does.[/]"
        )
    if found["kept"]:
        console.print(f"{found['kept']} tensors that are not used are kept for export.")
    return 0


def export_main(argv: Sequence[str]) -> int:
    """`speechzoo export llasm|llama-omni OUT DST`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="speechzoo export", description="Write an imported model in its released layout.", allow_abbrev=False
    )
    parser.add_argument("system", choices=("llasm", "llama-omni"))
    parser.add_argument("path", help="folder made by speechzoo import")
    parser.add_argument("target", help="new folder")
    args = parser.parse_args(argv)
    from speechzoo.interop import export_llama_omni, export_llasm

    (export_llasm if args.system == "llasm" else export_llama_omni)(args.path, args.target)
    Console().print(f"{args.target}: exported", markup=False)
    return 0
