"""Sound of a stream: chunks of units, sentences read aloud, and answers that are silent."""

from __future__ import annotations

import pytest
import torch
from asked_models import DECODER, QUESTIONS, Square, batch_of, make

from speechzoo.generation import answer, collect, stream
from speechzoo.models import Cascade, LLaMAOmni
from speechzoo.types import AudioChunk, StreamEnd, TextDelta, UnitDelta


def test_sound_follows_the_units_in_chunks(omni):
    # Sampled wildly, because the tiny model's likeliest answer repeats itself, and equal states speak one unit.
    options = {"max_new_tokens": 20, "eos_token_id": [], "temperature": 50.0, "seed": [1, 2, 3]}
    events = list(stream(omni, QUESTIONS, vocoder=Square(), chunk_units=2, unit_tokens=2, **options))
    reply = collect(events)
    assert reply.sample_rate == 100
    for row in range(3):
        chunks = [event for event in events if isinstance(event, AudioChunk) and event.row == row]
        sizes = [len(chunk.audio) // 10 for chunk in chunks]
        assert len(chunks) > 1 and all(size >= 2 for size in sizes[:-1])
        starts = [sum(sizes[:i]) * 10 / 100 for i in range(len(sizes))]
        assert [chunk.start_seconds for chunk in chunks] == pytest.approx(starts)
        assert reply.audio[row].equal(Square()(reply.units[row]))
        end = next(event for event in events if isinstance(event, StreamEnd) and event.row == row)
        assert end.audio_seconds == pytest.approx(sum(sizes) / 10)
        assert end.first_text_seconds <= end.first_units_seconds <= end.first_audio_seconds <= end.seconds
        first = next(i for i, e in enumerate(events) if isinstance(e, AudioChunk) and e.row == row)
        assert first < events.index(end) - 2, "sound only came at the end"


def test_grouping_tokens_delays_no_first_chunk(omni):
    def before_first_sound(unit_tokens: int) -> int:
        tokens = 0
        for event in stream(
            omni,
            QUESTIONS[0],
            vocoder=Square(),
            chunk_units=4,
            unit_tokens=unit_tokens,
            max_new_tokens=12,
            eos_token_id=[],
        ):
            if isinstance(event, AudioChunk):
                return tokens
            tokens += len(event.ids) if isinstance(event, TextDelta) else 0
        raise AssertionError("no sound")

    assert before_first_sound(6) == before_first_sound(1)


def test_more_tokens_together_the_longer_the_answer(omni, monkeypatch):
    """Four, or an eighth of those before; after every token until the first chunk is out."""
    widths: list[int] = []
    make_stream = omni.unit_decoder.stream

    def watched(rows: int):
        units = make_stream(rows)
        push = units.push
        units.push = lambda states: widths.append(states.shape[1]) or push(states)
        return units

    monkeypatch.setattr(omni.unit_decoder, "stream", watched)
    for given, expected in ((None, [1, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 5, 6, 3]), (30, [1, 30, 29]), (1, [1] * 60)):
        widths.clear()
        list(stream(omni, QUESTIONS[0], chunk_units=1, unit_tokens=given, max_new_tokens=60, eos_token_id=[]))
        assert widths == expected


class Reader:
    sample_rate = 50

    def __init__(self) -> None:
        self.read: list[str] = []

    def speak(self, text):
        self.read.append(text)
        return [0.1] * len(text)


def test_a_cascade_streams_text_and_reads_its_sentences(llasm, tiny_whisper_pt):
    cascade = Cascade(str(tiny_whisper_pt), llasm.llm, llasm.prompt)
    cascade.transcribe = lambda audio, lens: [f"clip of {n} samples" for n in lens.tolist()]
    options = {"max_new_tokens": 10, "eos_token_id": []}
    reader = Reader()
    events = list(stream(cascade, QUESTIONS, voice=reader, **options))
    reply, whole = collect(events), cascade.respond(batch_of(cascade, QUESTIONS), **options)
    assert reply.text == whole.text and reply.heard == whole.heard and len(whole.heard) == 3
    assert [len(e.heard) for e in sorted((e for e in events if isinstance(e, StreamEnd)), key=lambda e: e.row)] == [
        1,
        2,
        0,
    ]
    assert len(reader.read) >= 3
    assert all(len(wave) for wave in reply.audio) and reply.sample_rate == 50
    alone = Reader()
    text = answer(cascade, QUESTIONS[2], voice=alone, **options).text[0]
    assert "".join(" ".join(alone.read).split()) == "".join(text.split())


def test_an_answer_without_units_is_silent_and_ends(tiny_llm_dir, tiny_whisper_pt):
    model = make(LLaMAOmni, tiny_llm_dir, tiny_whisper_pt, unit_decoder=DECODER)
    with torch.no_grad():
        model.unit_decoder.output_proj.bias[-1] += 1e6
    events = list(stream(model, QUESTIONS, vocoder=Square(), max_new_tokens=5))
    assert not [e for e in events if isinstance(e, (UnitDelta, AudioChunk))]
    ends = [event for event in events if isinstance(event, StreamEnd)]
    assert [len(end.units) for end in ends] == [0, 0, 0] and ends[0].first_units_seconds is None
    assert collect(events).audio is None
