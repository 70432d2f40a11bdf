"""Speak English text with a Piper voice: lexicon, phonemes, ONNX synthesis. Equal calls give equal samples.

Piper's own front end is espeak-ng (GPL). A pronunciation lexicon in espeak notation and a few rules of connected speech
replace it here, so only words of the lexicon can be spoken, and numbers and signs that `in_words` reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime

from speechzoo.parts.piper import LATENT_CHANNELS, LATENTS, NOISE_INPUTS
from speechzoo.parts.registry import fetch
from speechzoo.text.reading import in_words

# Where the lexicon's first entry is not the form that a sentence needs. "Is" and "in" carry stress: this voice swallows
# them otherwise, and a recogniser hears "the capital of Peru as Lima".
_IN_A_SENTENCE = {
    "i": "aɪ", "am": "æm", "it": "ɪt", "can": "kæn", "live": "lˈɪv", "after": "ˈæftɚ", "is": "ˈɪz", "in": "ˈɪn",
}  # fmt: skip
_VOWELS = frozenset("aæɐɑɒeəɚɛɜiɪᵻoɔuʊʌ")
_PUNCTUATION = frozenset(".,;:?!")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|[.,;:?!]|\s+|.", re.IGNORECASE | re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.?!])\s+")
_SEED_SPACING = 1009  # sentences of one text get seeds that far apart


class PiperVoice:
    """A Piper voice (VITS) run by onnxruntime on one thread.

    Args:
        onnx_path: a voice rewritten by `make_reproducible`, as the part ``piper-joe`` has it done.
        config_path: the voice's json, with its phoneme ids and sample rate.
        lexicon_path: sqlite file with a table ``word_phonemes(word, pron_order, phonemes, role)`` in espeak notation.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: the voice draws its own random numbers (`make_reproducible` was not run on it).
    """

    def __init__(self, onnx_path: str | Path, config_path: str | Path, lexicon_path: str | Path) -> None:
        for path in (onnx_path, config_path, lexicon_path):
            if not Path(path).is_file():
                raise FileNotFoundError(f"{path}: no such file; `speechzoo.parts.registry.fetch` gets it")
        self.paths = (Path(onnx_path), Path(config_path), Path(lexicon_path))
        config = json.loads(Path(config_path).read_text(encoding="utf-8"))
        self.sample_rate: int = config["audio"]["sample_rate"]  # Hz
        self._ids: dict[str, list[int]] = config["phoneme_id_map"]
        self._lexicon = sqlite3.connect(f"{Path(lexicon_path).resolve().as_uri()}?mode=ro", uri=True)
        self._known: dict[str, str] = dict(_IN_A_SENTENCE)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(onnx_path), options, providers=["CPUExecutionProvider"])
        if not NOISE_INPUTS.keys() <= {given.name for given in self._session.get_inputs()}:
            raise ValueError(f"{onnx_path}: has no noise inputs; run `speechzoo.parts.piper.make_reproducible` on it")

    @classmethod
    def joe(cls) -> PiperVoice:
        """The quickstart's voice, fetched if it is not there yet."""
        folder = fetch("piper-joe")
        return cls(folder / "voice.onnx", folder / "voice.onnx.json", fetch("english-lexicon"))

    @cached_property
    def fingerprint(self) -> str:
        """Tells this voice's sound from any other's: a sha256 over the network and its configuration."""
        return hashlib.sha256(self.paths[0].read_bytes() + self.paths[1].read_bytes()).hexdigest()

    def word(self, word: str) -> str:
        """Return one word's phonemes in espeak notation.

        Raises:
            ValueError: the lexicon does not hold the word.
        """
        word = word.lower()
        if word not in self._known:
            query = "SELECT phonemes FROM word_phonemes WHERE word = ? ORDER BY pron_order LIMIT 1"
            row = self._lexicon.execute(query, (word,)).fetchone()
            if row is None:
                raise ValueError(f"the lexicon does not hold the word {word!r}, so it cannot be spoken")
            self._known[word] = row[0].replace(" ", "")
        return self._known[word]

    def phonemes(self, text: str) -> list[str]:
        """Return the phonemes of a text, one code point each, with punctuation and the blanks between words.

        Raises:
            ValueError: a word that the lexicon does not hold, or a sign that `in_words` leaves.
        """
        tokens = [token for token in _TOKEN.findall(in_words(text)) if not token.isspace()]
        for token in tokens:
            if token not in _PUNCTUATION and not (token.isascii() and token[0].isalpha()):
                raise ValueError(f"{token!r} in {text!r} is not a word; write it as words")
        spoken = [token if token in _PUNCTUATION else self.word(token) for token in tokens]
        joined = ""
        for token, sound, following in zip(tokens, spoken, [*spoken[1:], ""], strict=True):
            if following.lstrip("ˈˌ")[:1] in _VOWELS:
                if token.lower() == "the":
                    sound = "ðɪʲ"
                elif sound.endswith("ɚ"):
                    sound += "ɹ"
            joined += sound if token in _PUNCTUATION or not joined else f" {sound}"
        return list(unicodedata.normalize("NFD", joined))

    def can_say(self, text: str) -> bool:
        """Whether a text is nothing but words of the lexicon, with its numbers written out."""
        if in_words(text) != text:
            return False
        try:
            self.phonemes(text)
        except ValueError:
            return False
        return True

    def speak(self, text: str, speed: float = 1.0, noise: float = 0.0, seed: int = 0) -> np.ndarray:
        """Return the spoken text: float32 ``[T]`` in [-1, 1] at `sample_rate`.

        Args:
            text: one or more sentences; each is spoken by itself and they are joined.
            speed: speaking rate, 1.0 is the voice's own; 1.15 is 15 % faster.
            noise: 0 gives the voice's mean reading; 1 the variation in timing and sound it was tuned for.
            seed: which variation; without noise it changes nothing.

        Raises:
            ValueError: the text is empty or holds something the lexicon lacks.
        """
        return self.speak_with_latents(text, speed, noise, seed)[0]

    def speak_with_latents(
        self, text: str, speed: float = 1.0, noise: float = 0.0, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `speak` does, and what the voice's waveform generator was given for it.

        Shape of the latter: ``[frames, 192]`` float32, one frame per 256 samples.
        """
        runs = list(self._run(text, speed, noise, seed))
        samples = np.concatenate([wave.reshape(-1) for wave, _ in runs]).clip(-1.0, 1.0)
        return samples, np.concatenate([latent[0].T for _, latent in runs])

    def _run(self, text: str, speed: float, noise: float, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        sentences = [sentence for sentence in _SENTENCE.split(text.strip()) if sentence]
        if not sentences:
            raise ValueError("there is no text to speak")
        for index, sentence in enumerate(sentences):
            ids = self._phoneme_ids(sentence)
            rng = np.random.default_rng(seed + _SEED_SPACING * index)
            frames = int(64 + 40 * len(ids) / speed)  # more than any reading takes; the graph cuts what it needs
            shapes = {"duration_noise": (1, 2, len(ids)), "latent_noise": (1, LATENT_CHANNELS, frames)}
            inputs: dict[str, np.ndarray] = {
                "input": np.array([ids], dtype=np.int64),
                "input_lengths": np.array([len(ids)], dtype=np.int64),
                # latent noise, length, duration noise; 0.667 and 0.8 are Piper's own values
                "scales": np.array([0.667 * noise, 1.0 / speed, 0.8 * noise], dtype=np.float32),
            }
            for name, shape in shapes.items():
                drawn = rng.standard_normal(shape, dtype=np.float32) if noise else np.zeros(shape, dtype=np.float32)
                inputs[name] = drawn
            wave, latents = self._session.run(["output", LATENTS], inputs)
            yield wave, latents

    def _phoneme_ids(self, sentence: str) -> list[int]:
        # ^ _ p _ p _ ... $: the pad between any two phonemes is what the voice was trained with.
        pad = self._ids["_"]
        ids = [*self._ids["^"], *pad]
        for phoneme in self.phonemes(sentence):
            ids += [*self._ids[phoneme], *pad]
        return [*ids, *self._ids["$"]]
