"""`speechzoo verify`: arguments and exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from speechzoo.system.files import keep_inputs, write_atomically


def verify_main(argv: Sequence[str]) -> int:
    """`speechzoo verify GOLDEN_DIR [--json FILE]`; 0 if everything holds, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="speechzoo verify",
        description="Recompute what the official code computed, and compare.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="golden folder: meta.json, golden.safetensors and the checkpoint")
    parser.add_argument("--json", type=Path, help="also write the table here")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="to see its effect"
    )
    parser.add_argument("--attention", choices=("eager", "sdpa"), help="to see its effect; default: as built")
    args = parser.parse_args(argv)

    import transformers

    from speechzoo.fidelity.verify import report, verify

    if args.json:
        keep_inputs([args.json], Path(args.folder).expanduser().rglob("*"))
    # Loading bars and advice about tokenizers would stand above the table.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    system, checks = verify(args.folder, args.dtype, args.attention)
    report(system, checks, Console(width=None if sys.stdout.isatty() else 160), args.dtype)
    if args.json:
        write_atomically(args.json, checks.as_json(system))
    return 0 if checks.ok else 1
