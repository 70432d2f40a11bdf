"""Opening 200,000 conversations of a JSONL file: our index against an Arrow table made by `datasets`.

    python benchmarks/datasets_index.py FOLDER     # each way in a process of its own, first time and again

Both parse each line and run the same checks of a record's form (`speechzoo.data.schema`); ours also opens the sound
files that records name. The corpus (88 MB and 50 short clips) is written into FOLDER once.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

RECORDS, READ = 200_000, 10_000
WORDS = "the capital of France is Paris and seven".split()


def write_corpus(folder: Path) -> Path:
    """The manifest: a clip, an answer of 5 to 60 words and 30 units a record."""
    import numpy as np
    import soundfile

    manifest = folder / "train.jsonl"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(50):
        noise = np.random.default_rng(number).normal(0, 0.05, 16_000 + 100 * number)
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
    draw = random.Random(0)
    with manifest.open("w") as file:
        for number in range(RECORDS):
            user = {"role": "user", "content": [{"type": "audio", "path": f"{number % 50}.wav"}]}
            words = " ".join(draw.choices(WORDS, k=draw.randint(5, 60)))
            units = [(number + 7 * step) % 1000 for step in range(30)]
            answer = {"role": "assistant", "content": words, "units": units}
            file.write(json.dumps({"id": f"r{number}", "messages": [user, answer]}) + "\n")
    return manifest


def rows(path: str, shards: list[int], of: int) -> Iterator[dict[str, object]]:
    """Normalised rows of every `of`-th line."""
    from speechzoo.data.schema import check_messages

    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number % of in shards:
                record = json.loads(line)
                units = [max(m["units"]) for m in record["messages"] if m.get("units")]
                yield {
                    "number": number,
                    "id": record["id"],
                    "messages": json.dumps(record["messages"]),
                    "problems": json.dumps(list(check_messages(record))),
                    "top_unit": max(units, default=-1),
                }


def resident() -> float:
    """Memory of this process, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def measure(folder: Path, way: str, workers: int) -> str:
    """One way, in this process."""
    manifest = folder / "train.jsonl"
    order = random.Random(1).sample(range(RECORDS), READ)
    if way == "ours":
        from speechzoo.data.manifest import read_manifest

        before, start = resident(), time.perf_counter()
        records = read_manifest(str(manifest), memory=str(folder / "memory.json"))
        opened = time.perf_counter() - start
        start = time.perf_counter()
        for number in order:
            _ = records[number].messages
    else:
        import datasets

        datasets.disable_progress_bars()
        before, start = resident(), time.perf_counter()
        given = {"path": str(manifest), "shards": list(range(workers)), "of": workers}
        table = datasets.Dataset.from_generator(
            rows, gen_kwargs=given, cache_dir=str(folder / f"arrow{workers}"), num_proc=workers if workers > 1 else None
        )
        opened = time.perf_counter() - start
        start = time.perf_counter()
        for number in order:
            json.loads(table[number]["messages"])
    read = time.perf_counter() - start
    return f"opened in {opened:.2f} s, {READ:,} records at random in {read:.2f} s, {resident() - before:+.0f} MB"


def main() -> None:
    """All ways, one after the other."""
    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        print(measure(folder, sys.argv[2], int(sys.argv[3])))
        return
    write_corpus(folder)
    for way, workers in (("ours", 1), ("datasets", 1), ("datasets", 2)):
        for time_of in ("first", "again"):
            command = [sys.executable, __file__, str(folder), way, str(workers)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            print(f"{way}, {workers} processes, {time_of}: {done.stdout.splitlines()[-1]}", flush=True)
    for kept in ("indexes", "arrow1", "arrow2"):
        size = sum(file.stat().st_size for file in (folder / kept).rglob("*") if file.is_file())
        print(f"{kept}: {size / 1e6:.1f} MB on disk")


if __name__ == "__main__":
    main()
