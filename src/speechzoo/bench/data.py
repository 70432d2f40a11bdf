"""What reading data costs for each kind of source, and how much of the batches is padding."""

from __future__ import annotations

import argparse
import io
import json
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from speechzoo.audio import FRAME, SAMPLE_RATE
from speechzoo.data import ConversationDataset, TokenBudgetSampler, collate, read_manifest
from speechzoo.data.examples import Positions
from speechzoo.names.spec import to_factory
from speechzoo.system.files import write_json, write_jsonl
from speechzoo.text import ChatPrompt

RANKS = (1, 2, 8)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def librispeech_like(count: int, seed: int = 0) -> np.ndarray:
    """Seconds of clips drawn like those of LibriSpeech's training sets: mean 12.3, most between 14 and 16, at most 35.

    Shape: `[count]`. A mixture made to have that histogram's shape, not the histogram itself.
    """
    generator = np.random.default_rng(seed)
    kind = generator.random(count)
    full, short = generator.normal(14.6, 1.2, count), generator.uniform(1.5, 15, count)
    long = generator.uniform(15.5, 35, count)
    return np.where(kind < 0.58, full, np.where(kind < 0.98, short, long)).clip(1.3, 35)


def positions_of(seconds: np.ndarray) -> np.ndarray:
    """LLM positions of a transcribed clip: ten a second of sound, 3.3 text tokens a second, 30 of the template."""
    positions: np.ndarray = (np.ceil(seconds * 10) + 3.3 * seconds + 30).astype(int)
    return positions


def padding(lengths: Sequence[int], batch_size: int, max_tokens: int | None, ranks: int) -> dict[str, float]:
    """Shares of an epoch of training batches.

    `waste`: positions that are padding; `idle`: time that ranks wait for the slowest, where it goes by positions;
    `least`: the smallest rank's positions over the largest's, in the worst step.
    """
    sizes: Any = np.asarray(lengths)
    samplers = [TokenBudgetSampler(sizes, batch_size, max_tokens, rank=rank, world_size=ranks) for rank in range(ranks)]
    real = padded = slowest = 0
    least = 1.0
    for step in zip(*samplers, strict=True):
        taken = [len(batch) * int(sizes[batch].max()) for batch in step]
        real += sum(int(sizes[batch].sum()) for batch in step)
        padded, slowest, least = padded + sum(taken), slowest + max(taken), min(least, min(taken) / max(taken))
    steps = len(samplers[0])
    return {"steps": steps, "waste": 1 - real / padded, "idle": 1 - padded / ranks / slowest, "least": least}


def write_corpus(folder: Path, count: int) -> dict[str, str]:
    """Spoken records of noise (FLAC) as every kind of source that can be written here; kind -> what to read."""
    seconds, generator = librispeech_like(count).clip(max=29), np.random.default_rng(1)
    (folder / "tar").mkdir()
    rows: list[dict[str, Any]] = []
    for number, length in enumerate(seconds):
        name = f"{number:06d}.flac"
        soundfile.write(folder / name, generator.normal(0, 0.05, int(length * SAMPLE_RATE)), SAMPLE_RATE)
        user = {"role": "user", "content": [{"type": "audio", "path": name}]}
        answer = {"role": "assistant", "content": "word " * int(length * 2.5)}
        rows.append({"id": f"r{number}", "messages": [user, answer]})
    write_jsonl(folder / "corpus.jsonl", rows)
    for shard in range(4):
        with tarfile.open(folder / "tar" / f"{shard}.tar", "w") as tar:
            for row in rows[shard::4]:
                name = row["messages"][0]["content"][0]["path"]
                text = (
                    name.replace(".flac", ".json"),
                    json.dumps({**row, "messages": _unnamed(row["messages"])}).encode(),
                )
                for member, content in (text, (name, (folder / name).read_bytes())):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return {"jsonl": str(folder / "corpus.jsonl"), "tar": str(folder / "tar"), **_tables(folder, rows)}


def _unnamed(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the sound that lies beside them in the shard."""
    return [{"role": "user", "content": [{"type": "audio"}]}, *messages[1:]]


def _tables(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    try:
        import datasets
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return {}
    audio = [row["messages"][0]["content"][0]["path"] for row in rows]
    messages = [json.dumps(_unnamed(row["messages"])) for row in rows]
    sounds = [{"bytes": (folder / name).read_bytes(), "path": name} for name in audio]
    table = pa.table({"id": [row["id"] for row in rows], "messages": messages, "audio": sounds})
    found = {}
    for size in (100, 10):
        (folder / f"parquet{size}").mkdir()
        parquet.write_table(table, folder / f"parquet{size}" / "0.parquet", row_group_size=size)
        found[f"parquet, groups of {size}"] = str(folder / f"parquet{size}")
    datasets.Dataset(table).save_to_disk(str(folder / "arrow"))
    return {**found, "hf (Arrow)": f"hf:{folder / 'arrow'}"}


def byte_tokenizer(folder: Path) -> ChatPrompt:
    """A prompt with a tokenizer of single bytes, where no model's is given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["word word word"], trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=CHATML
    ).save_pretrained(folder)
    return ChatPrompt(str(folder))


def _cpu() -> float:
    use = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in use)


def _timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a piece of work gives, its seconds and its CPU seconds with those of its processes."""
    wall, cpu = time.perf_counter(), _cpu()
    result = work()
    return result, time.perf_counter() - wall, _cpu() - cpu


def throughput(path: str, prompt: ChatPrompt, positions: Positions, workers: int, memory: Path) -> dict[str, float]:
    """Cost of one source: first and second opening, and an epoch of batches, per 1000 records."""
    records, _, first = _timed(lambda: read_manifest(path, memory=memory))
    _, _, again = _timed(lambda: read_manifest(path, memory=memory))
    data = ConversationDataset(records, prompt, positions)
    found = {"index": first / len(records) * 1000, "index again": again / len(records) * 1000}
    seconds = float(records.all_samples().sum()) / SAMPLE_RATE
    for number in dict.fromkeys((0, workers)):
        sampler = TokenBudgetSampler(data.lengths, 1000, 8192)
        together = partial(collate, pad_id=prompt.pad_id)
        # Made in the work, so that its workers have ended, and are counted, when it has.
        loader = partial(DataLoader, data, batch_sampler=sampler, collate_fn=together, num_workers=number)
        _, wall, cpu = _timed(partial(_sizes, loader))
        found[f"records/s, {number} workers"] = len(records) / wall
        found[f"audio s/s, {number} workers"] = seconds / wall
        found[f"CPU s/1000, {number} workers"] = cpu / len(records) * 1000
    return found


def _sizes(loader: Callable[[], DataLoader[Any]]) -> list[int]:
    return [len(batch) for batch in loader()]


def _settings(config: Path) -> tuple[Any, ChatPrompt | None, int, int | None]:
    """Training manifests, prompt, batch size and budget of a recipe."""
    from omegaconf import OmegaConf

    read: Any = OmegaConf.load(config)
    data = read.data.get("init_args", read.data)
    model: Any = read.model.get("init_args", read.model) if "model" in read else {}
    prompt = None
    if "prompt" in model:
        own: Any = OmegaConf.to_container(model.prompt, resolve=True)
        given = {"class_path": "ChatPrompt", **own}
        named = given["class_path"] if "." in given["class_path"] else f"speechzoo.text.{given['class_path']}"
        prompt = to_factory({**given, "class_path": named})()
    train: Any = OmegaConf.to_container(data, resolve=True)
    return train["train"], prompt, train.get("batch_size", 8), train.get("max_tokens")


def main(args: argparse.Namespace) -> int:
    """`speechzoo bench data`; returns the exit code."""
    found: dict[str, Any] = {"sources": {}, "padding": {}}

    def positions(samples: Tensor) -> Tensor:
        frames: int = args.frames
        return -(-samples // FRAME) // frames

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prompt = ChatPrompt(args.tokenizer) if args.tokenizer else byte_tokenizer(folder / "tokenizer")
        for kind, path in write_corpus(folder, args.records).items() if args.records else ():
            found["sources"][kind] = throughput(path, prompt, positions, args.workers, folder / "checks.json")
        sets: dict[str, tuple[Any, int, int | None]] = {}
        sets["LibriSpeech-like, 114156 clips"] = positions_of(librispeech_like(114_156)), 1000, args.max_tokens
        looked: list[tuple[str, Any, ChatPrompt, int, int | None]] = []
        if args.manifest:
            looked += [(path, path, prompt, 1000, args.max_tokens) for path in args.manifest]
        if args.config:
            train, own, batch_size, budget = _settings(args.config)
            looked.append((args.config.name, train, own or prompt, batch_size, budget))
        for name, path, own, batch_size, budget in looked:
            data = ConversationDataset(read_manifest(path, memory=folder / "checks.json"), own, positions)
            sets[f"{name}, {len(data)} records"] = data.lengths, batch_size, budget
    for name, (lengths, batch_size, budget) in sets.items():
        found["padding"][name] = {str(ranks): padding(lengths, batch_size, budget, ranks) for ranks in RANKS}
    _print(found)
    if args.json:
        write_json(args.json, found)
    return 0


def _print(found: dict[str, Any]) -> None:
    console = Console(width=160)
    if found["sources"]:
        columns = list(next(iter(found["sources"].values())))
        table = Table("source", *columns, title="Loading (index: CPU s per 1000 records)")
        for kind, values in found["sources"].items():
            table.add_row(kind, *(f"{values[column]:.3g}" for column in columns))
        console.print(table)
    table = Table("lengths", "ranks", "steps", "padding", "idle", "least/most of a step", title="Training batches")
    for name, by_ranks in found["padding"].items():
        for ranks, row in by_ranks.items():
            shares = (f"{row[key]:.1%}" for key in ("waste", "idle"))
            table.add_row(name, ranks, str(row["steps"]), *shares, f"{row['least']:.2f}")
    console.print(table)
