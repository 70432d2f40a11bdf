"""`speechzoo evaluate` from the command line: models of ours and foreign ones, judge, resumption, trouble."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from api_stand_in import chat_server
from layouts import librispeech, parquet, sound, wav

from speechzoo.cli.evaluate import main
from speechzoo.evaluation.answers import Answer, load_answers, save_answers
from speechzoo.suites import store as work
from speechzoo.suites.systems import Local
from speechzoo.system import endpoint


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint.Endpoint.__init__, "__defaults__", (None, 120.0, 2, 0.001, 60.0))
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def hears(monkeypatch: pytest.MonkeyPatch, tiny_whisper_pt: Path) -> list[int]:
    """What the recogniser was given: a tiny Whisper that cannot decode stands for one that can."""
    lengths: list[int] = []

    def transcribe(whisper, audio, lens, language):
        lengths.extend(lens.tolist())
        return [f"I heard {int(n)} samples" for n in lens]

    monkeypatch.setattr("speechzoo.evaluation.listening.transcribe", transcribe)
    return lengths


def wav_reply(text: str, seconds: float) -> dict:
    held = io.BytesIO()
    samples = 0.3 * np.sin(np.arange(int(24_000 * seconds)) / 20)
    soundfile.write(held, samples, 24_000, format="WAV", subtype="PCM_16")
    return {"content": None, "audio": {"data": base64.b64encode(held.getvalue()).decode(), "transcript": text}}


def arguments(questions: Path, out: Path, *more: object, whisper: Path | None = None) -> list[str]:
    words = [
        "--suite",
        questions,
        "--out",
        out,
        "--batch",
        2,
        "--max-new-tokens",
        12,
        "--latency",
        1,
        "--device",
        "cpu",
    ]
    return [str(word) for word in [*words, *(["--recogniser", whisper] if whisper else []), *more]]


def test_ours_and_a_foreign_model_stand_in_one_table(
    opened, questions, run_folder, tmp_path, hears, tiny_whisper_pt, capsys
):
    out = tmp_path / "out"
    with chat_server(lambda request, n: wav_reply("It is Paris.", 1.5)) as foreign:
        with chat_server(lambda request, n: "4") as judge:
            asked = ["--endpoint", foreign.url, "--endpoint-model", "gpt-x", "--endpoint-voice", "alloy"]
            judged = ["--judge", judge.url, "--judge_model", "gpt-j"]
            assert main(arguments(questions, out, run_folder, *asked, *judged, whisper=tiny_whisper_pt)) == 0
            requests, verdicts = len(foreign.requests), len(judge.requests)
            table = capsys.readouterr().out
            # once more: nobody is asked, nothing is opened, and the same table
            assert main(arguments(questions, out, run_folder, *asked, *judged, whisper=tiny_whisper_pt)) == 0
            assert (len(foreign.requests), len(judge.requests), len(opened)) == (requests, verdicts, 1)
    assert capsys.readouterr().out == table
    assert requests == 5
    spoken = next(r for r in foreign.requests if isinstance(r["messages"][0]["content"], list))
    (part,) = spoken["messages"][0]["content"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    assert (part["type"], part["input_audio"]["format"], rate) == ("input_audio", "wav", 16_000) and len(samples) > 8000
    assert spoken["modalities"] == ["text", "audio"] and spoken["audio"] == {"voice": "alloy", "format": "wav"}
    assert spoken["max_tokens"] == 12

    theirs = load_answers(out / "gpt-x" / "answers.jsonl")
    assert [a.id for a in theirs] == ["q0", "q1", "q2", "q3", "w"] and {a.text for a in theirs} == {"It is Paris."}
    assert [a.scores["s2t"] for a in theirs] == [0, 1, 1, 1, 1]
    assert {a.reply_seconds for a in theirs} == {1.5} and theirs[0].spoken == "I heard 24000 samples"
    assert len(soundfile.read(out / "gpt-x" / theirs[0].reply_audio)[0]) == 24_000
    ours = load_answers(out / "run" / "answers.jsonl")
    assert all(a.units is not None and a.scores["s2tif"] == 4 for a in ours)

    facts = json.loads((out / "results.json").read_text())
    scores = facts["models"]["gpt-x"]["scores"]
    assert scores["s2t"]["value"] == pytest.approx(0.8) and scores["s2tif"]["value"] == 4
    assert scores["wps"]["value"] == pytest.approx(3 / 1.5)
    assert facts["judge"]["agreement"]["s2tif"] == {"n": 10, "equal": 1.0, "mean_difference": 0.0}
    assert "10" in facts["models"]["run"]["latency"]["omegas"] and facts["models"]["gpt-x"]["latency"] is None
    assert "1 questions, cpu, answers of at most 12 tokens" in table
    assert "| gpt-x | 5 |" in table and "| LLaMA-Omni | 199 |" in table and "run − gpt-x" in table


def test_times_are_measured_again_for_more_questions(
    opened, questions, run_folder, tmp_path, hears, tiny_whisper_pt, capsys
):
    out, timed = tmp_path / "out", []
    for number in (1, 3, 1):
        assert main(arguments(questions, out, run_folder, "--latency", number, whisper=tiny_whisper_pt)) == 0
        timed.append(json.loads((out / "run" / "latency.json").read_text()))
    assert [found["questions"] for found in timed] == [1, 3, 3] and timed[1] == timed[2]


def test_answers_are_those_of_the_model(opened, questions, run_folder, tmp_path, hears, tiny_whisper_pt):
    """Batches, files and resampling change nothing: the same question alone, in Python."""
    from speechzoo.generation import answer
    from speechzoo.talk.questions import question

    assert main(arguments(questions, tmp_path / "out", run_folder, whisper=tiny_whisper_pt)) == 0
    found = {a.id: a for a in load_answers(tmp_path / "out" / "run" / "answers.jsonl")}
    talker = Local("x", "x").talker
    for name, row in (("q1", 1), ("w", None)):
        sound = json.loads(questions.read_text().splitlines()[row])["audio"] if row else None
        message = question(sound, None if row else "Written question?")
        alone = answer(talker.model, [message], vocoder=talker.sound["vocoder"], max_new_tokens=12)
        assert (found[name].text, found[name].units) == (alone.text[0], alone.units[0].tolist())
        length = len(alone.audio[0]) / 8000 if alone.audio else 0.0
        assert found[name].reply_seconds == pytest.approx(length)


def test_a_killed_evaluation_goes_on_where_it_was(questions, tmp_path):
    asked = ["--endpoint-model", "m", "--parallel", 1]
    with chat_server(lambda request, n: "Paris" if n < 3 else (503, "", {})) as first:
        assert main(arguments(questions, tmp_path / "o", "--endpoint", first.url, *asked)) == 1
    facts = json.loads((tmp_path / "o" / "results.json").read_text())
    assert facts["models"]["m"]["answers"] == 3 and "status 503" in facts["models"]["m"]["stopped"]
    told = json.loads((tmp_path / "o" / "m" / "model.json").read_text())
    with chat_server(lambda request, n: "Paris") as second:
        told["endpoint"] = second.url  # the same server at another port
        (tmp_path / "o" / "m" / "model.json").write_text(json.dumps(told))
        assert main(arguments(questions, tmp_path / "o", "--endpoint", second.url, *asked)) == 0
        assert len(second.requests) == 2
    assert len(load_answers(tmp_path / "o" / "m" / "answers.jsonl")) == 5


def test_one_bad_reply_or_sound_is_named_and_the_rest_is_kept(questions, tmp_path, capsys):
    lines = questions.read_text().splitlines()
    bad = json.dumps({"id": "gone", "audio": "gone.wav", "reference": "x"})
    questions.write_text("\n".join([*lines, bad]) + "\n")
    with chat_server(lambda request, n: (200, "garbage", {}) if n in (1, 2) else "Paris") as foreign:  # both tries
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--parallel", 1]
        assert main(arguments(questions, tmp_path / "o", *asked)) == 0
        assert "2 m has no answer to: q1: http" in capsys.readouterr().out
        facts = json.loads((tmp_path / "o" / "results.json").read_text())
        assert (
            facts["models"]["m"]["answers"] == 4 and "gone.wav: no such audio file" in facts["models"]["m"]["faults"][1]
        )
        assert main(arguments(questions, tmp_path / "o", *asked)) == 0  # only q1 is asked again
    assert len(foreign.requests) == 7


def test_a_model_without_any_answer_is_no_success(questions, tmp_path, capsys):
    with chat_server(lambda request, n: (200, "garbage", {})) as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--written"]
        assert main(arguments(questions, tmp_path / "o", *asked)) == 1
    assert "5 m has no answer to" in capsys.readouterr().out
    questions.write_text("\n")
    assert main(arguments(questions, tmp_path / "empty", "--endpoint", "http://x/v1", "--endpoint-model", "m")) == 1
    assert "asked.jsonl: holds no question" in capsys.readouterr().err and not (tmp_path / "empty").exists()


def test_a_judge_that_is_away_costs_its_columns_only(questions, tmp_path, capsys):
    with chat_server(lambda request, n: "Paris") as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m"]
        assert (
            main(arguments(questions, tmp_path / "o", *asked, "--judge", "http://127.0.0.1:9/v1", "--judge-model", "j"))
            == 1
        )
        table = capsys.readouterr().out
        assert "| m | 5 | 80.0 %" in table and "not measured" in table and "the judge could not be asked" in table
        with chat_server(lambda request, n: "5") as judge:
            assert main(arguments(questions, tmp_path / "o", *asked, "--judge", judge.url, "--judge-model", "j")) == 0
    assert "5.00" in capsys.readouterr().out and len(foreign.requests) == 5


def test_another_model_or_suite_is_noticed(opened, questions, run_folder, tmp_path, hears, tiny_whisper_pt, capsys):
    words = arguments(questions, tmp_path / "o", run_folder, "--limit", 2, whisper=tiny_whisper_pt)
    assert main(words) == 0
    (run_folder / "model.safetensors").write_bytes(b"other weights")
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "was made with other settings (content: " in told and "--overwrite" in told
    assert len(load_answers(tmp_path / "o" / "run" / "answers.jsonl")) == 2
    assert main([*words, "--overwrite"]) == 0 and len(opened) == 2
    questions.write_text(questions.read_text().replace("London", "Rome"))
    assert main(words) == 1
    assert "1 questions are not what they were, such as 'q0'" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0 and len(opened) == 3


def test_a_recogniser_that_is_not_there_costs_no_answers(questions, tmp_path, hears, tiny_whisper_pt, capsys):
    with chat_server(lambda request, n: wav_reply("Paris", 0.5)) as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--endpoint-voice", "a"]
        assert main(arguments(questions, tmp_path / "o", *asked, whisper=tmp_path / "gone.pt")) == 1
        for _ in range(2):
            assert main(arguments(questions, tmp_path / "o", *asked, whisper=tiny_whisper_pt)) == 0
        assert len(foreign.requests) == len(hears) == 5
        capsys.readouterr()
        assert main(arguments(questions, tmp_path / "o", *asked, whisper=tmp_path / "gone.pt")) == 1
    assert "made with other settings (recogniser: " in capsys.readouterr().err  # what one wrote down stays its own


def test_overwrite_deletes_what_was_made_here_alone(questions, tmp_path, run_folder):
    """The folder of the questions may be that of the results, and a model's that of its answers."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "last.ckpt").write_bytes(b"weights")
    with chat_server(lambda request, n: "Paris") as foreign:
        for more in ([], ["--max-new-tokens", 3], ["--recogniser", "other"]):
            asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--written", *more]
            assert main(arguments(questions, tmp_path, *asked, "--overwrite")) == 0
            assert questions.is_file() and (run_folder / "model.safetensors").is_file()
            assert (tmp_path / "m" / "last.ckpt").read_bytes() == b"weights"
        assert len(foreign.requests) == 15


def test_answers_of_a_run_are_not_taken_for_those_to_a_suite(questions, tmp_path, capsys):
    """The run that is asked may lie in the folder given as --out, with what `speechzoo predict` left."""
    (tmp_path / "m").mkdir()
    save_answers(tmp_path / "m" / "answers.jsonl", [Answer("q0", "", "", "", "")])
    asked = ["--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m", "--written", "--overwrite"]
    assert main(arguments(questions, tmp_path, *asked)) == 1
    assert "m/answers.jsonl: not of this command" in capsys.readouterr().err


def test_a_longer_limit_goes_on(questions, tmp_path):
    with chat_server(lambda request, n: "Paris") as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m"]
        assert main(arguments(questions, tmp_path / "o", *asked, "--limit", 2)) == 0
        assert main(arguments(questions, tmp_path / "o", *asked)) == 0
        with chat_server(lambda request, n: "5") as judge:  # a shorter one loses nothing
            judged = ["--judge", judge.url, "--judge-model", "j"]
            assert main(arguments(questions, tmp_path / "o", *asked, *judged, "--limit", 2)) == 0
            assert len(judge.requests) == 4
    assert len(foreign.requests) == 5
    scored = [(a.scores or {}).get("s2tif") for a in load_answers(tmp_path / "o" / "m" / "answers.jsonl")]
    assert scored == [5, 5, None, None, None]
    assert json.loads((tmp_path / "o" / "results.json").read_text())["models"]["m"]["answers"] == 2


def test_a_full_disk_loses_nothing_that_was_written(questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(work, "SHARE", 1e9)  # written after each answer
    real, saved = work.save_answers, []

    def full(path, answers):
        saved.append(len(answers))
        if len(saved) >= 3:
            import errno

            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, answers)

    monkeypatch.setattr(work, "save_answers", full)
    with chat_server(lambda request, n: "Paris") as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--parallel", 1]
        assert main(arguments(questions, tmp_path / "o", *asked)) == 1
        assert "No space left" in capsys.readouterr().err
        assert len(load_answers(tmp_path / "o" / "m" / "answers.jsonl")) == 2
        before = len(foreign.requests)
        monkeypatch.setattr(work, "save_answers", real)
        assert main(arguments(questions, tmp_path / "o", *asked)) == 0
        assert len(foreign.requests) == before + 3


def result(out: Path, model: str = "m") -> dict:
    return json.loads((out / "results.json").read_text())["models"][model]


def test_recognition_by_instruction_and_word_errors(tmp_path, capsys):
    with chat_server(lambda request, n: "He hoped there would be stews.") as foreign:
        asked = ["--suite", "librispeech-test-clean", "--data", librispeech(tmp_path), "--out", tmp_path / "o"]
        assert main([str(w) for w in [*asked, "--endpoint", foreign.url, "--endpoint-model", "m"]]) == 0
    (request,) = foreign.requests
    text, clip = request["messages"][0]["content"]
    assert text == {"type": "text", "text": "Transcribe the following speech into text."}
    assert clip["type"] == "input_audio"
    scores = result(tmp_path / "o")["scores"]
    assert scores["wer"]["value"] == pytest.approx(1 / 6)  # he hoped there would be stew
    assert scores["cer"]["value"] == pytest.approx(1 / 28)
    assert "3 not in the suite: 1089-134686-0001" in capsys.readouterr().out


def test_voicebench_by_letter_and_by_judge(tmp_path, capsys):
    clip = sound(wav(tmp_path / "a.wav"))
    rows = [{"prompt": f"Which? {n}", "audio": clip, "reference": letter} for n, letter in enumerate("ABCD")]
    parquet(tmp_path / "mmsu" / "law-00000-of-00001.parquet", rows)
    for region, answer in (("usa", "Paris"), ("ind_n", "Rome")):
        row = {"prompt": f"Where is {answer}?", "audio": clip, "reference": answer}
        parquet(tmp_path / "sd-qa" / f"{region}-00000-of-00001.parquet", [row])

    def out(name: str) -> list[str]:
        return ["--suite", f"voicebench/{name}", "--data", str(tmp_path), "--out", str(tmp_path / f"o-{name}")]

    says = ["The answer is A.", "B", "I am not sure", "(A)"]
    with chat_server(lambda request, n: says[n] if n < 4 else "Paris, of course") as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--parallel", "1"]
        assert main([*out("mmsu"), *asked]) == 0
        with chat_server(lambda r, n: "yes" if "Where is Paris" in r["messages"][0]["content"] else "no") as judge:
            assert main([*out("sd-qa"), *asked, "--judge", judge.url, "--judge-model", "j"]) == 0
    scores = result(tmp_path / "o-mmsu")["scores"]
    assert scores["choice"]["value"] == (1 + 1 + 0.25 + 0) / 4 and scores["no_choice"]["value"] == 0.25
    scores = result(tmp_path / "o-sd-qa")["scores"]
    assert scores["judged_s2t"]["value"] == scores["s2t"]["value"] == 0.5
    told = capsys.readouterr().out
    assert "| ind\\_n | 1 | 0.0 %" in told and "| usa | 1 | 100.0 %" in told


def test_written_asks_the_words(questions, tmp_path):
    with chat_server(lambda request, n: "Paris") as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--parallel", 1, "--written"]
        assert main(arguments(questions, tmp_path / "o", *asked)) == 0
    assert [r["messages"][0]["content"] for r in foreign.requests][:2] == ["question 0?", "question 1?"]


def test_other_words_of_a_question_without_its_sound_are_noticed(tmp_path, capsys):
    """The sound is not needed in writing, so the words alone say whether a kept answer is one to this question."""
    file, codes = tmp_path / "asked.jsonl", []
    with chat_server(lambda request, n: "Paris") as foreign:
        for words in ("A town?", "A town?", "A colour?"):
            file.write_text(json.dumps({"id": "a", "question": words, "audio": "gone.wav"}))
            asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--written"]
            codes.append(main(arguments(file, tmp_path / "o", *asked)))
    assert codes == [0, 0, 1] and "questions are not what they were, such as 'a'" in capsys.readouterr().err


def test_answers_that_were_cut_off_are_told(questions, tmp_path, capsys):
    cut = json.dumps({"choices": [{"message": {"content": "Paris is"}, "finish_reason": "length"}]})
    with chat_server(lambda request, n: "Paris" if n else (200, cut, {})) as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--parallel", 1, "--written"]
        assert main(arguments(questions, tmp_path / "o", *asked)) == 0
    assert "1 of 5 answers of m were cut off at the longest allowed." in capsys.readouterr().out
    assert [answer.stopped for answer in load_answers(tmp_path / "o" / "m" / "answers.jsonl")][:2] == [False, None]


def test_wandb_has_the_sound(questions, tmp_path, monkeypatch, hears, tiny_whisper_pt):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "o"
    with chat_server(lambda request, n: wav_reply("Paris", 0.5)) as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--endpoint-voice", "a"]
        assert main(arguments(questions, out, *asked, whisper=tiny_whisper_pt)) == 0
    (table,) = out.glob("wandb/offline-run-*/files/media/table/answers*.json")
    rows = json.loads(table.read_text())
    assert len(rows["data"]) == 5 and rows["columns"][:4] == ["model", "id", "kind", "question"]
    assert (
        len(list(out.glob("wandb/offline-run-*/files/media/audio/*"))) == 5
    )  # 4 questions, and the answers, which are all alike


def test_wandb_does_without_a_sound_that_is_gone(questions, tmp_path, monkeypatch):
    """Asked in writing, or answered before: the answers are there, and the table has them."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = [{"id": "a", "question": "Why?", "audio": "gone.wav"}]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with chat_server(lambda request, n: "Paris") as foreign:
        asked = ["--endpoint", foreign.url, "--endpoint-model", "m", "--written"]
        assert main(arguments(questions, tmp_path / "o", *asked)) == 0
    (table,) = (tmp_path / "o").glob("wandb/offline-run-*/files/media/table/answers*.json")
    assert len(json.loads(table.read_text())["data"]) == 1


def test_who_is_asked_has_to_be_said(questions, tmp_path, capsys):
    for words, why in (
        ([], "there is nobody to ask"),
        (["--endpoint", "http://x/v1"], "belong together"),
        (["m", "--judge", "http://x/v1"], "give --judge-model"),
    ):
        with pytest.raises(SystemExit):
            main(arguments(questions, tmp_path, *words))
        assert why in capsys.readouterr().err
    assert main(["--suite", "list"]) == 0
    assert "voicebench/mmsu" in capsys.readouterr().out
    assert main(arguments(questions, tmp_path, "nowhere/at/all")) == 1
    assert "nowhere/at/all: no such folder" in capsys.readouterr().err
