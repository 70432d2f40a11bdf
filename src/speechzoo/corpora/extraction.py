"""Units for the spoken answers of records; and clusters trained on speech."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from speechzoo.audio import SAMPLE_RATE, SoundError
from speechzoo.corpora.clusters import convert_pickle, judge, phones_of_frames
from speechzoo.corpora.hubert import HubertLayer, batches, frame_times
from speechzoo.corpora.stage import Broken, Item, Result
from speechzoo.data.record import all_audio
from speechzoo.data.sources import open_source, read_clip, resolve
from speechzoo.system.files import read_jsonl, write_json
from speechzoo.units import KMeansUnits


class UnitWork:
    """Puts `units` beside each answer that has sound.

    Args:
        hubert, layer, device: see `HubertLayer`.
        kmeans: centroids as `KMeansUnits` keeps them.
        batch_seconds: of speech, padding counted, in a batch.
        threads: that read clips.

    Raises:
        ValueError: if centroids and states are of different widths.
    """

    def __init__(
        self, hubert: str, layer: int, kmeans: Path, device: str = "cpu", batch_seconds: float = 240.0, threads: int = 4
    ) -> None:
        self.encoder, self.kmeans = HubertLayer(hubert, layer, device), KMeansUnits.load(kmeans)
        width = self.kmeans.centroids.shape[1]
        if width != self.encoder.dim:
            raise ValueError(f"{kmeans}: its centroids have width {width}, the states of {hubert} {self.encoder.dim}")
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
            clips = list(pool.map(lambda place: _clip(place[2]), places))
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
        for batch in batches([len(clip) for _, clip in whole], self.samples):
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
    if args.out.exists():
        raise ValueError(f"{args.out}: exists already; delete it, or give another name")
    clips = sorted({clip for name in resolve(args.data) for clip in _sounds(name)})
    random.Random(args.seed).shuffle(clips)
    labelled = _labels(args.labels) if args.labels else {}
    if labelled and not (clips := [clip for clip in clips if clip in labelled]):
        raise ValueError(f"{args.labels}: names none of the clips of the data")
    encoder = HubertLayer(args.hubert, args.layer, args.device)
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
    write_json(args.out.with_suffix(".json"), report)
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
