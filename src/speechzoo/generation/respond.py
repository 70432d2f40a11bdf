"""Asking a speech LLM: the whole reply, or events while it is being written."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speechzoo.generation.events import Speaker, answer_events, check_question
from speechzoo.generation.refill import replies
from speechzoo.generation.sampling import Decoding
from speechzoo.generation.tokens import Question
from speechzoo.generation.units import spoken
from speechzoo.system.ranks import is_sharded
from speechzoo.text import ChatPrompt
from speechzoo.types import SpeechBatch, SpeechReply, StreamEvents

if TYPE_CHECKING:
    from speechzoo.llms import LLM
    from speechzoo.units import UnitDecoder
    from speechzoo.vocoders import Vocoder


class Answering:
    """The part of `SpeechLLM` that answers."""

    prompt: ChatPrompt
    llm: LLM
    generation: dict[str, Any]  # settings of answers where the caller gives none

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """LLM positions of all clips, `[N, A, H]`, `[N]`."""
        raise NotImplementedError

    @torch.no_grad()
    def respond(self, batch: SpeechBatch, **generate: Any) -> SpeechReply:
        """Answer each row: what `stream` gives, collected; as `generation` says unless told otherwise (see
        `Decoding`)."""
        check_question(batch)
        options, decoder, units = self.answer_options(**generate), self.answer_decoder, None
        slots = options.get("slots")
        if slots is not None and slots < len(batch) and not is_sharded(self.llm):
            parts = list(self.respond_all(batch.split(slots), **generate))  # clips too are encoded so many at a time
            return SpeechReply(
                [text for part in parts for text in part.text],
                units=None if decoder is None else [row for part in parts for row in part.units or []],
                stopped=[stopped for part in parts for stopped in part.stopped or []],
            )
        question = batch.input_ids, batch.attention_mask, *self.encode(batch)
        if decoder is None:
            ids = self.llm.generate(*question, **options)
        else:
            answer = self.llm.generate_states(*question, read_last=decoder.reads_last, **options)
            ids, units = answer.ids, spoken(decoder, answer.states, answer.lens, answer.ids)
        text = [self.prompt.decode(row) for row in ids]
        return SpeechReply(text, units=units, stopped=self.stopped(ids, **generate))

    def respond_all(self, batches: Iterable[SpeechBatch], **generate: Any) -> Iterator[SpeechReply]:
        """Replies to batches (on the model's device) in their order, `slots` answers at a time; see `replies`.

        A model that is cut over processes answers batch after batch.

        Raises:
            ValueError: if a clip is empty, or a setting is unknown or out of range.
        """
        if is_sharded(self.llm):
            yield from (self.respond(batch, **generate) for batch in batches)
            return

        def questions() -> Iterator[Question]:
            for batch in batches:
                check_question(batch)
                yield batch.input_ids, batch.attention_mask, *self.encode(batch)

        yield from replies(self.llm, questions(), self.prompt, self.answer_decoder, **self.answer_options(**generate))

    def answer_ids(self, batch: SpeechBatch, speech: Tensor, speech_lens: Tensor, **generate: Any) -> list[Tensor]:
        """Generated ids of each row, without the prompt, for clips that are encoded already. `B times [M]`."""
        options = self.answer_options(**generate)
        return self.llm.generate(batch.input_ids, batch.attention_mask, speech, speech_lens, **options)

    def answer_options(self, **generate: Any) -> dict[str, Any]:
        """All settings of an answer: those given, the model's own, the prompt's stop tokens."""
        return Decoding.merged(self.prompt.stop_ids, self.generation, generate)

    def stopped(self, ids: list[Tensor], **generate: Any) -> list[bool]:
        """Whether each answer ended by a stop token, not cut off by `max_new_tokens`."""
        stop = Decoding.of(**self.answer_options(**generate)).stop_ids
        return [len(row) > 0 and int(row[-1]) in stop for row in ids]

    def stream(
        self,
        batch: SpeechBatch,
        vocoder: Vocoder | None = None,
        chunk_units: int = 40,
        context_units: int | None = None,
        unit_tokens: int | None = None,
        **generate: Any,
    ) -> StreamEvents:
        """Answer each row, in events while it is being written; closing the iterator frees all it holds.

        Rows are answered together, each as if it were alone, and each ends with its `StreamEnd`.

        Args:
            vocoder: makes sound of units; without one there are no `AudioChunk`s.
            chunk_units: units the vocoder waits for, the paper's Omega.
            context_units: see `Vocoder.stream`.
            unit_tokens: tokens whose units are made together once the first `chunk_units` units are out, see `Speaker`.
            generate: see `Decoding`.

        Raises:
            ValueError: if a clip is empty, a setting is unknown or out of range, or the vocoder is not for this
                model's units. What only shows on the way (a clip that is too long, a prompt without its clips) comes
                with the first event.
        """
        check_question(batch)
        speaker = Speaker(self.answer_decoder, vocoder, chunk_units, context_units, unit_tokens)
        options = self.answer_options(**generate)
        return self._stream(batch, speaker, options, Decoding.of(**options).stop_ids)

    @property
    def answer_decoder(self) -> UnitDecoder | None:
        """What makes units of answers; None for models that speak none."""
        return None

    def _stream(
        self, batch: SpeechBatch, speaker: Speaker, options: dict[str, Any], stop_ids: set[int]
    ) -> StreamEvents:
        start = time.perf_counter()
        with torch.no_grad():
            speech, lens = self.encode(batch)
        ids, mask = batch.input_ids, batch.attention_mask
        steps = self.llm.steps(ids, mask, speech, lens, read_last=speaker.reads_last, **options)
        yield from answer_events(self.prompt, steps, len(batch), speaker, stop_ids, start)
