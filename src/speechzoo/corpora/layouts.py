"""Speech corpora as they are published: folders of clips and transcripts become clips with text.

lhotse's recipes know these layouts too, but leave out what is broken with a log line, or end at it, and hold a whole
corpus in memory; here every clip that cannot be used is named. What only lhotse reads comes in by the manifests that
`lhotse prepare` writes (`lhotse=...supervisions....jsonl.gz`).
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from speechzoo.corpora.stage import Broken

Clip = tuple[str, dict[str, Any] | Broken]
"""Id inside the corpus, and `audio`, `text`, `language`, `voice`; or why there are none."""

LICENCES = {
    "librispeech": "CC-BY-4.0",
    "aishell": "Apache-2.0",
    "magicdata": "CC-BY-NC-ND-4.0",
    "primewords": "CC-BY-NC-ND-4.0",
    "commonvoice": "CC0-1.0",
}
"""As the corpora's pages give them (OpenSLR 12, 33, 68, 47; Mozilla)."""

DAMAGED = ("16_4013_20170819121429", "18_1565_20170712000170")
"""Clips of MagicData that lhotse's recipe leaves out as bad; here they count as clips without a transcript."""

NO_TEXT, NO_SOUND = "no transcript", "no sound file"


def librispeech(folder: Path, part: str) -> Iterator[Clip]:
    """`PART/SPEAKER/CHAPTER/{SPEAKER-CHAPTER.trans.txt, ID.flac}`; part `train` stands for all parts that begin so."""
    root = folder / "LibriSpeech" if (folder / "LibriSpeech").is_dir() else folder
    for name in _parts(root, part):
        for chapter in sorted(path for path in (root / name).glob("*/*") if path.is_dir()):
            texts: dict[str, str] = {}
            for file in sorted(chapter.glob("*.trans.txt")):
                texts |= dict(_split(line) for line in _lines(file))
            files = {path.stem: path for path in chapter.glob("*.flac")}
            yield from _paired(texts, files, "en", dict.fromkeys(texts, chapter.parent.name))


def aishell(folder: Path, part: str) -> Iterator[Clip]:
    """`data_aishell/transcript/aishell_transcript_v0.8.txt`, `data_aishell/wav/PART/SPEAKER/ID.wav`.

    The blanks that the transcripts put between words are taken out, as recognisers of Chinese are trained.
    """
    root = folder / "data_aishell" if (folder / "data_aishell").is_dir() else folder
    texts = dict(_split(line) for line in _lines(root / "transcript" / "aishell_transcript_v0.8.txt"))
    (name,) = _parts(root / "wav", part, one=True)
    files = {path.stem: path for path in (root / "wav" / name).glob("*/*.wav")}
    spoken = {key: "".join(text.split()) for key, text in texts.items() if key in files}
    yield from _paired(spoken, files, "zh", {key: file.parent.name for key, file in files.items()})


def magicdata(folder: Path, part: str) -> Iterator[Clip]:
    """`PART/TRANS.txt` (UtteranceID, SpeakerID, Transcription, tabs between), `PART/SPEAKER/ID.wav`."""
    (name,) = _parts(folder, part, one=True)
    rows = [line.split("\t") for line in _lines(folder / name / "TRANS.txt") if not line.startswith(DAMAGED)]
    texts = {row[0].removesuffix(".wav"): row[2] for row in rows if len(row) > 2 and row[0] != "UtteranceID"}
    files = {path.stem: path for path in (folder / name).glob("*/*.wav")}
    speakers = {row[0].removesuffix(".wav"): row[1] for row in rows if len(row) > 2}
    yield from _paired(texts, files, "zh", speakers)


def primewords(folder: Path, part: str) -> Iterator[Clip]:
    """`set1_transcript.json` ({file, text, user_id}), `audio_files/?/??/ID.wav`; there is one part, `train`."""
    name = "primewords_md_2018_set1"
    root = folder / name if (folder / name).is_dir() else folder
    if part != "train":
        raise ValueError(f"{root}: Primewords has no part {part}, only train")
    file = root / "set1_transcript.json"
    try:
        rows = {Path(row["file"]).stem: row for row in json.loads(_text(file))}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: is not the transcript of Primewords ({error!r}): copy it again") from error
    files = {path.stem: path for path in (root / "audio_files").glob("**/*.wav")}
    texts = {key: "".join(str(row.get("text", "")).split()) for key, row in rows.items()}
    yield from _paired(texts, files, "zh", {key: str(row.get("user_id", "")) for key, row in rows.items()})


def commonvoice(folder: Path, part: str) -> Iterator[Clip]:
    """`LANGUAGE/PART.tsv` (path, sentence, client_id), `LANGUAGE/clips/`; the folder is that of the language."""
    file = folder / f"{part}.tsv"
    language = folder.resolve().name.split("-")[0]
    # Sentences hold lone quotation marks.
    rows = csv.DictReader(_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    if not {"path", "sentence"} <= {*(rows.fieldnames or ())}:
        raise ValueError(f"{file}: has no columns path and sentence; is it Common Voice's?")
    for number, row in enumerate(rows, start=1):
        name, text = row["path"], row["sentence"] or ""
        if not name:
            yield f"#{number}", Broken(NO_SOUND, f"{file}, row {number} names none")
            continue
        clip = folder / "clips" / name
        there = {clip.stem: clip} if clip.is_file() else {}
        yield from _paired({clip.stem: text}, there, language, {clip.stem: row.get("client_id") or ""})


def lhotse(file: Path, _: str) -> Iterator[Clip]:
    """A `*supervisions*.jsonl.gz` that `lhotse prepare` wrote, its `*recordings*` beside it; whole recordings only."""
    if "supervisions" not in file.name:
        raise ValueError(f"{file}: name a *supervisions*.jsonl.gz, which lies beside its *recordings*.jsonl.gz")
    beside = file.with_name(file.name.replace("supervisions", "recordings"))
    recordings = {row["id"]: row for row in _json(beside, "id", "duration", "sources")}
    for row in _json(file, "id", "recording_id", "duration"):
        recording = recordings.get(row["recording_id"])
        if recording is None:
            yield row["id"], Broken(NO_SOUND, f"recording {row['recording_id']} is not in the manifest")
        elif abs(row["duration"] - recording["duration"]) > 0.01:
            yield row["id"], Broken("part of a recording", f"{row['duration']} s of {recording['duration']} s")
        elif not recording["sources"] or "source" not in recording["sources"][0]:
            yield row["id"], Broken(NO_SOUND, f"recording {row['recording_id']} names no source")
        else:
            audio = Path(recording["sources"][0]["source"])
            language = {"English": "en", "Chinese": "zh"}.get(str(row.get("language")), row.get("language") or "")
            texts = {row["id"]: str(row.get("text") or "")}
            yield from _paired(texts, {row["id"]: audio}, language, {row["id"]: row.get("speaker") or ""})


CORPORA: dict[str, Callable[[Path, str], Iterator[Clip]]] = {
    "librispeech": librispeech,
    "aishell": aishell,
    "magicdata": magicdata,
    "primewords": primewords,
    "commonvoice": commonvoice,
    "lhotse": lhotse,
}


def _paired(texts: dict[str, str], files: dict[str, Path], language: str, voices: dict[str, str]) -> Iterator[Clip]:
    """Transcripts and clips by their ids, in order; what lacks its other half is broken."""
    for key in sorted({*texts, *files}):
        if key not in files:
            yield key, Broken(NO_SOUND, f"{key} has a transcript alone")
        elif not texts.get(key, "").strip():
            yield key, Broken(NO_TEXT, str(files[key]))
        else:
            about = {"audio": str(files[key].absolute()), "text": texts[key].strip(), "language": language}
            yield key, {**about, "voice": voices.get(key, "")}


def _parts(root: Path, part: str, one: bool = False) -> list[str]:
    """Folders of a corpus that a part names.

    Raises:
        FileNotFoundError: if there are none.
    """
    there = sorted(path.name for path in root.glob("*") if path.is_dir()) if root.is_dir() else []
    found = [name for name in there if name == part or (not one and name.startswith(f"{part}-"))]
    if not found:
        told = f"its folders: {', '.join(there[:8])}" if there else "it is missing or empty"
        raise FileNotFoundError(
            f"{root}: has no part {part} ({told}): name the folder that the archive was unpacked to"
        )
    return found


def _text(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such transcript; is the folder the one the archive was unpacked to?")
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not UTF-8 ({error}): copy it again, or convert it") from error


def _lines(file: Path) -> Iterable[str]:
    return [line for line in _text(file).split("\n") if line.strip()]


def _split(line: str) -> tuple[str, str]:
    key, _, text = line.strip().partition(" ")
    return key, text


def _json(file: Path, *keys: str) -> Iterator[dict[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such manifest of lhotse")
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if lacks := [key for key in keys if key not in row]:
                    raise ValueError(f"a line has no {lacks[0]}")
                yield row
    except (EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file}: cannot be read as a manifest of lhotse ({error}): prepare it again") from error
