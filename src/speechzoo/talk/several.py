"""Several models on one page: opened by name, each with the sound it can make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speechzoo.talk.sources import CASCADE, Talker, open_talker
from speechzoo.vocoders import open_vocoder


def open_all(
    sources: Sequence[str], vocoder: str | None, device: str | None, trust_code: bool = False
) -> dict[str, Talker]:
    """Models by name; a vocoder goes to those whose units it knows.

    Args:
        sources: `MODEL` or `NAME=MODEL`; the name otherwise is the last part of the path.
        trust_code: see `open_talker`.

    Raises:
        ValueError, FileNotFoundError: see `open_talker`; also if the vocoder is for none of them.
    """
    talkers: dict[str, Talker] = {}
    for source in sources:
        name, rest = named(source)
        name = name or short(rest)
        while name in talkers:
            name += "'"
        talkers[name] = open_talker(rest, device=device, trust_code=trust_code)
    if vocoder is not None:
        sound = open_vocoder(vocoder)
        speaking = [t for t in talkers.values() if getattr(t.model, "num_units", None) == sound.num_units]
        if not speaking:
            raise ValueError(f"--vocoder {vocoder}: knows {sound.num_units} units, which none of the models speaks")
        for talker in speaking:
            talker.sound = {"vocoder": sound.to(next(talker.model.parameters()).device)}
    return talkers


def named(given: str) -> tuple[str, str]:
    """Name and model of `NAME=MODEL`, the first empty where a model is given alone; its path may hold a "="."""
    parts = given.split("=")
    splits = [("=".join(parts[:at]), "=".join(parts[at:])) for at in range(len(parts))]
    return next((split for split in splits if Path(split[1]).exists()), splits[-1])


def short(source: str) -> str:
    """The name of a model that is given none."""
    kind = "cascade " if source.startswith(CASCADE) else ""
    return kind + (Path(source.removeprefix(CASCADE)).name or source)
