"""`speechzoo checkpoint expand`: a self-contained model from a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from speechzoo.system.terminal import tell_error


def main(argv: Sequence[str]) -> int:
    """`speechzoo checkpoint expand RUN_OR_CKPT OUT`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo checkpoint", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    text = "write a self-contained model: what was trained together with the frozen weights it stands on"
    expand = actions.add_parser("expand", help=text, description=text, allow_abbrev=False)
    expand.add_argument("run", help="run folder, .ckpt file or folder of shards")
    expand.add_argument("output", type=Path, help="new folder, for speechzoo.load")
    expand.add_argument("--merge-lora", action="store_true", help="add LoRA weights to the LLM's own, in float32")
    expand.add_argument("--trust-code", action="store_true", help="import other people's classes that the run names")
    args = parser.parse_args(argv)
    from speechzoo.interop.hub import load_run, save_pretrained
    from speechzoo.interop.saved import check_new

    try:
        check_new(args.output)
        model = load_run(args.run, args.trust_code)
        save_pretrained(model, args.output, merge_lora=args.merge_lora)
    except (ValueError, OSError) as error:
        return tell_error(error)
    print(f"{args.output}: {type(model).__name__} of {args.run}")
    if args.merge_lora and model.specs["llm"]["init_args"].get("dtype", "float32") != "float32":
        print("its LLM is in float32, so that merging rounded nothing; speechzoo.load(..., dtype=) makes it narrower")
    encoder = model.specs["encoder"]["init_args"].get("model", "")
    if not Path(str(encoder)).expanduser().exists():
        print(f"its frozen encoder {encoder} is named, not copied: loading fetches it where it is missing")
    return 0
