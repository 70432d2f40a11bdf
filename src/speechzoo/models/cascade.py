"""The cascade both papers argue against: a recogniser writes the question down, a text LLM answers it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from whisper.decoding import DecodingOptions, decode
from whisper.model import Whisper

from speechzoo.audio import log_mel
from speechzoo.encoders.whisper_weights import load_whisper
from speechzoo.generation.events import Speaker, Voice, answer_events, check_question
from speechzoo.generation.sampling import Decoding
from speechzoo.llms import LLM
from speechzoo.names.spec import to_factory, to_spec
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO, SpeechBatch, SpeechReply, StreamEvents

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
REPEATS = 2.4
"""Length over compressed length from which a transcription counts as a loop (both from openai-whisper's transcribe)."""


@torch.no_grad()
def transcribe(recognizer: Whisper, audio: Tensor, audio_lens: Tensor, language: str = "en") -> list[str]:
    """What Whisper hears in clips of at most 30 s. Shape: `[N, T], [N] -> N texts`.

    Greedy; a transcription that repeats itself is made again by sampling, at rising temperatures, as openai-whisper
    does for long recordings. The same clips always give the same texts.
    """
    mel, _ = log_mel(audio, audio_lens, recognizer.dims.n_mels)
    options = DecodingOptions(language=language, without_timestamps=True, fp16=mel.is_cuda)
    texts = [""] * len(mel)
    left = list(range(len(mel)))
    devices = [mel.device] if mel.is_cuda else []
    # whisper checks that its states have its own dtype
    with torch.autocast(mel.device.type, enabled=False), torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for temperature in TEMPERATURES:
            results = decode(recognizer, mel[left], replace(options, temperature=temperature))
            for row, result in zip(left, results, strict=True):
                texts[row] = result.text.strip()
            left = [row for row, r in zip(left, results, strict=True) if r.compression_ratio > REPEATS]
            if not left:
                break
    return texts


class Cascade(nn.Module):
    """Whisper's transcription put in the clip's place, then an ordinary LLM; asked like every other model.

    Whisper hears 30 s windows here, whatever the compared models do: its decoder loops on trimmed features.

    Args:
        recognizer: Whisper's name, file or folder (see `load_whisper`).
        llm: makes the language model, or is one: the LLM of a trained model can be shared.
        prompt: makes the chat prompt, or is one.
        language: of the speech, as Whisper's code.
        generation: see `SpeechLLM`.
    """

    def __init__(
        self,
        recognizer: str,
        llm: LLM | Callable[[list[int]], LLM],
        prompt: ChatPrompt | Callable[[], ChatPrompt],
        language: str = "en",
        generation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.prompt = prompt if isinstance(prompt, ChatPrompt) else to_factory(to_spec(prompt))()
        self.llm = llm if isinstance(llm, LLM) else to_factory(to_spec(llm))(self.prompt.new_tokens)
        self.recognizer, _ = load_whisper(recognizer)
        self.language, self.generation = language, Decoding.defaults(generation)
        self.eval()

    def transcribe(self, audio: Tensor, audio_lens: Tensor) -> list[str]:
        """What Whisper hears in clips of at most 30 s, see `transcribe`. Shape: `[N, T], [N] -> N texts`."""
        return transcribe(self.recognizer, audio, audio_lens, self.language)

    @torch.no_grad()
    def respond(self, batch: SpeechBatch, **generate: Any) -> SpeechReply:
        """Answer each row; `heard` holds the transcriptions of all clips, row by row.

        Raises:
            ValueError: if the batch holds cached features instead of sound, or an empty clip.
        """
        text, heard = self.read(batch)
        options = Decoding.merged(self.prompt.stop_ids, self.generation, generate)
        ids, stop = self.llm.generate(*self._prompt(text), **options), Decoding.of(**options).stop_ids
        stopped = [len(row) > 0 and int(row[-1]) in stop for row in ids]
        return SpeechReply([self.prompt.decode(row) for row in ids], heard=heard, stopped=stopped)

    def stream(self, batch: SpeechBatch, voice: Voice | None = None, **generate: Any) -> StreamEvents:
        """Answer each row in events, as `SpeechLLM.stream`: text while it is written and, with a voice, each sentence's
        sound as soon as the sentence is complete.

        Raises:
            ValueError: if a clip is empty, or a setting is unknown or out of range; the rest as `respond`, with the
                first event.
        """
        check_question(batch)
        speaker = Speaker(voice=voice)
        options = Decoding.merged(self.prompt.stop_ids, self.generation, generate)
        return self._stream(batch, speaker, options, Decoding.of(**options).stop_ids)

    def _stream(
        self, batch: SpeechBatch, speaker: Speaker, options: dict[str, Any], stop_ids: set[int]
    ) -> StreamEvents:
        start = time.perf_counter()
        text, heard = self.read(batch)
        clips = ((batch.input_ids == AUDIO) & batch.attention_mask).sum(dim=1).tolist()
        each = [[heard.pop(0) for _ in range(number)] for number in clips]
        steps = self.llm.steps(*self._prompt(text), **options)
        yield from answer_events(self.prompt, steps, len(batch), speaker, stop_ids, start, heard=each)

    def read(self, batch: SpeechBatch) -> tuple[SpeechBatch, list[str]]:
        """The batch as text, and the transcriptions of all clips, row by row.

        Raises:
            ValueError: if the batch holds cached features instead of sound, or an empty clip.
        """
        check_question(batch)
        if batch.features is not None and batch.audio is None:
            raise ValueError("a cascade needs the sound itself: make the batch without a feature cache")
        clips = batch.clips
        heard = [] if clips is None else self.transcribe(*clips)
        return self.with_text(batch, heard), heard

    def _prompt(self, text: SpeechBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Arguments of the LLM for rows without clips."""
        ids = text.input_ids
        return ids, text.attention_mask, torch.zeros(0, 1, self.llm.dim, device=ids.device), ids.new_zeros(0)

    def with_text(self, batch: SpeechBatch, heard: list[str]) -> SpeechBatch:
        """The batch with each clip (and the tokens that frame it) replaced by a text, left-padded. For generation."""
        rows, clips = [], iter(heard)
        frame = set(self.prompt.audio_token_ids)
        for ids, mask in zip(batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True):
            row: list[int] = []
            for token, keep in zip(ids, mask, strict=True):
                if keep and token == AUDIO:
                    row += self.prompt.tokenizer.encode(next(clips), add_special_tokens=False)
                elif keep and token not in frame:
                    row.append(token)
            rows.append(row)
        width = max(map(len, rows))
        padded = torch.tensor([[self.prompt.pad_id] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
        device = batch.input_ids.device
        return replace(
            batch,
            input_ids=padded.to(device),
            attention_mask=mask.to(device),
            turns=torch.zeros_like(padded).to(device),
            audio=None,
            audio_lens=None,
            counts=None,
        )
