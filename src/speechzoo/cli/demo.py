"""`speechzoo demo`: a page in the browser to talk to one or several models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from speechzoo.system.terminal import quiet, tell_error
from speechzoo.talk.options import MODEL, add_model_options, generation


def main(argv: Sequence[str]) -> int:
    """`speechzoo demo`; serves until it is interrupted, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo demo", description=__doc__)
    parser.add_argument("models", nargs="+", metavar="[NAME=]MODEL", help=MODEL)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: this one alone)")
    parser.add_argument("--port", type=int, default=7860)
    add_model_options(parser)
    args = parser.parse_args(argv)
    try:
        import uvicorn

        from speechzoo.talk.page import web_app
    except ImportError as error:
        print(f"speechzoo demo: needs gradio ({error}): pip install 'speechzoo[demo]'", file=sys.stderr)
        return 1
    from speechzoo.talk.desk import Desk, Lobby
    from speechzoo.talk.several import open_all

    quiet(results_only=True)
    try:
        talkers = open_all(args.models, args.vocoder, args.device, args.trust_code)
    except (ValueError, FileNotFoundError) as error:
        return tell_error(error, "speechzoo demo")
    for talker in talkers.values():
        if not talker.sounds:
            print(f"no sound: {talker.missing_sound()}", file=sys.stderr)
    lobby = Lobby({name: Desk(talker) for name, talker in talkers.items()}, **generation(args))
    print(f"http://{args.host}:{args.port}", flush=True)
    uvicorn.run(web_app(lobby), host=args.host, port=args.port, log_level="warning")
    return 0
