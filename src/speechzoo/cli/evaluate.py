"""`speechzoo evaluate MODEL… --suite NAME|FILE`: a test suite put to models; tables beside the paper's."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from speechzoo.cli.counts import count, whole
from speechzoo.system.terminal import tell_error
from speechzoo.talk.options import MODEL

EPILOG = """\
speechzoo evaluate llasm-tiny llama-omni-tiny --suite quickstart
speechzoo evaluate RUN --suite instructs2s --data FOLDER --judge https://api.openai.com/v1 --judge-model gpt-4o
speechzoo evaluate RUN --endpoint http://host:8000/v1 --endpoint-model NAME --suite questions.jsonl

Keys: $SPEECHZOO_JUDGE_KEY and $SPEECHZOO_ENDPOINT_KEY; $OPENAI_API_KEY is sent to api.openai.com alone.
The same command goes on where it was: answers, transcriptions and verdicts that are there are not made again."""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser(
        prog="speechzoo evaluate",
        description="Put a test suite to one or several models; one table with bootstrap intervals and paired tests.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("models", nargs="*", metavar="MODEL", help=f"or NAME=MODEL: {MODEL}")
    made.add_argument("--suite", required=True, metavar="NAME|FILE", help="list tells all; or questions as JSONL")
    made.add_argument("--data", type=Path, metavar="FOLDER", help="the suite's files, as they are published")
    made.add_argument("--out", type=Path, metavar="FOLDER", help="(default: checkpoints/evaluate/SUITE)")
    made.add_argument("--limit", type=count, metavar="N", help="the first N questions")
    made.add_argument("--written", action="store_true", help="ask the words of the questions, not their sound")
    made.add_argument("--overwrite", action="store_true", help="begin anew where the folder holds something else")
    foreign = made.add_argument_group("somebody else's model, by an OpenAI-compatible endpoint")
    foreign.add_argument(
        "--endpoint", metavar="URL", help="such as http://localhost:8000/v1; sound goes as input_audio"
    )
    model, told = ("--endpoint-model", "--endpoint_model"), "may be repeated"
    foreign.add_argument(*model, action="append", default=[], metavar="NAME", help=told)
    foreign.add_argument("--endpoint-voice", default="", metavar="VOICE", help="ask for spoken answers too")
    asked = made.add_argument_group("text-to-speech, for questions that are only written")
    asked.add_argument("--tts", help="speaks them: as of `speechzoo data instruct`; kept in OUT/questions")
    asked.add_argument("--tts-model", default="", metavar="NAME", help="the endpoint's name of it")
    asked.add_argument("--question-voice", nargs="+", default=["joe"], metavar="NAME[=WEIGHT]")
    judge = made.add_argument_group("judge (without one its columns are not measured)")
    judge.add_argument(
        "--judge", metavar="URL|MODEL", help="OpenAI-compatible endpoint, or a chat model of transformers"
    )
    judge.add_argument("--judge-model", "--judge_model", metavar="NAME", help="the endpoint's name of it")
    judge.add_argument("--parallel", type=count, default=4, metavar="N", help="requests at a time (default 4)")
    judge.add_argument("--timeout", type=float, default=120.0, metavar="S", help="seconds a request may take")
    made.add_argument("--recogniser", metavar="WHISPER", help="writes spoken answers down: name, file or folder")
    made.add_argument("--batch", type=count, default=8, metavar="N", help="questions answered together (default 8)")
    made.add_argument("--max-new-tokens", type=count, metavar="N", help="longest answer (default: the model's)")
    made.add_argument("--vocoder", metavar="DIR", help="for the models whose units it knows")
    made.add_argument("--latency", type=whole, default=10, metavar="N", help="questions to time the first sound with")
    made.add_argument("--seed", type=int, default=0, help="of bootstrap and judge")
    made.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    made.add_argument("--trust-code", action="store_true", help="import other people's classes that a model names")
    return made


def main(argv: Sequence[str]) -> int:
    """`speechzoo evaluate`; returns the exit code."""
    made = parser()
    args = made.parse_args(argv)
    if args.suite == "list":
        from speechzoo.suites.catalogue import SUITES

        print("\n".join(f"{name:<24}{suite.about}" for name, suite in SUITES.items()))
        return 0
    if not args.models and not args.endpoint:
        made.error("there is nobody to ask: give a MODEL, or --endpoint with --endpoint-model")
    if bool(args.endpoint) != bool(args.endpoint_model):
        made.error("--endpoint and --endpoint-model belong together")
    if args.judge and args.judge.startswith(("http://", "https://")) and not args.judge_model:
        made.error("--judge names an endpoint: give --judge-model too")
    from speechzoo.suites.command import run

    try:
        return run(args)
    except (ValueError, OSError, ImportError, RuntimeError, KeyboardInterrupt) as error:
        return tell_error(error, "speechzoo evaluate")
