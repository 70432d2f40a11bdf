"""Records kept apart for validation."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from speechzoo.corpora.card import DATA
from speechzoo.names.spec import at_least
from speechzoo.system.files import read_lines, telling_room, write_atomically

TRAIN, VAL = "train.jsonl", "val.jsonl"


def split(folder: Path, val: int) -> None:
    """Write `train.jsonl` and `val.jsonl` of a joined data set: its records in their order, `val` of them apart.

    Which ones depends on what they hold alone, so that another order or more records change little.

    Raises:
        ValueError: if nothing would be left to train with, or for a number below 0.
    """
    at_least(0, "split", val=val)
    drawn = [(sha256(line.encode()).digest(), number) for number, line in read_lines(folder / DATA)]
    if len(drawn) <= val:
        raise ValueError(f"--val {val}: the data set has {len(drawn)} records, which leaves none to train with")
    apart = {number for _, number in sorted(drawn)[:val]}
    for name, wanted in ((TRAIN, False), (VAL, True)):
        kept = (f"{line.rstrip()}\n" for number, line in read_lines(folder / DATA) if (number in apart) == wanted)
        with telling_room(folder / name, None):
            write_atomically(folder / name, "".join(kept))
