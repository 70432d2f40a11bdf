"""What the commands of `speechzoo data` do: stages in order, each shard's share, and the data set at the end."""

from __future__ import annotations

import json
import random
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from speechzoo.corpora import layouts, released
from speechzoo.corpora.card import ABOUT, BROKEN, CARD, DATA, join, relative
from speechzoo.corpora.llm import open_llm
from speechzoo.corpora.rewriting import Rewriter, cost, expected_tokens
from speechzoo.corpora.sounds import kept_sound
from speechzoo.corpora.splits import TRAIN, VAL, split
from speechzoo.corpora.spoken_rules import RULE, RuleRewriter
from speechzoo.corpora.stage import Broken, Item, Shard, Stage, begin_folder, each
from speechzoo.corpora.tables import rows
from speechzoo.corpora.texts import STYLES, instructions, language_of, suitable, told_apart
from speechzoo.corpora.voices import Cast, open_speaker, speak_to
from speechzoo.data.instructions import ASR_INSTRUCTIONS, asr_messages
from speechzoo.data.schema import check_messages
from speechzoo.system.digests import file_digest
from speechzoo.system.files import write_json

Values = Callable[[dict[str, Any]], dict[str, Any]]


def asr(args: Namespace) -> None:
    """`speechzoo data asr`: recognition instructions over published corpora."""
    pairs = [_pair(name, [*layouts.CORPORA, "hf"]) for name in args.corpora]
    kinds = [kind for kind, _ in pairs]
    for kind, folder in pairs:
        if kind != "hf" and not Path(folder).expanduser().exists():
            raise FileNotFoundError(f"{kind}={folder}: no such folder")
    known = {kind: layouts.LICENCES.get(kind, args.licence) for kind in kinds}
    begin(args, f"Speech recognition: {', '.join(kinds)}", known, ["automatic-speech-recognition"], ["clips"])
    sounds = args.out.absolute() / "audio"

    def value(clip: dict[str, Any]) -> dict[str, Any]:
        path, seconds = kept_sound(clip["audio"], sounds, Path.cwd())
        if seconds > args.max_seconds:
            raise Broken(f"longer than {args.max_seconds:g} s", f"{path}: {seconds:.1f} s")
        if clip["language"] not in ASR_INSTRUCTIONS:
            raise Broken("no instructions in its language", clip["language"])
        text = clip["text"].lower() if args.lower else clip["text"]
        messages = asr_messages(path, text, clip["language"], random.Random(f"{args.seed}:{clip['id']}"))
        about = {"language": clip["language"], "voices": [clip["voice"]], "source": clip["source"]}
        return {"messages": messages, "facts": {"user_seconds": [seconds], **about}}

    settings = {"corpora": args.corpora, "part": args.part, "seed": args.seed, "lower": args.lower}
    settings |= {"columns": args.columns, "language": args.language, "max_seconds": args.max_seconds}
    settings |= {"content": content} if (content := _content(name for _, name in pairs)) else {}
    stage = Stage(args.out / "clips", args.shard, settings)
    told("clips", stage.run(_clips(pairs, args), each(checked(value, args.out), args.threads)))
    finish(args)


def _clips(pairs: Sequence[tuple[str, str]], args: Namespace) -> Iterator[Item]:
    numbers = count()
    several = [name for kind, name in pairs if kind in ("hf", "lhotse")]  # ids of the others are theirs alone
    labels = dict(zip(several, told_apart(several), strict=True)) if len(several) > 1 else {}
    for kind, name in pairs:
        begins = f"{kind}-{labels[name]}" if name in labels else kind
        if kind == "hf":
            found: Iterable[layouts.Clip] = _columns(name, args)
        else:
            found = layouts.CORPORA[kind](Path(name).expanduser(), args.part)
        for key, clip in found:
            yield Item(next(numbers), f"{begins}-{key}", clip if isinstance(clip, Broken) else {**clip, "source": kind})


def _columns(name: str, args: Namespace) -> Iterator[layouts.Clip]:
    """Clips of any data set, by the names of its columns."""
    name, _, split = name.partition(":") if not Path(name).exists() else (name, "", "")
    audio, text = args.columns
    for number, row in rows(name, split or args.part):
        if isinstance(row, Broken):
            yield str(number), row
        elif audio not in row or text not in row:
            raise ValueError(f"hf={name}: has no columns {audio} and {text} (its columns: {', '.join(row)}): --columns")
        elif not isinstance(row[text], str) or not row[text].strip():
            yield str(number), Broken(layouts.NO_TEXT, f"row {number}")
        else:
            clip = {"audio": row[audio], "text": row[text].strip(), "language": args.language}
            identity, speaker = (row.get(key) for key in ("id", "speaker_id"))  # null where other rows have them
            about = {**clip, "voice": "" if speaker is None else str(speaker)}
            yield str(number if identity is None else identity), about


def instruct(args: Namespace) -> None:
    """`speechzoo data instruct`: written instructions become spoken conversations."""
    style = STYLES[args.style]
    stages = ["filter", *(["rewrite"] if style.rewritten else []), "speak", *(["units"] if args.kmeans else [])]
    wanted = args.stages.split(",") if args.stages else stages
    if unknown := [name for name in wanted if name not in stages]:
        raise ValueError(f"--stages {args.stages}: there is no {unknown[0]} here; the stages are {', '.join(stages)}")
    if "rewrite" in wanted and not args.llm:
        raise ValueError(f"--style {args.style} has instructions rewritten: name an LLM with --llm, or {RULE}")
    if args.kmeans and not style.spoken:
        raise ValueError(f"--kmeans: answers of --style {args.style} are not spoken, so they have no units")
    licences = dict.fromkeys((Path(name.partition("#")[0]).stem for name in args.texts), args.licence)
    begin(args, f"Spoken instructions after {args.style}", licences, ["question-answering"], stages)
    work = {name: Stage(args.out / name, args.shard, _settings(name, args)) for name in stages}
    if "filter" in wanted:

        def kept(value: dict[str, Any]) -> dict[str, Any]:
            return {"turns": suitable(value["turns"], style), "source": value["source"]}

        told("filter", work["filter"].run(instructions(args.texts, args.limit), each(kept)))
    if "rewrite" in wanted and not _rewrite(args, work["filter"], work["rewrite"]):
        return
    if "speak" in wanted:
        before = work["rewrite" if style.rewritten else "filter"]
        speaking = checked(_speaking(args, style.spoken), args.out)
        told("speak", work["speak"].run(before.items(), each(speaking, args.threads)))
    if "units" in wanted:
        told("units", work["units"].run(work["speak"].items(), _unit_work(args)))
    if stages[-1] in wanted:
        finish(args)


def _settings(stage: str, args: Namespace) -> dict[str, Any]:
    """What decides a stage's results."""
    return {
        "filter": {"style": args.style, "texts": args.texts, "content": _content(args.texts), "limit": args.limit},
        "rewrite": {"llm": args.llm, "model": args.llm_model, "temperature": args.temperature, "seed": args.seed},
        "speak": {"tts": args.tts, "model": args.tts_model, "seed": args.seed}
        | {"question_voices": args.question_voice, "answer_voices": args.answer_voice}
        | ({"answer_tts": args.answer_tts, "answer_model": args.answer_tts_model} if args.answer_tts else {}),
        "units": {"hubert": args.hubert, "layer": args.layer, "kmeans": args.kmeans and _clusters(args)},
    }[stage]


def _content(names: Iterable[str]) -> dict[str, str]:
    """Digests of the sources that are files: of others with the same ids, what is done would stay."""
    files = {name: Path(name.partition("#")[0]).expanduser() for name in names}
    return {name: file_digest(file) for name, file in files.items() if file.is_file()}


def _rewrite(args: Namespace, before: Stage, stage: Stage) -> bool:
    """The LLM's stage; tells what it is going to read and write, and what it did. False where only that was asked."""
    done = stage.finished()
    missing = [item.value["turns"] for item in before.items() if item.id not in done and isinstance(item.value, dict)]
    rewriter: Rewriter | RuleRewriter = RuleRewriter(args.seed)
    expected = "by a small rule"
    if args.llm != RULE:
        llm = open_llm(args.llm, args.llm_model, args.key_env, args.device)
        rewriter = Rewriter(llm, args.out / "llm", args.temperature, args.seed)
        tokens = cost(*expected_tokens(missing), args.prices)
        expected = f"an estimated {tokens} (answers kept from before cost nothing)"
    print(f"rewrite: {len(missing):,} conversations, {expected}")
    if args.estimate:
        return False

    def spoken(value: dict[str, Any]) -> dict[str, Any]:
        return {"turns": rewriter(value["turns"]), "source": value["source"]}

    try:
        told("rewrite", stage.run(before.items(), each(spoken, args.threads)))
    finally:
        if isinstance(rewriter, Rewriter):
            file = stage.folder / "spent.json"
            earlier = Counter(json.loads(file.read_text())) if file.is_file() else Counter()
            write_json(file, dict(earlier + Counter(rewriter.spent)))
            used = cost(rewriter.spent["prompt_tokens"], rewriter.spent["completion_tokens"], args.prices)
            print(f"rewrite: {used}, as the LLM counted them")
    return True


def _speaking(args: Namespace, answers: bool) -> Values:
    """Questions, and answers where the paper has them spoken, to sound files; one voice each for a conversation."""
    asks, replies = Cast(args.question_voice), Cast(args.answer_voice)
    asking = open_speaker(args.tts, args.tts_model, args.key_env), f"{args.tts} {args.tts_model}"
    replying = asking
    if args.answer_tts:
        speaker = open_speaker(args.answer_tts, args.answer_tts_model, args.key_env)
        replying = speaker, f"{args.answer_tts} {args.answer_tts_model}"
    sounds = args.out.absolute() / "audio"

    def value(given: dict[str, Any]) -> dict[str, Any]:
        key = f"{args.seed}:{given['id']}"
        asker, replier = asks.draw(f"{key}:question"), replies.draw(f"{key}:answer")
        seed = random.Random(key).randrange(1 << 31)
        facts: dict[str, Any] = {"user_seconds": [], "answer_seconds": [], "source": given["source"]}
        facts |= {"voices": [asker, *([replier] if answers else [])], "language": language_of(given["turns"][0][0])}
        messages: list[dict[str, Any]] = []
        for question, text in given["turns"]:
            file, seconds = speak_to(sounds, *asking, question, asker, seed)
            facts["user_seconds"].append(seconds)
            part = {"type": "audio", "path": str(file), "transcript": question}
            messages.append({"role": "user", "content": [part]})
            answer = {"role": "assistant", "content": text}
            if answers:
                file, seconds = speak_to(sounds, *replying, text, replier, seed)
                facts["answer_seconds"].append(seconds)
                answer["audio"] = str(file)
            messages.append(answer)
        return {"messages": messages, "facts": facts}

    return value


def released_sets(args: Namespace) -> None:
    """`speechzoo data released`: a set of the hub in its own layout."""
    kind, name = _pair(args.set, list(released.LAYOUTS))
    begin(args, f"{kind}: {name}", {kind: args.licence}, ["question-answering"], ["records"])
    path = Path(name).expanduser()
    beside = path.absolute().parent if path.is_file() else Path.cwd()
    mapping = released.Mapping(args.out.absolute() / "audio", beside, args.num_units, args.large_units, args.language)
    settings = {"set": args.set, "split": args.split, "num_units": args.num_units, "large_units": args.large_units}
    settings |= {"language": args.language, "content": _content([name])}
    stage = Stage(args.out / "records", args.shard, settings)
    told("records", stage.run(released.items(kind, name, args.split), each(checked(mapping, args.out), args.threads)))
    finish(args)


def units(args: Namespace) -> None:
    """`speechzoo data units`: units of the spoken answers of data of any of our formats."""
    from speechzoo.data.sources import open_source, resolve
    from speechzoo.data.sources.access import SHARDS

    sources = resolve(args.data)
    about = json.loads(file.read_text()) if (file := Path(sources[0]).parent / ABOUT).is_file() else {}
    title = f"{about.get('title', Path(sources[0]).stem)}, with units"
    begin(args, title, about.get("licences") or {"data": args.licence}, ["question-answering"], ["units"])

    def items() -> Iterator[Item]:
        numbers = count()
        for name, label in zip(sources, told_apart(sources), strict=True):
            for row in open_source(name).rows():
                value: dict[str, Any] | Broken = Broken("unreadable record", str(row.error))
                key = row.name if label == Path(name).stem else f"{label}/{row.name}"
                if row.error is None:
                    key = str(row.value.get("id", key))
                    problem = next(check_messages(row.value), None)
                    value = _spoken(row.value["messages"]) if not problem else Broken("malformed", problem[0])
                yield Item(next(numbers), key, value)

    files = [Path(name) for name in sources if Path(name).is_file()]
    shards = [file for file in files if file.suffix in SHARDS]  # told by their size: they may be very large
    content = [file.stat().st_size if file in shards else file_digest(file) for file in files]
    settings = {"data": args.data, "content": content}
    settings |= {"hubert": args.hubert, "layer": args.layer, "kmeans": _clusters(args)}
    stage = Stage(args.out / "units", args.shard, settings)
    told("units", stage.run(items(), _unit_work(args)))
    finish(args)


def _spoken(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The input of a record's units: its messages, and what changes when the sound of its answers does."""
    from speechzoo.data.sources import clip_stamp

    stamps = []
    for message in messages:
        with suppress(OSError, ValueError):  # a sound that is gone: told where its units are made
            stamps.append(clip_stamp(message["audio"]) if message.get("audio") else "")
    return {"messages": messages, "sounds": stamps}


def _clusters(args: Namespace) -> str:
    from speechzoo.corpora.extraction import clusters_file

    return file_digest(clusters_file(args.kmeans))


def _unit_work(args: Namespace) -> Any:
    from speechzoo.corpora.extraction import UnitWork, clusters_file

    kmeans = clusters_file(args.kmeans)
    return UnitWork(args.out, args.hubert, args.layer, kmeans, args.device, args.batch_seconds, args.threads)


def checked(work: Values, folder: Path) -> Values:
    """Work whose result has to be a record that training reads; its sound in the folder is named from there."""

    def value(given: dict[str, Any]) -> dict[str, Any]:
        result = work(given)
        if problem := next(check_messages({"id": given["id"], "messages": result["messages"]}), None):
            raise Broken("malformed", problem[0])
        return {**result, "messages": [relative(message, folder) for message in result["messages"]]}

    return value


def begin(args: Namespace, title: str, licences: dict[str, str], tasks: list[str], stages: list[str]) -> None:
    """Write what the data set is, or compare it with what was begun in the folder.

    Raises:
        ValueError: if that was another one, or the folder holds files of such names that are not ours.
    """
    args.shard = Shard.read(args.shard)
    written = (DATA, CARD, BROKEN, *((TRAIN, VAL) if args.val else ()))
    begin_folder(args.out, {"stages": stages, "shards": args.shard.count}, written)
    about = {"title": args.title or title, "licences": licences, "tasks": tasks, "stages": stages, "val": args.val}
    args.about = {**about, "shards": args.shard.count, "command": args.command_line}
    if not (args.out / ABOUT).is_file():  # else it stays until the work is done: the stages may yet refuse this command
        write_json(args.out / ABOUT, args.about)


def finish(args: Namespace) -> None:
    """Write what the data set is and join the only shard; of several the last one to be done says how."""
    write_json(args.out / ABOUT, args.about)
    if args.shard.count > 1:
        print(f"when all {args.shard.count} shards are done: speechzoo data join {args.out}")
        return
    joined(args.out)


def joined(folder: Path) -> None:
    """Join, keep records for validation apart where they are wanted, and say what there is."""
    numbers = join(folder)
    if val := json.loads((folder / ABOUT).read_text()).get("val"):
        split(folder, val)
    left = sum(numbers["left_out"].values())
    print(f"{folder / DATA}: {numbers['records']:,} records, {left:,} left out; {folder / 'README.md'} tells all")


def told(stage: str, counts: Counter[str]) -> None:
    """Say how a stage ended."""
    broken = [f"{number:,} {reason}" for reason, number in counts.most_common() if reason]
    print(f"{stage}: {counts['']:,} done" + (f"; left out: {', '.join(broken)}" if broken else ""))


def _pair(text: str, known: Sequence[str]) -> tuple[str, str]:
    kind, sign, name = text.partition("=")
    if not sign or kind not in known or not name:
        raise ValueError(f"{text}: write KIND=PATH with one of {', '.join(known)}")
    return kind, str(Path(name).expanduser()) if name.startswith("~") else name
