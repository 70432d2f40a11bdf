"""`speechzoo ask`: texts, sounds, histories, and one clear line for each thing that is wrong."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from talk_parts import vocoder

from speechzoo.cli import ask as command
from speechzoo.generation import answer
from speechzoo.models import Cascade, LLaMAOmni
from speechzoo.names.published import shelves
from speechzoo.talk import sources
from speechzoo.talk.ask import tell
from speechzoo.talk.questions import question
from speechzoo.talk.session import Session
from speechzoo.talk.several import named
from speechzoo.talk.sources import Talker, open_cascade, open_talker

pytestmark = pytest.mark.usefixtures("loads")
SHORT = ["--max-new-tokens", "16"]


@pytest.fixture
def voiced(tmp_path: Path) -> Path:
    vocoder().save(tmp_path / "vocoder")
    return tmp_path / "vocoder"


def test_text_and_sound_are_those_of_the_model(
    omni: LLaMAOmni, wavs: list[Path], voiced: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "a.wav"
    arguments = ["run", str(wavs[0]), "--stream", "--out", str(out), "--vocoder", str(voiced), "--verbose"]
    assert command.main([*arguments, "--chunk-units", "4", *SHORT]) == 0
    told = capsys.readouterr()
    expected = answer(omni, [question(wavs[0])], vocoder=vocoder(), max_new_tokens=16)
    assert told.out == expected.text[0] + "\n"
    sound, rate = soundfile.read(out, dtype="float32")
    assert rate == 8000
    assert np.allclose(sound, expected.audio[0].numpy(), atol=2e-4)
    for what in ("first text", "first unit", "first audio", "total", "tokens", "of sound"):
        assert what in told.err


def test_sound_file_grows_while_the_answer_is_made(talker: Talker, tmp_path: Path):
    target, sizes = tmp_path / "a.wav", []

    class Watched(Session):
        def ask(self, message, **generate):
            for event in super().ask(message, **generate):
                sizes.append(target.stat().st_size if target.is_file() else 0)
                yield event

    session = Watched(talker, max_new_tokens=24, eos_token_id=[])
    tell(session, question(text="hello"), io.StringIO(), live=True, target=target)
    assert sizes[0] == 0 and len(set(sizes)) > 2 and max(sizes) <= target.stat().st_size


def test_several_questions_and_standard_input(
    wavs: list[Path], voiced: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "answers"
    folder.mkdir()
    names = [str(wavs[0]), str(wavs[2])]
    assert command.main(["run", *names, "--out", str(folder), "--vocoder", str(voiced), *SHORT]) == 0
    both = capsys.readouterr().out.splitlines()
    assert sorted(path.name for path in folder.iterdir()) == ["0.wav", "2.wav"]
    alone = []
    for name in names:
        command.main(["run", name, *SHORT])
        alone += capsys.readouterr().out.splitlines()
    assert both == alone
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffhello\n\nhow are you\n"))  # as Windows' editors begin files
    assert command.main(["run", "-", *SHORT]) == 0
    lines = capsys.readouterr().out
    command.main(["run", "--text", "hello", *SHORT])
    assert lines.startswith(capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("hello\ncafé\n".encode("latin-1")), "utf-8"))
    assert command.main(["run", "-", *SHORT]) == 1
    assert "standard input, after line 0: not a text in utf-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "samples", "message"),
    [
        ("long.wav", np.sin(np.arange(640_000) / 10), "40.0 s long; a question takes at most 30 s"),
        ("silent.wav", np.zeros(16_000), "silent (peak 0.0e+00 of full scale)"),
        ("empty.wav", np.zeros(0), "holds no samples"),
        ("none.wav", None, "no such audio file"),
    ],
)
def test_wrong_sounds(
    name: str, samples: np.ndarray | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
):
    if samples is not None:
        soundfile.write(tmp_path / name, samples, 16_000)
    assert command.main(["run", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert name in error and message in error and error.count("\n") == 1


def test_sound_without_a_vocoder_or_with_a_wrong_one(
    wavs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    out = ["--out", str(tmp_path / "a.wav")]
    assert command.main(["run", str(wavs[0]), *out]) == 1
    assert "speaks 12 units, which need a vocoder: give --vocoder" in capsys.readouterr().err
    vocoder(20).save(tmp_path / "other")
    assert command.main(["run", str(wavs[0]), *out, "--vocoder", str(tmp_path / "other")]) == 1
    assert "knows 20 units, the model speaks 12" in capsys.readouterr().err
    assert command.main(["run", str(wavs[0]), *out, "--vocoder", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "a.wav").exists()


def test_an_answer_without_units_is_said(
    omni: LLaMAOmni, voiced: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    blank = omni.unit_decoder.blank
    monkeypatch.setattr(
        omni.unit_decoder, "_best", lambda states, past: torch.full((len(states), 3 * states.shape[1]), blank)
    )
    arguments = ["run", "--text", "hi", "--out", str(tmp_path / "a.wav"), "--vocoder", str(voiced), *SHORT]
    assert command.main(arguments) == 1
    told = capsys.readouterr()
    assert told.out.strip() and "no units" in told.err and not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-", "a.wav"],
        ["a.wav", "b.wav", "--save-history", "h.json"],
        ["a.wav", "b.wav", "--out", "x.wav"],
        ["x/a.wav", "y/a.wav", "--out", "."],  # the second answer would replace the first
    ],
)
def test_commands_that_make_no_sense(arguments: list[str]):
    with pytest.raises(SystemExit) as error:
        command.main(["run", *arguments])
    assert error.value.code == 2


def test_cascades_from_a_run_and_from_a_file(
    omni: LLaMAOmni, tiny_whisper_pt: Path, tiny_llm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cascade = open_talker("cascade:run").model
    assert isinstance(cascade, Cascade) and cascade.llm is omni.llm and cascade.prompt is omni.prompt
    file = tmp_path / "c.yaml"
    file.write_text(f"recognizer: {tiny_whisper_pt}\nllm: {tiny_llm_dir}\nprompt: {{system: Be brief.}}\n")
    found = open_talker(str(file))
    assert isinstance(found.model, Cascade) and found.model.prompt.system == "Be brief." and not found.sounds
    for settings, message in (
        ({"llm": "x"}, "names no recognizer"),
        ({"recognizer": "x", "llm": "y", "voices": "z"}, "no 'voices'"),
        ({"recognizer": "x", "llm": "y", "language": False}, "language is a code such as 'en', not False"),
    ):
        with pytest.raises(ValueError, match=message):
            open_cascade(settings, "c.yaml")
    published = {"recognizer": str(tiny_whisper_pt), "llm": str(shelves()[-1] / "llasm-tiny"), "language": None}
    assert open_cascade(published, "c.yaml")[0].llm is omni.llm  # the folder of a model of ours, by its path
    with pytest.raises(ValueError, match="voice"):
        open_talker(str(file), vocoder=tmp_path)
    file.write_text("recognizer: [")
    with pytest.raises(ValueError, match="c.yaml: not YAML"):
        open_talker(str(file))


def test_answers_never_replace_what_is_read(wavs: list[Path], voiced: Path, tmp_path: Path, capsys, monkeypatch):
    folder = tmp_path / "d"
    folder.mkdir()
    for name, wav in zip(("q1.wav", "q2.wav"), wavs, strict=False):
        (folder / name).write_bytes(wav.read_bytes())
    (tmp_path / "soft.wav").symlink_to(folder / "q1.wav")
    (tmp_path / "hard.wav").hardlink_to(folder / "q1.wav")
    (tmp_path / "link").symlink_to(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    one, two = str(folder / "q1.wav"), str(folder / "q2.wav")
    part = {"type": "audio", "path": "d/q1.wav"}
    talked = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "h.json").write_text(json.dumps(talked))
    monkeypatch.setattr("speechzoo.talk.ask.open_talker", lambda *_: pytest.fail("the model was loaded"))
    for arguments in [
        [one, two, "--out", str(folder)],
        [one, two, "--out", str(tmp_path / "link")],
        [one, "--out", one],
        [one, "--out", str(tmp_path / "soft.wav")],
        [one, "--out", str(tmp_path / "hard.wav")],
        [one, "--out", str(folder / ".." / "d" / "q1.wav")],
        [one, "--save-history", one],
        [two, "--history", str(tmp_path / "h.json"), "--out", one],
        [two, "--history", str(tmp_path / "h.json"), "--out", str(tmp_path / "h.json")],
    ]:
        assert command.main(["run", *arguments, "--vocoder", str(voiced)]) == 1
        error = capsys.readouterr().err
        assert "is also an input" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.full(1, 0.5), 48_000, "are none at 16000 Hz"),
        (np.full(100, 0.5), 16_000, "too short to give the LLM one position"),
        (np.array([0.1, np.nan] * 9000), 16_000, "not finite"),
        (np.array([100.0, -20_000.0] * 9000), 16_000, "full scale is 1"),
    ],
)
def test_the_checks_of_training(omni: LLaMAOmni, samples, rate: int, message: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(omni, "audio_positions", lambda lens: lens // 320)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    assert command.main(["run", str(tmp_path / "a.wav")]) == 1
    error = capsys.readouterr().err
    assert "a.wav" in error and message in error and error.count("\n") == 1
    with pytest.raises(ValueError, match=message):
        answer(omni, [{"role": "user", "content": [{"type": "audio", "path": str(tmp_path / "a.wav")}]}])
    if rate == 16_000:
        with pytest.raises(ValueError, match=message):
            answer(omni, [{"role": "user", "content": [{"type": "audio", "array": samples}]}])


@pytest.mark.parametrize(("fast", "wide"), [(False, True), (True, False)])
def test_a_cpu_that_is_slow_at_bfloat16_answers_in_float32(omni: LLaMAOmni, monkeypatch, fast: bool, wide: bool):
    model = copy.deepcopy(omni)
    model.llm.bfloat16()
    monkeypatch.setattr(sources, "load", lambda path, trust_code=False: model)
    monkeypatch.setattr(sources, "fast_bfloat16", lambda: fast)
    talker = open_talker("run", device="cpu")
    assert {weight.dtype for weight in talker.model.llm.parameters()} == {torch.float32 if wide else torch.bfloat16}


@pytest.mark.parametrize("name", ["answer.txt", "answer", "answer.raw"])
def test_an_answer_is_not_lost_to_a_file_of_no_kind(name: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("speechzoo.talk.ask.open_talker", lambda *_: pytest.fail("the model was loaded"))
    assert command.main(["run", "--text", "hi", "--out", str(tmp_path / name)]) == 1
    assert f"{name}: names no kind of sound file" in capsys.readouterr().err


def test_a_device_that_there_is_none_of_is_one_line(capsys: pytest.CaptureFixture):
    with pytest.raises(ValueError, match="device 'gpu': there are cpu, cuda"):
        open_talker("run", device="gpu")


def test_a_path_with_a_sign_of_equality_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1").mkdir()
    (tmp_path / "lr=1" / "epoch=3.ckpt").touch()
    there = "lr=1/epoch=3.ckpt"
    assert named(there) == ("epoch=3.ckpt", there) and named(f"cascade:{there}")[1] == f"cascade:{there}"
    assert named(f"mine={there}") == ("mine", there)
    assert named("mine=llasm-tiny") == ("mine", "llasm-tiny") and named("a/b") == ("b", "a/b")
