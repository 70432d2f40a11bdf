"""Units for the spoken answers of records; and clusters trained on speech."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import MAX_SAMPLES, SAMPLE_RATE, SoundError
from speechzoo.corpora.clusters import convert_pickle, judge, phones_of_frames
from speechzoo.corpora.stage import Broken, Item, Result
from speechzoo.data.record import all_audio
from speechzoo.data.sources import open_source, read_clip, resolve
from speechzoo.data.sources.base import beside
from speechzoo.data.tensor_files import batches_within
from speechzoo.encoders import Encoder, HFSpeechEncoder, WhisperEncoder
from speechzoo.names.published import is_name, published
from speechzoo.parts.registry import PARTS, fetch
from speechzoo.system.files import read_jsonl, write_json
from speechzoo.system.terminal import quiet
from speechzoo.units import KMeansUnits

CHUNK = 100 * SAMPLE_RATE
"""Longer clips are cut into pieces that do not see each other, as fairseq's `dump_hubert_feature.py` does."""


class EncoderLayer:
    """States of an encoder's layer, 50 a second: of HuBERT as fairseq extracts them for LLaMA-Omni's units (mHuBERT,
    layer 11), or of Whisper for the quickstart's.

    Args:
        model: a folder or a name on the hub (`voidful/mhubert-base` for LLaMA-Omni), of HuBERT's kin; or the name of a
            small Whisper of ours, whose encoder the quickstart makes its units of.
        layer: from 1, see `HFSpeechEncoder` and `WhisperEncoder`.
        device: torch's name of it.

    Raises:
        ValueError: if it is a model that does not hear raw sound, or has fewer layers.
    """

    def __init__(self, model: str, layer: int, device: str = "cpu") -> None:
        quiet()
        self.encoder: Encoder
        if model in PARTS:
            self.encoder = WhisperEncoder(str(fetch(model)), window="trimmed", layer=layer)
        else:
            self.encoder = HFSpeechEncoder(model, layer)
            if not self.encoder.raw:
                raise ValueError(f"{model}: units are made of HuBERT's kin, which hears raw sound")
        self.encoder.to(device).eval().requires_grad_(False)
        self.device = device

    @torch.inference_mode()
    def __call__(self, clips: Sequence[Tensor]) -> list[Tensor]:
        """Shape: `[T]` at 16 kHz each -> `[F, D]` each, F = 0 for clips of less than 25 ms."""
        chunk = MAX_SAMPLES if isinstance(self.encoder, WhisperEncoder) else CHUNK
        pieces = [(index, piece) for index, clip in enumerate(clips) for piece in clip.split(chunk)]
        lens = torch.tensor([len(piece) for _, piece in pieces])
        states, frames = self.encoder(pad_sequence([p for _, p in pieces], batch_first=True).to(self.device), lens)
        found: list[list[Tensor]] = [[] for _ in clips]
        for (index, _), row, size in zip(pieces, states.cpu(), frames.tolist(), strict=True):
            found[index].append(row[:size])
        return [torch.cat(some) for some in found]


def clusters_file(kmeans: Path) -> Path:
    """The file of clusters that is meant: itself, or that of a published vocoder by its name in the zoo."""
    return published(str(kmeans)) / "kmeans.safetensors" if is_name(kmeans) else kmeans


def frame_times(frames: int) -> Tensor:
    """The middle of each frame in seconds `[F]`: it sees 400 samples, the next one begins 320 later."""
    return (torch.arange(frames) * 320 + 200) / SAMPLE_RATE


class UnitWork:
    """Puts `units` beside each answer that has sound.

    Args:
        folder: that the sound may be named from.
        hubert, layer, device: see `EncoderLayer`.
        kmeans: centroids as `KMeansUnits` keeps them.
        batch_seconds: of speech, padding counted, in a batch.
        threads: that read clips.

    Raises:
        ValueError: if centroids and states are of different widths.
    """

    def __init__(
        self,
        folder: Path,
        hubert: str,
        layer: int,
        kmeans: Path,
        device: str = "cpu",
        batch_seconds: float = 240.0,
        threads: int = 4,
    ) -> None:
        self.folder = str(folder)
        self.encoder, self.kmeans = EncoderLayer(hubert, layer, device), KMeansUnits.load(kmeans)
        width, dim = self.kmeans.centroids.shape[1], self.encoder.encoder.out_dim
        if width != dim:
            raise ValueError(f"{kmeans}: its centroids have width {width}, the states of {hubert} {dim}")
        self.samples, self.threads = int(batch_seconds * SAMPLE_RATE), threads

    def __call__(self, items: Sequence[Item]) -> Iterator[Result]:
        values = [item.value if isinstance(item.value, dict) else {} for item in items]
        places = [
            (row, turn, message["audio"])
            for row, value in enumerate(values)
            for turn, message in enumerate(value["messages"])
            if message.get("audio")
        ]
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            clips = list(pool.map(lambda place: _clip(beside(self.folder, place[2])), places))
        units = dict(zip(((row, turn) for row, turn, _ in places), self._units(clips), strict=True))
        for row, (item, value) in enumerate(zip(items, values, strict=True)):
            mine = {turn: found for (at, turn), found in units.items() if at == row}
            wrong = next((found for found in mine.values() if isinstance(found, Broken)), None)
            if wrong is not None:
                yield item, wrong
                continue
            seconds = [len(clip) / SAMPLE_RATE for (at, _, _), clip in zip(places, clips, strict=True) if at == row]
            messages = [
                {**message, "units": mine[turn]} if turn in mine else message
                for turn, message in enumerate(value["messages"])
            ]
            yield item, {"messages": messages, "facts": {**value.get("facts", {}), "answer_seconds": seconds}}

    def _units(self, clips: Sequence[Tensor | Broken]) -> list[list[int] | Broken]:
        found: list[list[int] | Broken] = [clip if isinstance(clip, Broken) else [] for clip in clips]
        whole = [(at, clip) for at, clip in enumerate(clips) if not isinstance(clip, Broken)]
        for batch in batches_within(range(len(whole)), [len(clip) for _, clip in whole], self.samples):
            states = self.encoder([whole[index][1] for index in batch])
            for index, state in zip(batch, states, strict=True):
                found[whole[index][0]] = self.kmeans(state) if len(state) else Broken("too short for a unit")
        return found


def _clip(path: str) -> Tensor | Any:
    try:
        return read_clip(path)
    except SoundError as error:
        return Broken("unusable sound", error.problem)
    except (OSError, ValueError) as error:
        return Broken("no sound file", str(error))


def train(args: Namespace) -> dict[str, Any]:
    """`speechzoo data kmeans`: clusters of the speech of some data, and how good they are for it.

    Returns:
        The report, which is written beside the clusters as .json.

    Raises:
        ValueError: if there are clusters already, or too little speech.
    """
    told = args.out.with_suffix(".json")
    if told == args.out:
        raise ValueError(f"{args.out}: the report goes there: name the clusters FILE.safetensors")
    if there := next((file for file in (args.out, told) if file.exists()), None):
        raise ValueError(f"{there}: exists already; delete it, or give another name")
    clips = sorted({clip for name in resolve(args.data) for clip in _sounds(name)})
    random.Random(args.seed).shuffle(clips)
    labelled = _labels(args.labels) if args.labels else {}
    if labelled and not (clips := [clip for clip in clips if clip in labelled]):
        raise ValueError(f"{args.labels}: names none of the clips of the data")
    encoder = EncoderLayer(args.hubert, args.layer, args.device)
    states: list[Tensor] = []
    used, broken = [], 0
    for path in clips:
        clip = _clip(path)
        if isinstance(clip, Broken):
            broken += 1
            continue
        states += encoder([clip])
        used.append(path)
        if sum(map(len, states)) >= args.frames:
            break
    if not states:
        raise ValueError(f"{', '.join(args.data)}: no clip that can be used ({broken} that cannot)")
    kmeans = KMeansUnits.fit(states, args.clusters, args.seed, args.frames)
    labels = None
    if labelled:
        labels = [phones_of_frames(labelled[path], frame_times(len(s))) for path, s in zip(used, states, strict=True)]
    report = {"clusters": args.clusters, "hubert": args.hubert, "layer": args.layer, "seed": args.seed}
    report |= {"clips": len(used), "unusable_clips": broken, **judge(kmeans, states, labels)}
    kmeans.save(args.out)
    write_json(told, report)
    return report


def convert(source: Path, out: Path) -> int:
    """`speechzoo data convert-kmeans`; returns the number of clusters."""
    if out.exists():
        raise ValueError(f"{out}: exists already; delete it, or give another name")
    kmeans = convert_pickle(source)
    kmeans.save(out)
    return kmeans.num_units


def _sounds(name: str) -> Iterator[str]:
    """Sound of the answers; of data whose answers have none, that of the questions."""
    for row in open_source(name).rows():
        messages = row.value.get("messages") if row.error is None else None
        if messages:
            answers = [message["audio"] for message in messages if message.get("audio")]
            yield from answers or all_audio(messages)


def _labels(file: Path) -> dict[str, Any]:
    """Phones by clip, of a JSONL file of {audio, phones: [[start s, end s, phone], ...]}."""
    try:
        return {str(file.absolute().parent / row["audio"]): row["phones"] for row in read_jsonl(file)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: write {{audio, phones: [[start, end, phone], ...]}} a line ({error!r})") from error
