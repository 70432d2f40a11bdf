"""`speechzoo ask`: put spoken or written questions to a model; hear and read the answers, while they are being made."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from speechzoo.system.terminal import tell_error
from speechzoo.talk.options import MODEL, add_model_options


def main(argv: Sequence[str]) -> int:
    """`speechzoo ask`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo ask", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("questions", nargs="*", metavar="QUESTION.wav", help="sound files; - reads a question a line")
    parser.add_argument("--text", help="a written question, or what to say with each sound")
    parser.add_argument("--out", type=Path, metavar="FILE.wav", help="the spoken answer; for several: a folder")
    parser.add_argument("--stream", action="store_true", help="print the text while it is generated")
    parser.add_argument("--history", metavar="FILE.json", help="the conversation so far: a list of messages")
    parser.add_argument("--save-history", metavar="FILE.json", help="write the conversation, this answer included")
    parser.add_argument("--chat", action="store_true", help="each question goes on from the answer before it")
    parser.add_argument("--verbose", action="store_true", help="times, on standard error")
    add_model_options(parser)
    args = parser.parse_args(argv)
    if not args.questions and args.text is None:
        parser.error("there is no question: give a sound file, --text, or - for standard input")
    if "-" in args.questions and (len(args.questions) > 1 or args.text is not None):
        parser.error("- stands alone: it reads all questions from standard input")
    single = len(args.questions) <= 1 and args.questions != ["-"]
    if args.save_history and not (single or args.chat):
        parser.error("--save-history keeps one conversation: ask one question, or give --chat")
    if args.out is not None and single == args.out.is_dir():
        wanted = "a file such as answer.wav" if single else "an existing folder, as there are several answers"
        parser.error(f"--out {args.out}: name {wanted}")
    names = [Path(name).stem for name in args.questions]
    if args.out is not None and (twice := sorted({name for name in names if names.count(name) > 1})):
        parser.error(f"--out: several questions would write {args.out / twice[0]}.wav: rename them, or ask one by one")
    from speechzoo.talk.ask import ask

    try:
        return ask(args)
    except (ValueError, FileNotFoundError, KeyboardInterrupt) as error:
        return tell_error(error, "speechzoo ask")
