"""`speechzoo demo`: a page in the browser to talk to one or several models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from speechzoo.system.terminal import quiet, tell_error
from speechzoo.talk.ask import MODEL, add_model_options, generation
from speechzoo.talk.desk import Desk, Lobby
from speechzoo.talk.sources import CASCADE, Talker, open_talker
from speechzoo.vocoders import open_vocoder


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


def open_all(
    sources: Sequence[str], vocoder: str | None, device: str | None, trust_code: bool = False
) -> dict[str, Talker]:
    """Models by name; a vocoder goes to those whose units it knows.

    Args:
        sources: `MODEL` or `NAME=MODEL`; the name otherwise is the last part of the path.
        trust_code: see `open_talker`.

    Raises:
        ValueError, FileNotFoundError: see `open_talker`; also if the vocoder is for none of them.
    """
    talkers: dict[str, Talker] = {}
    for source in sources:
        name, _, rest = source.rpartition("=")
        name = name or _short(rest)
        while name in talkers:
            name += "'"
        talkers[name] = open_talker(rest, device=device, trust_code=trust_code)
    if vocoder is not None:
        sound = open_vocoder(vocoder)
        speaking = [t for t in talkers.values() if getattr(t.model, "num_units", None) == sound.num_units]
        if not speaking:
            raise ValueError(f"--vocoder {vocoder}: knows {sound.num_units} units, which none of the models speaks")
        for talker in speaking:
            talker.sound = {"vocoder": sound.to(next(talker.model.parameters()).device)}
    return talkers


def _short(source: str) -> str:
    kind = "cascade " if source.startswith(CASCADE) else ""
    return kind + (Path(source.removeprefix(CASCADE)).name or source)
