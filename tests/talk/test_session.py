"""Sessions: history, stopping, bounded memory; desks: order, and nobody's answer in another's conversation."""

from __future__ import annotations

import gc
import resource
import threading
import time
from pathlib import Path

import pytest
import torch

from speechzoo.generation import answer, collect
from speechzoo.talk.desk import ANSWERING, DONE, FAILED, STOPPED, Desk, Lobby
from speechzoo.talk.questions import fitting, prompt_length, question
from speechzoo.talk.session import Session
from speechzoo.talk.sources import Talker
from speechzoo.types import AudioChunk, StreamEnd, TextDelta

LONG = {"max_new_tokens": 24, "eos_token_id": []}


def text(words: str) -> dict:
    return {"role": "user", "content": words}


def test_second_answer_is_that_of_the_whole_conversation(talker: Talker, wavs: list[Path]):
    session = Session(talker, **LONG)
    first, second = question(wavs[0]), question(text="and then?")
    said = collect(session.ask(first)).text[0]
    reply = collect(session.ask(second))
    whole = [first, {"role": "assistant", "content": said}, second]
    expected = answer(talker.model, whole, **talker.sound, **LONG)
    assert reply.text == expected.text
    assert torch.equal(reply.units[0], expected.units[0])
    assert torch.equal(reply.audio[0], expected.audio[0])
    assert reply.text != answer(talker.model, [second], **LONG).text
    assert session.history == [*whole, {"role": "assistant", "content": reply.text[0]}]


def test_closing_stops_and_keeps_what_was_said(talker: Talker, monkeypatch: pytest.MonkeyPatch):
    session = Session(talker, **LONG)
    reads = []
    read = talker.model.llm._read
    monkeypatch.setattr(talker.model.llm, "_read", lambda *a: reads.append(1) or read(*a))
    events, said = session.ask(text("hello")), ""
    for event in events:
        said += event.text if isinstance(event, TextDelta) else ""
        if len(said) > 3:
            break
    with pytest.raises(ValueError, match="still being answered"):
        session.ask(text("me too"))
    events.close()
    assert len(reads) < 24
    assert session.history == [text("hello"), {"role": "assistant", "content": said}]
    assert collect(session.ask(text("again"))).text[0]


def test_who_sees_the_end_may_ask_again(talker: Talker):
    session = Session(talker, **LONG)
    events = session.ask(text("a"))
    assert any(isinstance(event, StreamEnd) for event in events)  # the iterator is left open behind its end
    collect(session.ask(text("b")))
    events.close()
    assert [message["content"] for message in session.history if message["role"] == "user"] == ["a", "b"]


def test_a_failure_leaves_the_history_as_it_was(talker: Talker, monkeypatch: pytest.MonkeyPatch):
    session = Session(talker, **LONG)
    read, reads = talker.model.llm._read, []

    def fails(*args):
        reads.append(1)
        if len(reads) > 5:
            raise RuntimeError("out of memory")
        return read(*args)

    with monkeypatch.context() as patch:
        patch.setattr(talker.model.llm, "_read", fails)
        with pytest.raises(RuntimeError):
            collect(session.ask(text("hello")))
    assert session.history == []
    assert collect(session.ask(text("hello"))).text[0]


def test_oldest_exchanges_are_forgotten_when_the_prompt_is_full(talker: Talker, wavs: list[Path]):
    system = {"role": "system", "content": "Be kind."}
    old = [question(wavs[0]), {"role": "assistant", "content": "a b " * 120}]
    new = [text("b?"), {"role": "assistant", "content": "c"}]
    last = question(wavs[1])
    kept = fitting(talker.model, [system, *old, *new, last], 50)
    assert kept == [system, *new, last]
    assert prompt_length(talker.model, kept) + 50 <= 300 < prompt_length(talker.model, [system, *old, *new, last]) + 50
    with pytest.raises(ValueError, match="allow fewer new tokens"):
        fitting(talker.model, [last], 299)


def test_prompt_length_is_that_of_the_model(talker: Talker, wavs: list[Path], monkeypatch: pytest.MonkeyPatch):
    seen = []
    read = talker.model.llm._read
    monkeypatch.setattr(talker.model.llm, "_read", lambda e, *a: seen.append(e.shape[1]) or read(e, *a))
    messages = [question(wavs[1], "Listen:")]
    answer(talker.model, messages, max_new_tokens=1)
    assert seen == [prompt_length(talker.model, messages)]


@pytest.mark.slow
def test_memory_is_flat_over_200_questions(talker: Talker, wavs: list[Path]):
    session = Session(talker, max_new_tokens=6, eos_token_id=[])
    asked = [question(wavs[0]), text("hello"), question(wavs[2], "say"), text("x " * 20)]
    sizes, tensors, rounds = [], [], 8
    for _ in range(rounds):
        for turn in range(25):
            events = session.ask(asked[turn % 4])
            if turn % 5 == 4:  # someone leaves in the middle
                next(events)
                events.close()
            else:
                assert isinstance(list(events)[-1], StreamEnd)
        gc.collect()
        tensors.append(sum(type(thing) is torch.Tensor for thing in gc.get_objects()))
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert prompt_length(talker.model, session.history) <= 300
    assert max(tensors[1:]) <= tensors[0] + 2
    assert sizes[-1] - sizes[2] < 8  # MB over the last 125 questions


def wait(answers, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not all(one.over for one in answers):
        assert time.monotonic() < end
        time.sleep(0.005)


def test_users_at_once_get_their_own_answers(talker: Talker):
    desk = Desk(talker)
    lobby = Lobby({"omni": desk}, **LONG)
    words = [f"question number {n}: {'abcdefgh'[n] * 5}" for n in range(8)]
    alone = [answer(talker.model, [text(w)], **talker.sound, **LONG) for w in words]
    assert len({reply.text[0] for reply in alone}) > 4
    answers: dict[int, object] = {}

    def ask(number: int) -> None:
        answers[number] = lobby.user(f"user {number}").ask(["omni"], text(words[number]))["omni"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(answers.values())
    for number, expected in enumerate(alone):
        one = answers[number]
        assert (one.state, one.text) == (DONE, expected.text[0])
        assert torch.equal(torch.cat(one.chunks), expected.audio[0])
        history = lobby.user(f"user {number}").sessions["omni"].history
        assert [message["content"] for message in history] == [words[number], expected.text[0]]
    assert sorted(one.ahead for one in answers.values()) != [0] * 8
    desk.close()


def test_stop_and_leave(talker: Talker):
    desk = Desk(talker)
    lobby = Lobby({"omni": desk}, max_new_tokens=200, eos_token_id=[])
    long, waiting = lobby.user("a"), lobby.user("b")
    first = long.ask(["omni"], text("a"))["omni"]
    second = waiting.ask(["omni"], text("b"))["omni"]
    third = lobby.user("c").ask(["omni"], text("c"), max_new_tokens=4)["omni"]
    while not first.text:
        time.sleep(0.005)
    lobby.leave("b")
    assert second.state == STOPPED and first.state == ANSWERING  # at once, whoever is being answered
    long.stop()
    wait([first, second, third])
    assert (first.state, second.state, third.state) == (STOPPED, STOPPED, DONE)
    assert 0 < first.tokens < 150 and "total" not in first.seconds
    assert second.text == "" and len(lobby) == 2
    assert lobby.user("b").sessions == {}
    assert long.sessions["omni"].history[-1]["content"] == first.text
    desk.close()


def test_a_failed_answer_says_why_and_the_desk_goes_on(talker: Talker):
    desk = Desk(talker)
    user = Lobby({"omni": desk}).user("a")
    failed = user.ask(["omni"], text("x " * 400))["omni"]
    wait([failed])
    assert failed.state == FAILED and "shorten the question" in failed.error
    fine = user.ask(["omni"], text("x"), max_new_tokens=3)["omni"]
    wait([fine])
    assert fine.state == DONE
    for names, message in (([], "choose a model"), (["other"], "no model 'other'")):
        with pytest.raises(ValueError, match=message):
            user.ask(names, text("x"))
    desk.close()


def test_first_times_are_in_order(talker: Talker):
    desk = Desk(talker)
    one = Lobby({"omni": desk}, **LONG).user("a").ask(["omni"], text("hello"))["omni"]
    wait([one])
    seconds = one.seconds
    assert 0 <= seconds["waited"] <= seconds["first_text"] <= seconds["first_units"] <= seconds["first_audio"]
    assert seconds["first_audio"] < seconds["total"]
    desk.close()


def test_events_hold_the_chunks_of_the_whole_sound(talker: Talker):
    events = list(Session(talker, **LONG).ask(text("hello")))
    chunks = [event for event in events if isinstance(event, AudioChunk)]
    assert len(chunks) > 1
    whole = talker.sound["vocoder"](events[-1].units)
    assert torch.allclose(torch.cat([chunk.audio for chunk in chunks]), whole, atol=1e-4)
