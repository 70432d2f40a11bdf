"""`speechzoo data`: training data out of corpora, instructions and released sets."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from speechzoo.cli.counts import count, whole
from speechzoo.system.terminal import tell_error

ACTIONS = {
    "asr": "recognition instructions over published speech corpora (LLaSM's first stage)",
    "instruct": "written instructions -> filtered -> rewritten by an LLM -> spoken -> units",
    "released": "a released speech instruction set, in its own layout",
    "units": "units of the spoken answers, by a HuBERT layer and k-means",
    "example": "a small raw corpus, texts and speech in the layouts of the papers' sources, to try the chain with",
    "kmeans": "train the clusters of units on the speech of some data",
    "convert-kmeans": "bring fairseq's k-means file, which is a pickle, into our safetensors",
    "join": "join the shards of a data set, write its card",
    "contamination": "look for evaluation questions in the training text",
}


def main(argv: Sequence[str]) -> int:
    """`speechzoo data`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="speechzoo data", description=__doc__, allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="WHAT")
    add = {
        name: actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        for name, text in ACTIONS.items()
    }
    for name in ("asr", "instruct", "released", "units"):
        _common(add[name])
    _asr(add["asr"])
    _instruct(add["instruct"])
    _released(add["released"])
    _hubert(add["units"], kmeans=True)
    add["units"].add_argument(
        "--data", nargs="+", required=True, metavar="FILE", help="JSONL, Parquet, tar, hf:NAME:SPLIT"
    )
    _example(add["example"])
    _kmeans(add["kmeans"])
    add["convert-kmeans"].add_argument("source", type=Path, metavar="FILE.bin")
    add["convert-kmeans"].add_argument("out", type=Path, metavar="FILE.safetensors")
    add["join"].add_argument("out", type=Path, metavar="FOLDER")
    _contamination(add["contamination"])
    args = parser.parse_args(argv)
    args.command_line = shlex.join(["speechzoo", "data", *without_option(argv, "--shard")])  # the same for all
    try:
        if getattr(args, "ray", None) is not None:
            _on_ray(args, argv)
        else:
            _run(args)
    except (ValueError, OSError, ImportError, RuntimeError, KeyboardInterrupt) as error:
        return tell_error(error, f"speechzoo data {args.action}")
    return 0


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FOLDER", help="of the data set; the same command goes on there")
    parser.add_argument("--shard", default="0/1", metavar="i/n", help="a job's share, i from 0: $SLURM_ARRAY_TASK_ID/8")
    told = "all N shards as tasks of the Ray cluster of $RAY_ADDRESS, else of this machine, then joined"
    parser.add_argument("--ray", type=int, metavar="N", help=told)
    parser.add_argument("--threads", type=count, default=8, help="that read clips, ask endpoints or speak")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--val", type=whole, default=0, metavar="N", help="records apart: train.jsonl, val.jsonl too")
    parser.add_argument("--title", help="of the card")
    parser.add_argument("--licence", default="unknown", help="of the source, by its identifier on the hub")


def _asr(parser: argparse.ArgumentParser) -> None:
    corpora = "librispeech, aishell, magicdata, primewords, commonvoice, lhotse, hf"
    parser.add_argument("corpora", nargs="+", metavar="CORPUS=FOLDER", help=f"{corpora} (hf=NAME[:SPLIT])")
    parser.add_argument("--part", default="train", help="of each corpus: train, dev, test, train-clean-100, ...")
    parser.add_argument("--lower", action="store_true", help="transcripts in lower case (LibriSpeech's are capitals)")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="Whisper hears no more (30)")
    parser.add_argument("--columns", nargs=2, default=["audio", "text"], metavar=("AUDIO", "TEXT"), help="of hf=")
    parser.add_argument("--language", default="en", help="of hf=: en or zh")


def _instruct(parser: argparse.ArgumentParser) -> None:
    layouts = "JSON, JSONL, Parquet or a name on the hub, in the layout of Alpaca, ShareGPT, UltraChat or chat messages"
    parser.add_argument("texts", nargs="+", metavar="FILE[#LIMIT]", help=layouts)
    parser.add_argument("--style", choices=("llama_omni", "llasm"), required=True, help="whose filters and stages")
    parser.add_argument("--limit", type=count, help="the first so many of each file")
    parser.add_argument("--stages", metavar="A,B", help="only these of filter, rewrite, speak, units")
    llm = "OpenAI-compatible endpoint, a local Hugging Face model, or `rule`: a small rule instead, to try the chain"
    parser.add_argument("--llm", metavar="URL|MODEL", help=llm)
    parser.add_argument("--llm-model", default="", help="name of the endpoint's model")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--estimate", action="store_true", help="say what the LLM will cost, and stop before it")
    parser.add_argument("--prices", nargs=2, type=float, metavar=("READ", "WRITTEN"), help="of a million tokens")
    parser.add_argument(
        "--key-env", default="SPEECHZOO_ENDPOINT_KEY", metavar="VARIABLE", help="that holds the endpoint's key"
    )
    tts = "quickstart, piper, 'command:PROGRAM --out {out} {text}', or an OpenAI-compatible speech endpoint"
    parser.add_argument("--tts", default="quickstart", help=tts)
    parser.add_argument("--tts-model", default="", help="name of the endpoint's model")
    parser.add_argument("--answer-tts", metavar="TTS", help="of the answers, where another one speaks them")
    parser.add_argument("--answer-tts-model", default="", metavar="NAME", help="name of its model")
    for who in ("question", "answer"):
        parser.add_argument(f"--{who}-voice", nargs="+", default=["joe"], metavar="NAME[=WEIGHT]")
    _hubert(parser, kmeans=True, required=False)


def _released(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "set", metavar="KIND=PATH", help="multiturn, instructs2s, voiceassistant, llasm; a file or hub name"
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--language", default="en")
    parser.add_argument("--num-units", type=whole, default=1000, help="units are below it (1000); 0 leaves units out")
    told = "records with units beyond: left out, the largest unit in their place, or kept without units"
    parser.add_argument("--large-units", choices=("refuse", "clip", "without"), default="refuse", help=told)


def _hubert(parser: argparse.ArgumentParser, kmeans: bool, required: bool = True) -> None:
    told = "folder or name on the hub; or whisper-tiny.en, the quickstart's (--layer 3)"
    parser.add_argument("--hubert", default="voidful/mhubert-base", metavar="MODEL", help=told)
    parser.add_argument("--layer", type=int, default=11, help="from 1 (11: LLaMA-Omni's)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    if kmeans:
        of = "see kmeans; or a zoo vocoder's name: its clusters"
        parser.add_argument("--kmeans", type=Path, required=required, metavar="FILE.safetensors", help=of)
        parser.add_argument("--batch-seconds", type=float, default=240.0, help="of speech in a batch")


def _example(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FOLDER", help="for alpaca.json, LibriSpeech/ and eval/")
    parser.add_argument("--questions", type=count, nargs=2, default=[660, 100], metavar=("TRAIN", "TEST"))
    parser.add_argument(
        "--clips", type=whole, nargs=2, default=[0, 0], metavar=("TRAIN", "TEST"), help="of them spoken"
    )
    parser.add_argument("--seed", type=int, default=0)


def _kmeans(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FILE.safetensors", help="new; a report goes beside it")
    _data(parser)
    _hubert(parser, kmeans=False)
    parser.add_argument("--clusters", type=count, default=1000)
    parser.add_argument("--frames", type=count, default=200_000, help="of speech that they are trained on (20 ms each)")
    parser.add_argument("--labels", type=Path, help="JSONL {audio, phones: [[start, end, phone]]}: purity, PNMI")
    parser.add_argument("--seed", type=int, default=0)


def _data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="JSONL, Parquet, tar, hf:NAME:SPLIT")


def _contamination(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="FOLDER", help="a joined data set")
    parser.add_argument("questions", type=Path, metavar="QUESTIONS", help="JSON or JSONL with id and question")
    parser.add_argument("--key", default="question", help="of the question's text")
    parser.add_argument("--ngram", type=count, default=8, help="words")
    parser.add_argument("--threshold", type=float, default=0.5, help="share of a question's n-grams that flags it")


def _on_ray(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """All shards at once, then the data set.

    Raises:
        ValueError: for a number below 1, a `--shard` besides, or a GPU by its number.
    """
    if args.ray < 1 or args.shard != "0/1":
        raise ValueError(f"--ray {args.ray}: a number of shards, at least 1, without --shard: it makes all of them")
    device = getattr(args, "device", "cpu")
    if device.startswith("cuda:"):
        raise ValueError(f"--device {device}: Ray gives each shard a GPU of its own, write --device cuda")
    from speechzoo.corpora import build
    from speechzoo.corpora.on_ray import run_shards

    run_shards(partial(_shard, without_option(argv, "--ray")), args.ray, device == "cuda", args.out)
    if args.ray > 1:  # a single shard has joined itself
        build.joined(args.out)


def _shard(argv: list[str], shard: str) -> int:
    return main([*argv, f"--shard={shard}"])


def without_option(argv: Sequence[str], name: str) -> list[str]:
    """A command without an option that takes one value, written `NAME VALUE` or `NAME=VALUE`."""
    kept = [word for word in argv if not word.startswith(f"{name}=")]
    if name in kept:
        at = kept.index(name)
        del kept[at : at + 2]
    return kept


def _run(args: argparse.Namespace) -> None:
    if args.action in ("kmeans", "convert-kmeans"):
        from speechzoo.corpora import extraction

        if args.action == "kmeans":
            for key, value in extraction.train(args).items():
                print(f"{key:<16}{value}")
            return
        print(f"{args.source}: a Python pickle; only arrays and k-means estimators are read from it, no code is run")
        print(f"{args.out}: {extraction.convert(args.source, args.out)} clusters")
        return
    if args.action == "example":
        from speechzoo.corpora.example import write_example

        (train, test), (clips, test_clips) = args.questions, args.clips
        write_example(args.out, train, test, clips, test_clips, args.seed)
        return
    if args.action == "contamination":
        from speechzoo.corpora.contamination import check

        check(args)
        return
    from speechzoo.corpora import build

    if args.action == "join":
        build.joined(args.out)
        return
    work = {"asr": build.asr, "instruct": build.instruct, "released": build.released_sets, "units": build.units}
    work[args.action](args)
