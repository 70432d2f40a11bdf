"""Speak question and answer pairs and list them as the project's JSONL manifests: the quickstart's training corpus.

``pairs.jsonl`` is the corpus itself, one record a line: ``{"id", "split", "kind", "unseen", "question", "answer",
"question_audio", "answer_audio", "rate"}``, audio paths relative to the file. Audio is 16 kHz, mono, 16-bit FLAC.
The voice's latents of each answer (``[frames, 192]``) are kept too, at `latents_of` its audio: the targets of the
quickstart's vocoder.
"""

from __future__ import annotations

import hashlib
import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from speechzoo.data.instructions import asr_messages
from speechzoo.quickstart.more_names import named_sentences
from speechzoo.quickstart.questions import Pair
from speechzoo.quickstart.speaking import Utterance, speak_missing
from speechzoo.quickstart.voice import PiperVoice
from speechzoo.system.files import read_jsonl, write_jsonl

QUESTION_RATES = (0.9, 1.0, 1.15)  # 1.0 is the voice's own
TEXT_EVERY = 3
LATENTS = "latents"  # folder beside "audio"
QUESTION_NOISE = 0.5  # answers have none, so that equal words give equal sound and unit targets


def build_corpus(
    out_dir: str | Path,
    voice: PiperVoice,
    pairs: Sequence[Pair],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Speak every question and answer and write ``pairs.jsonl``; return its records.

    A question's speaking rate and variation depend on its text alone; an answer that occurs twice is spoken once. File
    names tell voice, phonemes and settings apart, so finished files of an earlier, interrupted run are kept.

    Args:
        out_dir: the corpus folder, made if missing.
        voice: who speaks.
        pairs: what is said, e.g. from `speechzoo.quickstart.questions.make_pairs`.
        workers: processes; all cores by default, 1 works in this process.
        progress: called as ``progress(done, total)`` with numbers of audio files.

    Raises:
        ValueError: there are no pairs, or a text holds a word that the voice's lexicon lacks; nothing is written then.
    """
    out_dir = Path(out_dir)
    if not pairs:
        raise ValueError(f"{out_dir}: there are no pairs to speak")
    planned = [_plan(pair, voice) for pair in pairs]
    utterances = {utterance.file: utterance for both in planned for utterance in both}
    speak_missing(out_dir, voice, list(utterances.values()), workers, progress)
    numbers = {"train": 0, "test": 0}
    records = []
    for pair, (question, answer) in zip(pairs, planned, strict=True):
        record = _record(pair, numbers[pair.split], question)
        records.append(record | {"answer_audio": answer.file})
        numbers[pair.split] += 1
    write_jsonl(out_dir / "pairs.jsonl", records)
    return records


def speak_questions(out_dir: Path, voice: PiperVoice, pairs: Sequence[Pair], workers: int) -> None:
    """Speak the questions alone, as `build_corpus` does, and write `pairs.jsonl` with one record for each.

    What an interrupted call finished is kept.
    """
    planned = [_plan(pair, voice)[0] for pair in pairs]
    speak_missing(out_dir, voice, planned, workers)
    records = [_record(pair, number, said) for number, (pair, said) in enumerate(zip(pairs, planned, strict=True))]
    write_jsonl(out_dir / "pairs.jsonl", records)


def speak_names(
    out_dir: Path, voice: PiperVoice, number: int, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> None:
    """Speak sentences with names and cities that no question holds (see `quickstart.more_names`), as questions are
    spoken, and list them in ``names_train.jsonl`` under a recognition instruction.

    Args:
        out_dir: a folder that `build_corpus` filled.
        voice: who speaks; sentences with a word that its lexicon lacks are left out.
        number: of sentences at most.
        seed: draws them and their instructions.
        progress: called as ``progress(done, total)`` with numbers of clips.
    """
    rng = random.Random(seed)
    texts = [text for text in named_sentences(rng) if voice.can_say(text)]
    said = [_asked(text, voice) for text in rng.sample(texts, min(len(texts), number))]
    speak_missing(out_dir, voice, said, progress=progress)
    rows = [
        {"id": f"name-{index:04d}", "messages": asr_messages(utterance.file, utterance.text, "en", rng)}
        for index, utterance in enumerate(said)
    ]
    write_jsonl(out_dir / "names_train.jsonl", rows)


def write_manifests(out_dir: str | Path, seed: int = 0) -> dict[str, Path]:
    """Write the corpus as the project's manifests, beside ``pairs.jsonl``; return their paths by name.

    ``asr_train`` holds every training question and every different training answer under a recognition instruction,
    ``asr_test`` the test questions; ``qa_train`` and ``qa_test`` hold spoken questions (audio alone) with text and
    spoken answers, ``qa_text_train`` every third training question as text, so that the LLM goes on reading and the
    cascade has a fair one.

    Args:
        out_dir: a folder that `build_corpus` filled.
        seed: draws the instructions and their place before or after the audio.

    Raises:
        FileNotFoundError: there is no ``pairs.jsonl`` in the folder.
    """
    out_dir = Path(out_dir)
    source = out_dir / "pairs.jsonl"
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file; build_corpus makes it")
    pairs = read_jsonl(source)
    rng = random.Random(seed)
    manifests: dict[str, list[dict[str, Any]]] = {}
    for split in ("train", "test"):
        rows = [pair for pair in pairs if pair["split"] == split]
        clips = [(f"{row['id']}-question", row["question_audio"], row["question"]) for row in rows]
        if split == "train":
            answers = {row["answer_audio"]: (f"{row['id']}-answer", row["answer_audio"], row["answer"]) for row in rows}
            clips += answers.values()
        manifests[f"asr_{split}"] = [
            {"id": name, "messages": asr_messages(audio, text, "en", rng)} for name, audio, text in clips
        ]
        manifests[f"qa_{split}"] = [{"id": row["id"], "messages": _conversation(row)} for row in rows]
        if split == "train":
            manifests["qa_text_train"] = [
                {"id": f"{row['id']}-text", "messages": _written(row)} for row in rows[::TEXT_EVERY]
            ]
    paths = {name: out_dir / f"{name}.jsonl" for name in manifests}
    for name, records in manifests.items():
        write_jsonl(paths[name], records)
    return paths


def latents_of(audio: str) -> str:
    """Where the corpus keeps the latents of an answer's audio file; both paths are relative to the corpus."""
    return f"{LATENTS}/{Path(audio).stem}.safetensors"


def _conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": [{"type": "audio", "path": row["question_audio"], "transcript": row["question"]}]},
        {"role": "assistant", "content": row["answer"], "audio": row["answer_audio"]},
    ]


def _written(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


def _record(pair: Pair, number: int, question: Utterance) -> dict[str, Any]:
    named = {"id": f"{pair.split}-{number:04d}"} | asdict(pair)
    return named | {"question_audio": question.file, "rate": question.speed}


def _plan(pair: Pair, voice: PiperVoice) -> tuple[Utterance, Utterance]:
    answer = _utterance(pair.answer, 1.0, 0.0, 0, voice)
    return _asked(pair.question, voice), replace(answer, latents=latents_of(answer.file))


def _asked(text: str, voice: PiperVoice) -> Utterance:
    seed = zlib.crc32(text.encode())
    return _utterance(text, random.Random(seed).choice(QUESTION_RATES), QUESTION_NOISE, seed, voice)


def _utterance(text: str, speed: float, noise: float, seed: int, voice: PiperVoice) -> Utterance:
    said = "".join(voice.phonemes(text))
    key = hashlib.sha256(f"{voice.fingerprint} {said} {speed} {noise} {seed}".encode()).hexdigest()
    name = re.sub(r"[^a-z]+", "-", text.lower()).strip("-")[:60]
    return Utterance(text, speed, noise, seed, f"audio/{name}-{key[:10]}.flac")
