"""What the arguments of `speechzoo evaluate` ask for."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from speechzoo.corpora.llm import LocalLLM
from speechzoo.suites.catalogue import suite
from speechzoo.suites.evaluate import Options, evaluate
from speechzoo.suites.judge import Judge, LLMJudge
from speechzoo.suites.results import log_to_wandb, write_results
from speechzoo.suites.speaking import spoken
from speechzoo.suites.systems import Foreign, Local, System
from speechzoo.system.endpoint import Endpoint, api_key
from speechzoo.system.terminal import quiet
from speechzoo.talk.several import named


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns 1 if a model was not asked to the end or gave no answer at all, or if the judge went away."""
    name, found, file = suite(args.suite)
    if file is not None and args.data is not None:
        raise ValueError("--data belongs to a suite by name; a file of questions says itself where its sounds are")
    quiet(results_only=True)
    questions, missing = found.read(file or args.data)
    if not questions:
        raise ValueError(f"{file or args.data or name}: holds no question")
    out = args.out or Path("checkpoints/evaluate") / name
    if args.tts and not args.written:
        how = (args.tts, args.tts_model, args.question_voice, args.seed, args.parallel)
        questions, mute = spoken(questions[: args.limit], (out / "questions").absolute(), *how)
        missing += mute
    options = Options(
        out=out,
        judge=_judge(args),
        recogniser=args.recogniser,
        device=args.device,
        written=args.written,
        limit=args.limit,
        latency=args.latency,
        seed=args.seed,
        overwrite=args.overwrite,
    )
    done, judged = evaluate(name, found, questions, systems(args), options, _tell)
    told = (found, done, missing, judged, args.recogniser or found.recogniser, args.seed)
    print(write_results(options.out, name, *told))
    log_to_wandb(options.out, name, found, done, questions, args.seed)
    print(f"Written: {options.out}: table.md, table.tex, results.json, and a folder for each model")
    return int(any(result.stopped or not result.answers for result in done) or "stopped" in judged)


def systems(args: argparse.Namespace) -> list[System]:
    """Who is asked, by names of their own."""
    generate = {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens}
    found: list[System] = []
    for given in args.models:
        name, source = named(given)
        name = _new(name, found)
        found.append(Local(name, source, args.vocoder, args.device, args.trust_code, args.batch, generate))
    for model in args.endpoint_model:
        endpoint = Endpoint(args.endpoint, model, api_key(args.endpoint), args.timeout)
        found.append(Foreign(_new(model, found), endpoint, args.endpoint_voice, args.parallel, generate))
    return found


def _new(name: str, others: Iterable[System]) -> str:
    while name in [other.name for other in others]:
        name += "'"
    return name


def _judge(args: argparse.Namespace) -> Judge | None:
    if not args.judge:
        return None
    if not args.judge.startswith(("http://", "https://")):
        return LLMJudge(LocalLLM(args.judge, args.device), parallel=1)
    key = api_key(args.judge, "SPEECHZOO_JUDGE_KEY")
    return LLMJudge(Endpoint(args.judge, args.judge_model, key, args.timeout), args.parallel)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
