"""What a stream refuses, and what it leaves behind: nothing, however and in whatever thread it ends."""

from __future__ import annotations

import gc
import queue
import threading
import tracemalloc
import weakref

import pytest
import torch
from asked_models import DECODER, QUESTIONS, Square, asked, batch_of, make

from speechzoo.generation import answer, collect, stream, text_deltas
from speechzoo.generation.cache import GrowingLayer
from speechzoo.models import LLaMAOmni


def test_a_vocoder_of_other_units_is_refused_at_once(omni, llasm):
    with pytest.raises(ValueError, match="speaks 12 units, the vocoder knows 100"):
        stream(omni, QUESTIONS[0], vocoder=Square(100))
    with pytest.raises(ValueError, match="speaks no units"):
        stream(llasm, QUESTIONS[0], vocoder=Square())


@pytest.mark.parametrize("window", ["padded", "trimmed"])
def test_clips_that_are_empty_silent_or_too_long(tiny_llm_dir, tiny_whisper_pt, window):
    model = make(LLaMAOmni, tiny_llm_dir, tiny_whisper_pt, window, unit_decoder=DECODER)
    with pytest.raises(ValueError, match=r"\[T\] samples at 16 kHz, not of shape \[0\]"):
        stream(model, asked(torch.zeros(0)))
    batch = batch_of(model, QUESTIONS[:2])
    batch.audio_lens[1] = 0
    for ask in (model.stream, model.respond):
        with pytest.raises(ValueError, match="clip 1 of the batch holds no samples"):
            ask(batch)
    with pytest.raises(ValueError, match=r"40\.0 s is longer than the encoder's 30 s window: split it"):
        next(stream(model, asked(torch.arange(40 * 16_000).sin())))
    with pytest.raises(ValueError, match="sound 1 of conversation 0: silent"):
        stream(model, asked(torch.zeros(16_000)))
    with pytest.raises(ValueError, match="holds values that are not finite"):
        stream(model, asked(torch.full((16_000,), torch.nan)))
    with pytest.raises(ValueError, match="no message to answer"):
        stream(model, [])


@pytest.fixture
def caches(monkeypatch) -> weakref.WeakSet:
    """The caches that are alive, of those made during the test."""
    alive: weakref.WeakSet = weakref.WeakSet()
    made = GrowingLayer.__init__
    monkeypatch.setattr(GrowingLayer, "__init__", lambda self: (made(self), alive.add(self))[0])
    return alive


def test_leaving_in_mid_answer_frees_the_caches(omni, caches):
    events = stream(omni, QUESTIONS, max_new_tokens=50, eos_token_id=[])
    for _ in range(6):
        next(events)
    assert len(caches) == 4  # two layers of the LLM, two of the unit decoder
    tensors = [weakref.ref(cache.keys) for cache in caches]
    events.close()
    del events
    gc.collect()
    assert not len(caches) and not any(ref() is not None for ref in tensors)
    deltas = text_deltas(stream(omni, QUESTIONS, max_new_tokens=50, eos_token_id=[]))
    next(deltas)
    assert len(caches) == 4
    deltas.close()
    gc.collect()
    assert not len(caches)


@pytest.mark.slow
def test_many_short_streams_leave_nothing_behind(omni, caches):
    """200 streams, every other one left early: no cache is left, and Python's memory does not grow with each.

    What else lives in this process may take memory once; what a stream leaves behind is there in both halves.
    """
    held = []
    tracemalloc.start()
    for number in range(200):  # tracing makes each several times slower than it is
        events = stream(omni, QUESTIONS[2], max_new_tokens=2, eos_token_id=[])
        if number % 2:
            next(events)
            events.close()
        else:
            collect(events)
        if number in (10, 105, 199):
            del events
            gc.collect()
            held.append(tracemalloc.get_traced_memory()[0])
            assert not len(caches)
    tracemalloc.stop()
    assert min(held[1] - held[0], held[2] - held[1]) < 50_000  # bytes of about 95 streams


def test_several_threads_ask_one_model_and_get_their_own_answers(omni):
    expected = [answer(omni, question, max_new_tokens=12, eos_token_id=[]).text[0] for question in QUESTIONS]
    told: queue.Queue[tuple[int, str | None]] = queue.Queue()

    def ask(number: int) -> None:
        for text in text_deltas(stream(omni, QUESTIONS[number], max_new_tokens=12, eos_token_id=[])):
            told.put((number, text))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = ["", "", ""]
    while not told.empty():
        number, text = told.get()
        texts[number] += text
    assert texts == expected and len(set(texts)) == 3
