"""Conversations of `speechzoo ask` in files: they go on where they were, and nothing said is lost."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import torch

from speechzoo.cli import ask as command
from speechzoo.models import LLaMAOmni
from speechzoo.talk.questions import read_history, read_question

pytestmark = pytest.mark.usefixtures("loads")
SHORT = ["--max-new-tokens", "16"]


def test_history_goes_on_where_it_was_saved(wavs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    saved, again = tmp_path / "deep" / "chat.json", tmp_path / "chat2.json"
    assert command.main(["run", str(wavs[0]), "--save-history", str(saved), *SHORT]) == 0
    first = capsys.readouterr().out.strip()
    messages = json.loads(saved.read_text())
    assert [message["role"] for message in messages] == ["user", "assistant"] and messages[1]["content"] == first
    assert (saved.parent / messages[0]["content"][0]["path"]).resolve() == wavs[0].resolve()
    assert set(messages[0]["content"][0]) == {"type", "path"}
    assert command.main(["run", "--text", "more", "--history", str(saved), "--save-history", str(again), *SHORT]) == 0
    second = capsys.readouterr().out
    assert command.main(["run", "--text", "more", *SHORT]) == 0
    assert capsys.readouterr().out != second
    assert torch.equal(read_history(again)[0]["content"][0]["array"], read_question(wavs[0]))
    assert len(read_history(again)) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        pytest.param("[" * 200_000, "not JSON", id="deep"),
        ("3", "no list of messages"),
        ('[{"role": "user", "content": "hi"}]', "does not end with an answer"),
        ('[{"role": "usr", "content": "hi"}]', "did you mean 'user'"),
        ('["hi"]', "message 1 is not an object"),
        ('[{"role": "system"}]', "has no content"),
        ('[{"role": "user", "content": [{"type": "audio", "path": "no.wav"}]}, {"role": "assistant", "content": "a"}]',
         "no.wav: no such audio file"),
    ],
)  # fmt: skip
def test_wrong_histories(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "h.json").write_text(content)
    assert command.main(["run", "--text", "hi", "--history", str(tmp_path / "h.json")]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and error.startswith("speechzoo ask: ")


def test_a_conversation_goes_on_in_its_file(wavs: list[Path], tmp_path: Path):
    saved = str(tmp_path / "h.json")
    assert command.main(["run", str(wavs[0]), "--save-history", saved, *SHORT]) == 0
    assert command.main(["run", "--text", "more", "--history", saved, "--save-history", saved, *SHORT]) == 0
    assert len(read_history(saved)) == 4


def test_sounds_inside_a_history(wavs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    data = base64.b64encode(wavs[0].read_bytes()).decode()
    uri = f"data:audio/wav;base64,{data}"
    assert len(uri) > 255
    expected = read_question(wavs[0])
    for part in [
        {"type": "audio", "url": uri},
        {"type": "audio", "audio_url": uri},
        {"type": "audio", "path": uri},
        {"type": "audio_url", "audio_url": {"url": uri}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ]:
        talked = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "yes"}]
        (tmp_path / "h.json").write_text(json.dumps(talked))
        assert torch.equal(read_history(tmp_path / "h.json")[0]["content"][0]["array"], expected)
        again = tmp_path / "again.json"
        asked = ["run", "--text", "more", "--history", str(tmp_path / "h.json"), "--save-history", str(again), *SHORT]
        assert command.main(asked) == 0
        assert torch.equal(read_history(again)[0]["content"][0]["array"], expected)
    capsys.readouterr()
    for wrong, message in [("data:audio/wav;base64,@@@@", "not base64"), ("data:audio/wav;base64", "holds no data")]:
        talked[0]["content"] = [{"type": "audio", "url": wrong}]
        (tmp_path / "h.json").write_text(json.dumps(talked))
        assert command.main(["run", "--text", "more", "--history", str(tmp_path / "h.json")]) == 1
        error = capsys.readouterr().err
        assert "h.json" in error and message in error and error.count("\n") == 1


def test_a_conversation_is_kept_when_a_later_question_fails(omni: LLaMAOmni, tmp_path: Path, capsys, monkeypatch):
    saved = tmp_path / "h.json"
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n" + "much too long " * 200 + "\n"))
    assert command.main(["run", "-", "--chat", "--save-history", str(saved), *SHORT]) == 1
    assert "shorten the question" in capsys.readouterr().err
    assert [message["role"] for message in read_history(saved)] == ["user", "assistant"]


def test_a_history_may_begin_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "h.json").write_text('[{"role": "system", "content": "Be brief."}]', encoding="utf-8-sig")
    assert read_history(tmp_path / "h.json") == [{"role": "system", "content": "Be brief."}]
