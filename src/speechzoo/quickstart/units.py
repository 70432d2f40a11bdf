"""What the quickstart computes once of all sound: units of the answers (k-means over Whisper's layer 3), encoder states
of the questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from speechzoo.data import FeatureCache
from speechzoo.encoders import WhisperEncoder
from speechzoo.system.cpu import training_precision
from speechzoo.system.files import read_jsonl, write_jsonl
from speechzoo.units import KMeansUnits

LAYER = 3
"""Block of tiny.en whose states make the purest phone classes (0.69 with 200 clusters; 0.64 for the last block)."""


def make_units(
    corpus: Path, features: Path, whisper: str, num_units: int, seed: int, published: Path | None = None
) -> None:
    """Write `kmeans.safetensors` and `qa_units_{train,test}.jsonl`: the conversations with `units` in each answer.

    Clusters are fitted on the training answers alone; test answers are only assigned.

    Args:
        published: take these clusters instead.
    """
    encoder = WhisperEncoder(whisper, window="trimmed", layer=LAYER).eval()
    cache = FeatureCache(features, encoder.fingerprint)
    splits = {name: read_jsonl(corpus / f"qa_{name}.jsonl") for name in ("train", "test")}
    sounds = {name: sorted({_answer(corpus, record) for record in rows}) for name, rows in splits.items()}
    cache.build(cache.missing(sorted({*sounds["train"], *sounds["test"]})), encoder)
    if published is not None:
        kmeans = KMeansUnits.load(published)
    else:
        kmeans = KMeansUnits.fit((cache.get(path) for path in sounds["train"]), num_units, seed)
    kmeans.save(corpus / "kmeans.safetensors")
    for name, rows in splits.items():
        for record in rows:
            record["messages"][-1]["units"] = kmeans(cache.get(_answer(corpus, record)))
        write_jsonl(corpus / f"qa_units_{name}.jsonl", rows)


def encode_questions(corpus: Path, features: Path, whisper: str) -> None:
    """Fill the cache that both systems' recipes read, in their precision: started together, each would do all of it."""
    precision = training_precision()
    encoder = WhisperEncoder(whisper, window="trimmed").eval()
    cache = FeatureCache(features, encoder.fingerprint, precision)
    rows = [row for name in ("train", "test") for row in read_jsonl(corpus / f"qa_{name}.jsonl")]
    sounds = [
        corpus / part["path"] for row in rows for part in row["messages"][0]["content"] if part["type"] == "audio"
    ]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision.startswith("bf16")):
        cache.build(cache.missing(sounds), encoder)


def _answer(corpus: Path, record: dict[str, Any]) -> str:
    return str(corpus / record["messages"][-1]["audio"])
