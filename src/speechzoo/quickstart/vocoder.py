"""What the quickstart's vocoder learns from: units of the spoken answers, their durations in the voice's frames."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from speechzoo.data import FeatureCache
from speechzoo.encoders import WhisperEncoder
from speechzoo.quickstart.corpus import latents_of
from speechzoo.quickstart.units import LAYER
from speechzoo.system.files import read_jsonl, write_jsonl
from speechzoo.units import KMeansUnits


def write_vocoder_manifests(
    corpus: Path, features: Path, whisper: str, unit_rate: float = 50.0, latent_rate: float = 22050 / 256
) -> dict[str, Path]:
    """Write `vocoder_{train,test}.jsonl` for `LatentDataModule`, after `make_units`; return their paths.

    Each different training answer is there once; the test file holds the answers that no training question has (all
    test answers if there is none such).

    Args:
        corpus: a folder that `build_corpus` and `make_units` filled.
        features: the feature cache that `make_units` filled.
        whisper: the same Whisper.
        unit_rate, latent_rate: frames per second of units before merging, and of latents.
    """
    cache = FeatureCache(features, WhisperEncoder(whisper, window="trimmed", layer=LAYER).fingerprint)
    kmeans = KMeansUnits.load(corpus / "kmeans.safetensors")
    pairs = read_jsonl(corpus / "pairs.jsonl")
    answers = {s: {pair["answer_audio"]: pair["id"] for pair in pairs if pair["split"] == s} for s in ("train", "test")}
    unseen = {audio: name for audio, name in answers["test"].items() if audio not in answers["train"]}
    answers["test"] = unseen or answers["test"]
    paths = {split: corpus / f"vocoder_{split}.jsonl" for split in answers}
    for split, sounds in answers.items():
        records = []
        for audio, name in sounds.items():
            frames = torch.tensor(kmeans(cache.get(corpus / audio), merge=False))
            file = latents_of(audio)
            units, durations = unit_durations(frames, _length(corpus / file), latent_rate / unit_rate)
            records.append({"id": name, "units": units.tolist(), "durations": durations.tolist(), "latents": file})
        write_jsonl(paths[split], records)
    return paths


def unit_durations(frames: Tensor, length: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Merge runs of a unit, and divide `length` latent frames among the runs.

    Borders lie at the nearest latent frame, moved where a unit would get none. A rest of units that have no latent
    frame left is dropped, which can only be where there are more units than latents.

    Args:
        frames: one unit per frame. Shape: `[F]`.
        length: latents of the same sound.
        ratio: latents per frame.

    Returns:
        Units and their durations in latents, at least 1, which sum to `length`. Shape: `[U], [U]`.
    """
    units, counts = torch.unique_consecutive(frames, return_counts=True)
    units, counts = units[:length], counts[:length]
    number = torch.arange(1, len(units) + 1)
    # frames beyond the one that each unit gets, up to each border
    spare = ((counts.cumsum(0) * ratio).round().long() - number).clamp(min=0, max=length - len(units))
    ends = number + spare.cummax(0).values
    ends[-1] = length  # the encoder's frames may end up to 20 ms apart from the latents
    return units, ends.diff(prepend=torch.zeros(1, dtype=torch.long))


def _length(latents: Path) -> int:
    """Frames in a latents file.

    Raises:
        FileNotFoundError: the corpus was made without latents.
    """
    from safetensors import safe_open

    if not latents.is_file():
        raise FileNotFoundError(f"{latents}: no latents of this answer; `build_corpus` keeps them: run it again")
    with safe_open(latents, framework="pt") as file:
        return int(file.get_slice("latents").get_shape()[0])
