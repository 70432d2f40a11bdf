"""Released sets in the layouts they have on the hub, in miniature; cards and contamination."""

from __future__ import annotations

import io
import json
from pathlib import Path

import corpus_files
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from speechzoo.cli import main
from speechzoo.corpora.card import join
from speechzoo.corpora.contamination import overlaps
from speechzoo.corpora.stage import Item, Shard, Stage, each
from speechzoo.system.files import read_jsonl, write_json


def sound(seconds: float = 0.25) -> bytes:
    made = io.BytesIO()
    soundfile.write(made, [0.2, -0.1] * int(seconds * 8000), 16000, format="WAV")
    return made.getvalue()


def parquet(path: Path, rows: list[dict]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def build(out: Path, given: str, *more: str) -> tuple[dict, dict, dict]:
    """Records and reasons by id, and the numbers."""
    assert main(["data", "released", str(out), given, *more]) == 0
    records = {record["id"]: record["messages"] for record in read_jsonl(out / "data.jsonl")}
    reasons = {row["id"]: row["reason"] for row in read_jsonl(out / "broken.jsonl")}
    return records, reasons, json.loads((out / "numbers.json").read_text())


@pytest.fixture
def multiturn(tmp_path: Path) -> str:
    corpus_files.clip(tmp_path / "wav" / "q1.wav", 0.5)
    corpus_files.clip(tmp_path / "wav" / "q2.wav", 0.25)
    corpus_files.clip(tmp_path / "wav" / "a2.wav", 1.5)

    def turn(who: str, text: str, **more: object) -> dict:
        return {"from": who, "text": text, **more}

    rows = [
        {
            "id": "c1",
            "conversation": [
                turn("human", "Hello there?", speech="wav/q1.wav"),
                turn("gpt", "Hi!", unit=[5, 5, 999, 3]),
                turn("human", "And now?", speech="wav/q2.wav"),
                turn("gpt", "Bye.", unit=[7, 8], speech="wav/a2.wav"),
            ],
        },
        {
            "id": "c2",
            "conversation": [turn("human", "A", speech="wav/q1.wav"), turn("gpt", "B", unit=[1, 1000, 4000, 4001])],
        },
        {"id": "c3", "conversation": [turn("human", "A", speech="wav/none.wav"), turn("gpt", "B", unit=[1])]},
        {"id": "c4", "conversation": [turn("gpt", "B", unit=[1]), turn("human", "A", speech="wav/q1.wav")]},
        {"id": "c5", "talk": []},
    ]
    file = tmp_path / "multiturn_en.json"
    file.write_text(json.dumps(rows, indent=2))
    return str(file)


def test_multiturn_conversations_and_units_beyond_the_range_refused(multiturn: str, tmp_path: Path):
    records, reasons, numbers = build(tmp_path / "out", f"multiturn={multiturn}")
    assert reasons == {
        "multiturn-c2": "units of 1000 and above",
        "multiturn-c3": "no sound file",
        "multiturn-#3": "roles out of turn",
        "multiturn-#4": "unknown layout",
    }
    assert records == {
        "multiturn-c1": [
            {
                "role": "user",
                "content": [{"type": "audio", "path": str(tmp_path / "wav" / "q1.wav"), "transcript": "Hello there?"}],
            },
            {"role": "assistant", "content": "Hi!", "units": [5, 999, 3]},
            {
                "role": "user",
                "content": [{"type": "audio", "path": str(tmp_path / "wav" / "q2.wav"), "transcript": "And now?"}],
            },
            {"role": "assistant", "content": "Bye.", "units": [7, 8], "audio": str(tmp_path / "wav" / "a2.wav")},
        ]
    }
    assert numbers["rounds"] == 2 and numbers["units"]["mean"] == 2.5 and numbers["units_used"] == 5
    assert numbers["user_seconds"]["mean"] == 0.375 and numbers["answer_seconds"]["mean"] == 1.5
    detail = read_jsonl(tmp_path / "out" / "broken.jsonl")[0]["detail"]
    assert detail == "3 of 4, the largest 4001"


def test_units_beyond_the_range_clipped_or_left_away_by_name(multiturn: str, tmp_path: Path):
    clipped, _, numbers = build(tmp_path / "clip", f"multiturn={multiturn}", "--large-units", "clip")
    assert clipped["multiturn-c2"][1]["units"] == [1, 999]
    assert numbers["units_beyond_range"] == 3
    assert "| units beyond the range, changed | 3 |" in (tmp_path / "clip" / "README.md").read_text()
    without, _, numbers = build(tmp_path / "without", f"multiturn={multiturn}", "--large-units", "without")
    assert "units" not in without["multiturn-c2"][1]
    assert without["multiturn-c1"][1]["units"] == [5, 999, 3]
    wider, reasons, _ = build(tmp_path / "wider", f"multiturn={multiturn}", "--num-units", "6561")
    assert wider["multiturn-c2"][1]["units"] == [1, 1000, 4000, 4001] and "multiturn-c2" not in reasons


def test_instructs2s_rounds_with_the_history_in_the_question(tmp_path: Path):
    def row(round: int, question: str, answer: str, units: list[int]) -> dict:
        audio = {"bytes": sound(), "path": "x.wav"}
        return {
            "id": 4, "round": round, "question": question, "answer": answer,
            "question_audio": audio, "speech_token": units,
        }  # fmt: skip

    history = "<USER>: Who are you? <ASSISTANT>: A model. <USER>: Of what?"
    rows = [
        {**row(1, "Who are you?", "A model.", [3, 3, 4]), "answer_audio": {"bytes": sound(0.5), "path": "y.wav"}},
        {**row(2, history, "Of speech.", [6560]), "answer_audio": {"bytes": b"", "path": "none.wav"}},
        row(3, "<USER>: a <USER>: b <USER>: c", "d", [1]),
        {**row(4, "What?", "x", [1]), "question_audio": {"bytes": b"RIFF nothing", "path": "x.wav"}},
    ]
    records, reasons, numbers = build(
        tmp_path / "out", f"instructs2s={parquet(tmp_path / 'a.parquet', rows)}", "--large-units", "without"
    )
    assert numbers["answers_without_their_sound"] == 1
    first = records["instructs2s-4-1"]
    assert (tmp_path / "out" / first[1].pop("audio")).read_bytes() == sound(0.5)
    assert first[1] == {"role": "assistant", "content": "A model.", "units": [3, 4]}
    (part,) = first[0]["content"]
    assert part["transcript"] == "Who are you?"
    assert (tmp_path / "out" / part["path"]).read_bytes() == sound()
    assert records["instructs2s-4-2"] == [
        {"role": "user", "content": "Who are you?"},
        {"role": "assistant", "content": "A model."},
        {"role": "user", "content": [{**part, "transcript": "Of what?"}]},  # the same bytes: one file
        {"role": "assistant", "content": "Of speech."},
    ]
    assert reasons == {"instructs2s-#2": "roles out of turn", "instructs2s-4-4": "unusable sound"}


def test_voiceassistant_keeps_no_codes_of_snac(tmp_path: Path):
    row = {
        "split_name": "quora", "index": "12", "round": "1", "question": "Hi?", 
        "question_audio": {"bytes": sound(), "path": "x"},
        "answer": "Hello.", "answer_snac": "# 1 2 3 4 5 6 7",
    }  # fmt: skip
    records, _, _ = build(tmp_path / "out", f"voiceassistant={parquet(tmp_path / 'a.parquet', [row])}")
    assert records["voiceassistant-quora-12-1"][1] == {"role": "assistant", "content": "Hello."}


def test_the_layout_that_llasms_code_reads(tmp_path: Path):
    corpus_files.clip(tmp_path / "a.wav")
    ask, answer = {"from": "human", "value": "<audio>", "audio": "a.wav"}, {"from": "gpt", "value": "好的。"}
    rows = [
        {"id": "1", "instruction": "Be kind.", "conversations": [ask, answer]},
        {"id": "2", "conversations": [answer]},
    ]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records, reasons, _ = build(tmp_path / "out", f"llasm={tmp_path / 'l.jsonl'}", "--language", "zh")
    assert [message["role"] for message in records["llasm-1"]] == ["system", "user", "assistant"]
    assert reasons == {"llasm-#1": "unknown layout"}
    rows[0]["conversations"][0]["value"] = 5
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, reasons, _ = build(tmp_path / "other", f"llasm={tmp_path / 'm.jsonl'}", "--language", "zh")
    assert reasons == {"llasm-#0": "unknown layout", "llasm-#1": "unknown layout"}


def test_contamination_by_ngrams_worked_out_by_hand():
    questions = [("q1", "What is the capital of France?"), ("q2", "Name three colours"), ("q3", "法国的首都在哪里")]
    training = [
        ("a", "Tell me: what is the capital of Peru?"),
        ("b", "THE CAPITAL OF FRANCE is Paris"),
        ("c", "please name three colours now"),
        ("d", "请问法国的首都是什么"),
    ]
    found = {overlap.id: overlap for overlap in overlaps(questions, training, n=4)}
    # q1 has 3 four-grams: "what is the capital", "is the capital of" (in a), "the capital of france" (in b).
    assert (found["q1"].ngrams, found["q1"].found, found["q1"].records) == (3, 3, ["a", "b"])
    # q2 has three words: one three-gram, in c.
    assert (found["q2"].ngrams, found["q2"].found, found["q2"].records) == (1, 1, ["c"])
    # q3 has 8 characters, 5 four-grams; d has 法国的首, 国的首都.
    assert (found["q3"].ngrams, found["q3"].found, found["q3"].share) == (5, 2, 0.4)


def test_a_text_in_two_scripts_is_found_too():
    """Each side has the normaliser of the question: alone, a text with Cyrillic in it would keep its "twenty-one"."""
    question = "What's the colour of the twenty-one big red houses?"
    (found,) = overlaps([("q", question)], [("t", f"Москва: {question}")])
    assert found.share == 1
    with pytest.raises(ValueError, match="at least 1"):
        overlaps([("q", question)], [], n=0)


def test_another_source_or_language_is_refused_and_changes_nothing(multiturn: str, tmp_path: Path, capsys):
    out, file = tmp_path / "out", Path(multiturn)
    build(out, f"multiturn={multiturn}", "--licence", "mit")
    about = (out / "dataset.json").read_bytes()
    assert main(["data", "released", str(out), f"multiturn={multiturn}", "--language", "zh"]) == 1
    assert "language: 'en' there, 'zh' asked" in capsys.readouterr().err
    assert main(["data", "released", str(out), f"llasm={multiturn}", "--licence", "other", "--title", "x"]) == 1
    assert (out / "dataset.json").read_bytes() == about
    file.write_text(file.read_text().replace("Hi!", "Ho!"))
    assert main(["data", "released", str(out), f"multiturn={multiturn}"]) == 1
    assert "content: " in capsys.readouterr().err
    assert (out / "dataset.json").read_bytes() == about


def test_a_record_that_two_shards_did_is_joined_once(tmp_path: Path):
    """The input grew between their runs, so that others are every second one."""
    work = each(lambda value: {"messages": [{"role": "user", "content": value["text"]}]})
    for ids in ("bc", "abc"):
        for index in (0, 1):
            items = [Item(number, name, {"text": name}) for number, name in enumerate(ids)]
            Stage(tmp_path / "clips", Shard(index, 2), {}).run(items, work)
    about = {"title": "t", "licences": {"a|b": "mit"}, "tasks": [], "stages": ["clips"], "shards": 2, "command": "x"}
    write_json(tmp_path / "dataset.json", about)
    assert join(tmp_path)["records"] == 3
    assert sorted(record["id"] for record in read_jsonl(tmp_path / "data.jsonl")) == ["a", "b", "c"]
    assert "| a\\|b | mit |" in (tmp_path / "README.md").read_text()


def test_sound_in_the_folder_is_named_from_there_however_the_folder_is(tmp_path: Path):
    (tmp_path / "x").mkdir()
    out = tmp_path / "x" / ".." / "out"
    clip = tmp_path / "a.wav"
    corpus_files.clip(clip, 0.5)
    row = {"question": "A?", "question_audio": {"bytes": clip.read_bytes(), "path": None}, "answer": "B", "id": 1}
    assert main(["data", "released", str(out), f"instructs2s={parquet(tmp_path / 't.parquet', [row])}"]) == 0
    assert main(["data", "join", str(tmp_path / "out")]) == 0
    (record,) = read_jsonl(tmp_path / "out" / "data.jsonl")
    assert record["messages"][0]["content"][0]["path"].startswith("audio/")


def test_contamination_goes_into_the_card(multiturn: str, tmp_path: Path, capsys):
    out = tmp_path / "out"
    build(out, f"multiturn={multiturn}")
    assert "Not checked" in (out / "README.md").read_text()
    questions = [{"id": "e1", "question": "Hello there!"}, {"id": "e2", "question": "Something else?"}]
    file = tmp_path / "eval.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in questions))
    assert main(["data", "contamination", str(out), str(file)]) == 0
    found = json.loads((out / "contamination.json").read_text())
    assert [(row["id"], row["share"], row["records"]) for row in found["overlaps"]] == [("e1", 1.0, ["multiturn-c1"])]
    assert "1 of 2 questions of `eval.jsonl`" in (out / "README.md").read_text()
    lost = tmp_path / "wav" / "none.wav"
    corpus_files.clip(lost, 0.5)
    build(out, f"multiturn={multiturn}")  # now with one record more
    assert "Not checked since the records changed" in (out / "README.md").read_text()
    assert main(["data", "contamination", str(out), str(file), "--key", "text"]) == 1
    assert "record 1 has no text 'text'" in capsys.readouterr().err
    assert main(["data", "contamination", str(tmp_path / "no"), str(file)]) == 1
