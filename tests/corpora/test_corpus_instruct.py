"""`speechzoo data instruct`: instructions filtered, rewritten by an endpoint, spoken; stages start again alone."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from api_stand_in import endpoint

from speechzoo.audio import read_audio
from speechzoo.cli import main
from speechzoo.corpora.rewriting import ANSWER, ASK, Rewriter, expected_tokens
from speechzoo.corpora.sounds import kept_sound
from speechzoo.corpora.stage import Broken
from speechzoo.corpora.voices import Cast, CommandVoices, QuickstartVoices, open_speaker, speak_to
from speechzoo.system.endpoint import Chat, Endpoint
from speechzoo.system.files import read_jsonl

ALPACA = [
    {"instruction": "Name 2 fruits.", "input": "", "output": "Apple, pear"},
    {"instruction": "Open https://a.org", "output": "No"},
    {"instruction": "Why is the sky blue?", "output": "Because."},
    {"instruction": "Say something odd.", "output": "Odd."},
]

SPEAK = """import sys, wave
voice, out, text = sys.argv[1], sys.argv[2], sys.stdin.read()
open({log!r}, "a").write(voice + "|" + text + "\\n")
if "unspeakable" in text:
    sys.exit("cannot say that")
with wave.open(out, "wb") as file:
    file.setparams((1, 2, 16000, 0, "NONE", ""))
    file.writeframes(bytes([0, 16]) * 160 * len(text))
"""


def llm(prompt: str) -> str:
    """Says for a spoken instruction, and for its answer, what the tests look for."""
    text = prompt.rpartition("\n")[2]
    if "Instruction:" in prompt:
        return f'"Hey, {text.lower()}"'
    return "It is unspeakable." if "odd" in text else f"Well, about {text[5:]}"


@pytest.fixture
def alpaca(tmp_path: Path) -> Path:
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps(ALPACA))
    return file


def command(folder: Path) -> tuple[str, Path]:
    """A text-to-speech program, and the file where it notes what it was asked to say."""
    program, log = folder / "speak.py", folder / "said.txt"
    program.write_text(SPEAK.format(log=str(log)))
    return f"command:{sys.executable} {program} {{voice}} {{out}}", log


def test_from_text_to_speech_and_again_only_what_is_missing(alpaca: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr("speechzoo.system.endpoint.time.sleep", lambda seconds: None)
    tts, log = command(tmp_path)
    out = tmp_path / "set"
    with endpoint(llm) as server:
        server.faults = [(429, b"", {}), (200, b"garbage", {}), (500, b"", {})]
        arguments = ["data", "instruct", str(out), str(alpaca), "--style", "llama_omni", "--threads", "1"]
        arguments += ["--llm", server.url, "--llm-model", "big", "--tts", tts, "--prices", "1", "2"]
        arguments += ["--question-voice", "anna=1", "bert=3", "--answer-voice", "clara"]
        assert main(arguments) == 0
        told = capsys.readouterr().out
        asked = len(server.requests)
        assert asked == 6 + 3  # two for each of three conversations, and three that failed
        assert main(arguments) == 0
        assert len(server.requests) == asked
    prompts, answers = expected_tokens([[[row["instruction"], ""]] for row in (ALPACA[0], ALPACA[2], ALPACA[3])])
    assert f"3 conversations, an estimated {prompts:,} tokens read and {answers:,} written" in told
    assert "rewrite: 600 tokens read and 60 written, 0.00 at the given prices, as the LLM counted them" in told
    said = log.read_text().splitlines()
    assert Counter(said)["clara|It is unspeakable."] == 2 * 2  # tried twice by each of the two runs
    assert sum("unspeakable" not in line for line in said) == 5  # the odd question too, which has no answer
    records = read_jsonl(out / "data.jsonl")
    assert [record["id"] for record in records] == ["alpaca-0", "alpaca-2"]
    ask, answer = records[1]["messages"]
    assert answer["content"] == "Well, about why is the sky blue?"
    (part,) = ask["content"]
    seconds = [len(read_audio(out / path)) / 16000 for path in (part["path"], answer["audio"])]
    assert seconds == [0.01 * len("Hey, why is the sky blue?"), 0.01 * len(answer["content"])]
    assert part["transcript"] == "Hey, why is the sky blue?"
    broken = [(row["stage"], row["id"], row["reason"]) for row in read_jsonl(out / "broken.jsonl")]
    assert broken == [("filter", "alpaca-1", "URL or address"), ("speak", "alpaca-3", "text-to-speech failed")]
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["tokens"] == {"asked": 6, "prompt_tokens": 600, "completion_tokens": 60}
    assert numbers["voices"]["clara"] == 2
    assert set(numbers["voices"]) <= {"anna", "bert", "clara"}
    assert "| speak: text-to-speech failed | 1 |" in (out / "README.md").read_text()


def test_an_estimate_asks_nobody(alpaca: Path, tmp_path: Path, capsys):
    out = ["data", "instruct", str(tmp_path / "set"), str(alpaca), "--style", "llama_omni", "--estimate"]
    with endpoint(llm) as server:
        assert main([*out, "--llm", server.url, "--llm-model", "big"]) == 0
        assert server.requests == []
    assert "an estimated" in capsys.readouterr().out


def test_stages_run_alone_and_in_their_order(alpaca: Path, tmp_path: Path, capsys):
    tts, _ = command(tmp_path)
    base = ["data", "instruct", str(tmp_path / "set"), str(alpaca), "--style", "llasm", "--tts", tts]
    assert main([*base, "--stages", "speak"]) == 1
    assert "not finished" in capsys.readouterr().err
    assert main([*base, "--stages", "filter"]) == 0
    assert not (tmp_path / "set" / "data.jsonl").exists()
    assert main([*base, "--stages", "rewrite"]) == 1
    assert "there is no rewrite here; the stages are filter, speak" in capsys.readouterr().err
    assert main([*base, "--stages", "speak"]) == 0
    # LLaSM's answers stay as they are, written.
    messages = read_jsonl(tmp_path / "set" / "data.jsonl")[0]["messages"]
    assert messages[1] == {"role": "assistant", "content": "Apple, pear"}


def test_a_voice_depends_on_the_record_alone(alpaca: Path, tmp_path: Path):
    tts, _ = command(tmp_path)
    sets = []
    for name, shards in (("whole", ["0/1"]), ("parts", ["1/2", "0/2"])):
        for shard in shards:
            arguments = ["data", "instruct", str(tmp_path / name), str(alpaca), "--style", "llasm", "--tts", tts]
            assert main([*arguments, "--shard", shard, "--question-voice", "a", "b", "c"]) == 0
        assert main(["data", "join", str(tmp_path / name)]) == 0
        sets.append((tmp_path / name / "data.jsonl").read_bytes())
    assert sets[0] == sets[1]


def test_voices_are_drawn_by_weight():
    cast = Cast(["a=1", "b=3", "c=0"])
    drawn = Counter(cast.draw(str(n)) for n in range(4000))
    assert drawn["c"] == 0
    assert abs(drawn["b"] / 4000 - 0.75) < 0.03  # four standard deviations of 0.0068
    for wrong in (["a=x"], ["a=-1"], ["a=0"], []):
        with pytest.raises(ValueError, match="voices"):
            Cast(wrong)


def test_an_endpoint_of_speech(alpaca: Path, tmp_path: Path):
    with endpoint() as server:
        arguments = ["data", "instruct", str(tmp_path / "set"), str(alpaca), "--style", "llasm", "--threads", "1"]
        assert main([*arguments, "--tts", server.url, "--tts-model", "kokoro", "--question-voice", "af"]) == 0
    assert [(body["model"], body["voice"], body["input"]) for _, body, _ in server.requests] == [
        ("kokoro", "af", row["instruction"]) for row in (ALPACA[0], ALPACA[2], ALPACA[3])
    ]
    record = read_jsonl(tmp_path / "set" / "data.jsonl")[0]
    assert len(read_audio(tmp_path / "set" / record["messages"][0]["content"][0]["path"])) == 8000


def test_answers_may_have_a_speaker_of_their_own(alpaca: Path, tmp_path: Path):
    tts, log = command(tmp_path)
    with endpoint() as server:
        arguments = ["data", "instruct", str(tmp_path / "set"), f"{alpaca}#1", "--style", "llama_omni", "--llm", "rule"]
        arguments += ["--tts", tts, "--question-voice", "anna", "--answer-voice", "lj"]
        assert main([*arguments, "--answer-tts", server.url, "--answer-tts-model", "vits"]) == 0
    assert [(body["model"], body["voice"], body["input"]) for _, body, _ in server.requests] == [
        ("vits", "lj", "Apple, pear")
    ]
    (asked,) = log.read_text().splitlines()
    assert asked.startswith("anna|") and asked.lower().endswith("name two fruits.")
    assert "tokens of the LLM" not in (tmp_path / "set" / "README.md").read_text()


def test_a_wrong_key_ends_it_and_what_is_done_stays(alpaca: Path, tmp_path: Path, capsys):
    with endpoint(llm) as server:
        base = ["data", "instruct", str(tmp_path / "set"), str(alpaca), "--style", "llama_omni", "--threads", "1"]
        base += ["--llm", server.url, "--llm-model", "big", "--stages", "filter,rewrite"]
        server.write = lambda prompt: server.faults.append((401, b"no key", {})) or "Hello."
        assert main(base) == 1
        assert "status 401 for model big: no key: check address, model and key" in capsys.readouterr().err
        server.write = llm
        before = len(server.requests)
        assert main(base) == 0
        assert len(server.requests) - before == 5  # the first answer is kept


def test_rewriting_refuses_what_cannot_be_spoken_and_remembers_it(tmp_path: Path):
    with endpoint(lambda prompt: "| a | b |") as server:
        rewriter = Rewriter(Endpoint(server.url, "m"), tmp_path)
        for _ in range(2):
            with pytest.raises(Broken, match="many symbols in the question"):
                rewriter([["Hi", ""]])
        assert len(server.requests) == 1
        assert rewriter.spent == {"prompt_tokens": 100, "completion_tokens": 10, "asked": 1, "cached": 1}
        assert server.requests[0][1]["messages"] == [{"role": "user", "content": ASK.format(text="Hi")}]


def test_a_list_is_no_answer_for_the_ear(tmp_path: Path):
    with endpoint(lambda prompt: "Hey, fruits?" if "Instruction:" in prompt else "- Apple\n- Pear") as server:
        with pytest.raises(Broken, match="list in the answer"):
            Rewriter(Endpoint(server.url, "m"), tmp_path)([["Fruits.", ""]])


def test_the_answer_is_written_to_the_rewritten_question(tmp_path: Path):
    with endpoint(llm) as server:
        assert Rewriter(Endpoint(server.url, "m"), tmp_path)([["TELL ME", ""]]) == [
            ["Hey, tell me", "Well, about tell me"]
        ]
        assert server.requests[1][1]["messages"][0]["content"] == ANSWER.format(text="Hey, tell me")


def test_a_text_with_marks_of_a_template_is_only_text(tmp_path: Path):
    program = tmp_path / "p.py"
    program.write_text(
        "import sys, numpy, soundfile\nsoundfile.write(sys.argv[1], 0.1*numpy.ones(len(sys.argv[2])*16), 16000)"
    )
    text = "$(rm -rf) {voice} 'quoted' {out}"
    speaker = CommandVoices(f"{sys.executable} {program} {{out}} {{text}}")
    assert len(speaker.speak(text, "v", 0)) == 16 * len(text)
    with pytest.raises(ValueError, match="there is no program no-such-program"):
        CommandVoices("no-such-program {out}").speak("a", "v", 0)
    with pytest.raises(ValueError, match="no {out}"):
        CommandVoices("espeak")


def test_a_program_that_writes_silence_or_no_sound_is_told(tmp_path: Path):
    program = tmp_path / "p.py"
    program.write_text("import sys; open(sys.argv[1], 'w').write('not a sound')")
    with pytest.raises(Broken, match="text-to-speech failed.*cannot be decoded"):
        CommandVoices(f"{sys.executable} {program} {{out}}").speak("a", "v", 0)
    program.write_text("import sys; sys.stderr.buffer.write(b'voix pr\\xe9sente'); sys.exit(3)")  # Latin 1
    with pytest.raises(Broken, match="voix pr.sente"):
        CommandVoices(f"{sys.executable} {program} {{out}}").speak("a", "v", 0)
    with pytest.raises(Broken, match="embedded null byte"):
        CommandVoices(f"{sys.executable} {program} {{out}} {{text}}").speak("a\0b", "v", 0)
    with pytest.raises(ValueError, match="give quickstart, piper"):
        open_speaker("espeak")


def test_a_damaged_sound_is_made_again(tmp_path: Path):
    class Tone:
        def speak(self, text: str, voice: str, seed: int) -> torch.Tensor:
            return 0.1 * torch.ones(8000)

    file, _ = speak_to(tmp_path, Tone(), "tone", "hello", "v", 0)
    content = file.read_bytes()
    for damaged in (b"", content[:100]):  # as a power cut leaves it
        file.write_bytes(damaged)
        assert speak_to(tmp_path, Tone(), "tone", "hello", "v", 0) == (file, 0.5)
        assert file.read_bytes() == content
    sound = {"bytes": content, "path": None}
    kept, _ = kept_sound(sound, tmp_path / "kept", tmp_path)
    Path(kept).write_bytes(b"")
    assert kept_sound(sound, tmp_path / "kept", tmp_path) == (kept, 0.5)
    assert Path(kept).read_bytes() == content


def test_a_reply_with_half_a_character_is_left_out(tmp_path: Path):
    class Cut:
        model = "m"

        def chat(self, *_: object, **__: object) -> Chat:
            return Chat({"content": "hello \ud83d"}, "stop")

    with pytest.raises(Broken, match="unreadable characters in the question"):
        Rewriter(Cut(), tmp_path)([["Say hello.", ""]])
    assert not list(tmp_path.iterdir())


@pytest.mark.real
def test_the_quickstart_speaks_and_a_small_llm_writes(alpaca: Path, tmp_path: Path):
    out = tmp_path / "set"
    arguments = ["data", "instruct", str(out), f"{alpaca}#1", "--style", "llama_omni", "--llm", "smollm2-135m-instruct"]
    assert main([*arguments, "--temperature", "0", "--threads", "1"]) == 0
    numbers = json.loads((out / "numbers.json").read_text())
    assert numbers["records"] + sum(numbers["left_out"].values()) == 1
    samples = np.concatenate([soundfile.read(file)[0] for file in out.rglob("*.flac")] or [np.zeros(0)])
    assert numbers["records"] == 0 or len(samples) > 8000


@pytest.mark.real
def test_the_steady_voice_says_equal_words_alike():
    voices = QuickstartVoices()
    one, other = (voices.speak("It is raining.", "joe-steady", seed) for seed in (1, 2))
    assert torch.equal(one, other) and len(one) > 8000
    assert not torch.equal(*(voices.speak("It is raining.", "joe", seed) for seed in (1, 2)))


def test_a_folder_that_was_moved_names_its_sound_from_there(alpaca: Path, tmp_path: Path):
    tts, log = command(tmp_path)
    arguments = [str(alpaca), "--style", "llama_omni", "--llm", "rule", "--tts", tts]
    assert main(["data", "instruct", str(tmp_path / "one"), *arguments]) == 0
    made, said = (tmp_path / "one" / "data.jsonl").read_bytes(), log.read_bytes()
    (tmp_path / "one").rename(tmp_path / "other")
    assert main(["data", "instruct", str(tmp_path / "other"), *arguments]) == 0
    assert (tmp_path / "other" / "data.jsonl").read_bytes() == made and b'"audio/' in made
    assert log.read_bytes() == said


def test_nothing_is_joined_while_an_earlier_stage_is_done_again(alpaca: Path, tmp_path: Path, capsys):
    tts, _ = command(tmp_path)
    assert main(["data", "instruct", str(tmp_path / "set"), str(alpaca), "--style", "llasm", "--tts", tts]) == 0
    told = (tmp_path / "set" / "broken.jsonl").read_bytes()
    begun = tmp_path / "set" / "filter" / "00000-of-00001"
    (begun / "done.json").unlink()  # as a kill leaves it
    (begun / "broken.jsonl").write_bytes(b"")
    assert main(["data", "join", str(tmp_path / "set")]) == 1
    assert "filter: shards that are not finished: 00000-of-00001" in capsys.readouterr().err
    assert (tmp_path / "set" / "broken.jsonl").read_bytes() == told
