"""What the page shows and plays, without a browser; skipped without gradio."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speechzoo.cli import demo
from speechzoo.talk.desk import ANSWERING, DONE, FAILED, Answer, Desk, Lobby
from speechzoo.talk.live import Sounds, growing_wav, wav_bytes
from speechzoo.talk.questions import question
from speechzoo.talk.session import Session
from speechzoo.talk.sources import Talker


def answer(talker: Talker, **changes) -> Answer:
    one = Answer(Session(talker), question(text="hi"), {}, lambda: None)
    for name, value in changes.items():
        setattr(one, name, value)
    return one


def test_a_sound_is_sent_while_it_is_made(talker: Talker):
    one = answer(talker, state=ANSWERING, sample_rate=8000)
    pieces, got = growing_wav(one, lambda: time.sleep(0.001)), []
    one.chunks.append(torch.full((800,), 0.5))
    got += [next(pieces), next(pieces)]
    thread = threading.Thread(target=lambda: got.extend(pieces))
    thread.start()
    one.chunks.append(torch.full((400,), -0.25))
    one.state = DONE
    thread.join(5)
    assert [len(piece) for piece in got] == [44, 1600, 800]
    sound, rate = soundfile.read(io.BytesIO(wav_bytes(one)), dtype="float32")
    assert rate == 8000 and b"".join(got)[44:] == wav_bytes(one)[44:]
    assert np.allclose(sound, [0.5] * 800 + [-0.25] * 400, atol=1e-4)


def test_sounds_are_found_by_name_and_forgotten(talker: Talker, monkeypatch: pytest.MonkeyPatch):
    sounds, now = Sounds(), [0.0]
    monkeypatch.setattr("speechzoo.talk.live.time.monotonic", lambda: now[0])
    one, other = answer(talker), answer(talker)
    first = sounds.add(one)
    assert sounds.get(first) is one and sounds.get("0" * 32) is None
    now[0] = 2000.0
    second = sounds.add(other)
    assert second != first and len(sounds) == 1 and sounds.get(first) is None


def test_missing_gradio_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setitem(__import__("sys").modules, "speechzoo.talk.page", None)
    assert demo.main(["run"]) == 1
    assert "pip install 'speechzoo[demo]'" in capsys.readouterr().err


def test_conversation_and_latency_lines(talker: Talker, wavs: list[Path]):
    page = pytest.importorskip("speechzoo.talk.page", exc_type=ImportError)
    one = answer(talker, state=ANSWERING, text="so far", seconds={"waited": 0.01, "first_text": 0.2})
    shown = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so far"}]
    assert page.conversation(one) == shown
    assert page.latency(one) == "first text 0.20 s"
    one.session.history = [one.message, {"role": "assistant", "content": "so far"}]  # just finished: not shown twice
    assert page.conversation(one) == shown
    clip = question(wavs[1], "What is this?")
    one.session.history = [clip, {"role": "assistant", "content": "a tone"}]
    words, sound = ({"role": "user", "content": content} for content in ("What is this?", {"path": str(wavs[1])}))
    assert page.conversation(one)[:3] == [words, sound, {"role": "assistant", "content": "a tone"}]
    clip["content"][1]["path"] = "gone.wav"  # as uploads are after an hour
    assert page.conversation(one)[1]["content"] == "(spoken, 2.3 s)"
    one.session.history = []
    failed = answer(talker, state=FAILED, error="too long")
    assert page.conversation(failed)[-1]["content"] == "⚠ too long"
    assert page.latency(answer(talker, ahead=2)) == "waiting for 2 earlier question(s)"
    heard = answer(talker, state=DONE, heard=["<b>"], seconds={"total": 1.0}, tokens=3)
    assert page.latency(heard) == "total 1.00 s · 3 tokens  \nheard: &lt;b&gt;"


def test_a_new_conversation_is_not_filled_with_the_old_one(talker: Talker):
    pytest.importorskip("gradio")
    from speechzoo.talk.page import changes

    desk = Desk(talker)
    user = Lobby({"omni": desk}, max_new_tokens=200, eos_token_id=[]).user("a")
    answers = user.ask(["omni"], question(text="hello"))
    shown = changes(user, answers)
    next(shown)
    user.clear()
    assert next(shown, "nothing more") == "nothing more"
    desk.close()


def test_whole_sound_over_http(talker: Talker, wavs: list[Path]):
    pytest.importorskip("gradio")
    from fastapi.testclient import TestClient

    from speechzoo.talk import page

    names: list[str] = []

    class Named(Sounds):
        def add(self, one: Answer) -> str:
            names.append(super().add(one))
            return names[-1]

    desk = Desk(talker)
    sounds = Named()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "Sounds", lambda: sounds)
        client = TestClient(page.web_app(Lobby({"omni": desk})))
    session = Session(talker, max_new_tokens=24, eos_token_id=[])
    one = desk.ask(session, question(wavs[0]))
    name = sounds.add(one)
    growing = client.get(f"/sound/{name}.wav")  # asked for before the answer is over
    assert one.over and growing.content[44:] == wav_bytes(one)[44:]
    assert client.get(f"/sound/{name}.wav").content == wav_bytes(one)
    assert client.get("/sound/none.wav").status_code == 404
    assert "gradio" in client.get("/").text.lower()
    desk.close()


def test_the_page_begins_with_the_settings_it_was_given(talker: Talker, monkeypatch: pytest.MonkeyPatch):
    page = pytest.importorskip("speechzoo.talk.page", exc_type=ImportError)

    def sliders(own: dict, **given) -> list[float]:
        monkeypatch.setattr(talker.model, "generation", own)
        built = page.build(Lobby({"omni": Desk(talker)}, **given), Sounds())
        found = [part for part in built.blocks.values() if type(part).__name__ == "Slider"]
        return [part.preprocess(part.value) for part in found]  # which refuses what lies outside the slider's ends

    assert sliders({}) == [256, 0.0, 40]
    assert sliders({}, top_p=0.9) == [256, 1.0, 40]  # 0 would take the likeliest token, whatever --top-p says
    assert sliders({"do_sample": True, "top_k": 20}) == [256, 1.0, 40]
    assert sliders({"temperature": 0.7, "max_new_tokens": 64}, temperature=0.0) == [64, 0.0, 40]
    assert sliders({}, max_new_tokens=4, temperature=2.0, chunk_units=5) == [4, 2.0, 5]
    assert sliders({}, max_new_tokens=1000, chunk_units=200) == [1000, 0.0, 200]
