"""Suites in the layouts they are published in, miniature files of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from layouts import librispeech, lines, parquet, sound, wav

from speechzoo.suites.catalogue import SUITES, suite
from speechzoo.suites.questions import OWN, Question, read_sound, read_table
from speechzoo.suites.systems import conversation

CLIP = {"type": "audio", "path": "a.wav"}


def test_questions_of_ones_own(tmp_path: Path):
    wav(tmp_path / "a.wav")
    file = lines(
        tmp_path / "mine.jsonl",
        {"id": "a", "audio": "a.wav", "question": "Capital?", "reference": "Paris"},
        {"question": "Who wrote it?", "references": ["Shakespeare", "the Bard"], "kind": "written"},
        {"id": 7, "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Listen:"}, {"type": "audio", "path": "a.wav"}]},
            {"role": "assistant", "content": "Yes."},
        ]},
        {"id": "", "question": "", "text": "How?", "audio": "", "references": [], "answer": "Well."},
    )  # fmt: skip
    name, found, data = suite(str(file))
    questions, missing = found.read(data)
    assert (name, missing) == ("mine", [])
    assert questions[0] == Question("a", "Capital?", str(tmp_path / "a.wav"), ("Paris",))
    assert questions[1] == Question("mine-00002", "Who wrote it?", None, ("Shakespeare", "the Bard"), "written")
    assert questions[2] == Question("7", "", str(tmp_path / "a.wav"), ("Yes.",), around=("Listen:", ""))
    assert questions[3] == Question("mine-00004", "How?", None, ("Well.",))  # empty cells say nothing
    assert len(read_sound(questions[0])) == 8000


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([1], "mine.jsonl:1: a question is an object"),
        ({"id": "x"}, "mine.jsonl:1: neither words nor sound"),
        ({"question": "a", "audio": 3}, "mine.jsonl:1: `question` is a text, `audio` the path"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "mine.jsonl:1: 2 user turns"),
        ({"messages": [{"role": "user", "content": [CLIP] * 2}]}, "mine.jsonl:1: 2 clips"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "mine.jsonl:1: 1 clips; .* with its path"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "mine.jsonl:1: the content of a turn"),
        ({"question": "a", "references": [["b"]]}, "mine.jsonl:1: a right answer is a text"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [CLIP]}]},
            "mine.jsonl:1: the content of a system message or an answer",
        ),
        ({"question": "cut off \ud83d"}, r"mine.jsonl:1: holds '.ud83d', half of a character"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path: Path, row: object, why: str):
    with pytest.raises(ValueError, match=why):
        read_table([lines(tmp_path / "mine.jsonl", row)])


def test_a_conversation_is_asked_with_all_that_training_reads(tmp_path: Path):
    """The instruction beside the clip, on its side of it, and the system message; its words for judges and writing."""
    clip = {**CLIP, "path": str(wav(tmp_path / "a.wav")), "transcript": "where is it"}
    rows = [
        {"messages": [{"role": "user", "content": [clip, {"type": "text", "text": "Translate."}]}]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [clip]}]},
        {"messages": [{"role": "user", "content": [CLIP]}]},
        {"messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "day."}]},
        ]},
    ]  # fmt: skip
    first, second, third, parts = read_table([lines(tmp_path / "mine.jsonl", *rows)])
    assert (first.text, second.text, third.text) == ("where is it\nTranslate.", "where is it", "")
    assert (parts.system, parts.references) == ("Be brief.", ("Good day.",))
    (asked,) = conversation(first, "", written=False)
    assert [part["type"] for part in asked["content"]] == ["audio", "text"]
    assert asked["content"][1]["text"] == "Translate."
    assert conversation(first, "", written=True) == [{"role": "user", "content": "where is it\nTranslate."}]
    system, asked = conversation(second, "Listen:", written=False)
    assert system == {"role": "system", "content": "Be brief."}
    assert asked["content"][0] == {"type": "text", "text": "Listen:"}  # the suite's, where there is none of its own
    assert first.digest() != replace(first, around=("Translate.", "")).digest()
    assert second.digest() != replace(second, system="").digest()


def test_a_line_that_is_not_json_and_an_id_that_comes_twice(tmp_path: Path):
    file = tmp_path / "x.jsonl"
    file.write_text('{"question": "a", "id": "1"}\n{"question": "b", "id": "1"}\n')
    with pytest.raises(ValueError, match=r"x.jsonl:2: the id '1' comes twice"):
        read_table([file])
    file.write_text('{"question": "a"}\n{"question"\n')
    with pytest.raises(ValueError, match=r"x.jsonl:2: not JSON"):
        read_table([file])


def test_sound_in_parquet_is_read_from_its_row(tmp_path: Path):
    clips = [wav(tmp_path / f"{n}.wav", 0.2 + 0.1 * n, n) for n in range(4)]
    rows = [{"prompt": f"question {n}", "audio": sound(clip)} for n, clip in enumerate(clips)]
    file = parquet(tmp_path / "voicebench" / "commoneval" / "test-00000-of-00001.parquet", rows, groups=2)
    questions, _ = SUITES["voicebench/commoneval"].read(file.parents[1])
    assert [q.text for q in questions] == [f"question {n}" for n in range(4)]
    assert [len(read_sound(q)) for q in questions] == [3200, 4800, 6400, 8000]
    assert len({q.digest() for q in questions}) == 4


def test_an_empty_cell_of_parquet_is_no_sound(tmp_path: Path):
    clip = sound(wav(tmp_path / "a.wav"))
    rows = [
        {"prompt": f"question {n}", "audio": cell} for n, cell in enumerate((clip, None, {"bytes": b"", "path": None}))
    ]
    file = parquet(tmp_path / "voicebench" / "commoneval" / "test-00000-of-00001.parquet", rows)
    questions, _ = SUITES["voicebench/commoneval"].read(file.parents[1])
    assert [q.sound is not None for q in questions] == [True, False, False]
    parquet(file.with_name("test-00000-of-00002.parquet"), [*rows, {"prompt": None, "audio": None}])
    file.unlink()
    with pytest.raises(ValueError, match=r"parquet:4: neither words nor sound"):
        SUITES["voicebench/commoneval"].read(file.parents[1])


def test_voicebench_parts_are_the_files_splits(tmp_path: Path):
    clip = sound(wav(tmp_path / "a.wav"))
    for split, letter in (("law", "A"), ("physics", "D")):
        row = {"prompt": "Which? A. x B. y", "audio": clip, "reference": letter}
        parquet(tmp_path / "mmsu" / f"{split}-00000-of-00001.parquet", [row])
    questions, _ = SUITES["voicebench/mmsu"].read(tmp_path)
    assert [(q.kind, q.references) for q in questions] == [("law", ("A",)), ("physics", ("D",))]


def test_voicebench_ifeval_keeps_its_instructions(tmp_path: Path):
    row = {
        "key": 1000,
        "prompt": "Say it without commas.",
        "audio": sound(wav(tmp_path / "a.wav")),
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None}],
    }
    parquet(tmp_path / "ifeval" / "test-00000-of-00001.parquet", [row])
    (question,), _ = SUITES["voicebench/ifeval"].read(tmp_path)
    assert question.id == "1000"
    assert question.more == {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None}]}


def test_trivia_qa_has_aliases_and_web_questions_lists(tmp_path: Path):
    clip = sound(wav(tmp_path / "a.wav"))
    answer = {"value": "Sunset Boulevard", "aliases": ["Sunset Blvd", "Sunset Boulevard"], "type": "WikipediaEntity"}
    pages = [{"title": "Sunset", "wiki_context": "long"}]
    row = {
        "question": "Where?",
        "question_id": "tc_33",
        "answer": answer,
        "question_audio": clip,
        "entity_pages": pages,
    }
    parquet(tmp_path / "trivia" / "rc.wikipedia" / "validation-00000-of-00001.parquet", [row])
    (trivia,), _ = SUITES["trivia-qa"].read(tmp_path / "trivia")
    assert (trivia.id, trivia.references) == ("tc_33", ("Sunset Boulevard", "Sunset Blvd"))
    parquet(tmp_path / "web.parquet", [{"question": "Who?", "answers": ["a b", "c"], "audio": clip}])
    (web,), _ = SUITES["web-questions"].read(tmp_path / "web.parquet")
    assert web.references == ("a b", "c")


def test_librispeech(tmp_path: Path):
    root = librispeech(tmp_path)
    questions, missing = SUITES["librispeech-test-clean"].read(root)
    assert [(q.id, q.references) for q in questions] == [("1089-134686-0000", ("HE HOPED THERE WOULD BE STEW",))]
    assert [line.split(": ")[0][-4:] for line in missing] == ["0001", "0002", "0009"]
    assert SUITES["librispeech-test-clean"].read(root / "test-clean")[0] == questions  # the split's own folder
    with pytest.raises(FileNotFoundError, match="has no part test-other"):
        SUITES["librispeech-test-other"].read(root / "test-clean" / "1089")


def test_aishell(tmp_path: Path):
    root = tmp_path / "data_aishell"
    wav(root / "wav" / "test" / "S0764" / "BAC009S0764W0121.wav")
    wav(root / "wav" / "test" / "S0764" / "BAC009S0764W0122.wav")
    wav(root / "wav" / "train" / "S0002" / "BAC009S0002W0122.wav")
    (root / "transcript").mkdir()
    (root / "transcript" / "aishell_transcript_v0.8.txt").write_text(
        "BAC009S0764W0121 甚至 出现 交易\nBAC009S0002W0122 而 对 楼市\n"
    )
    questions, missing = SUITES["aishell-1"].read(tmp_path)
    assert [(q.id, q.references) for q in questions] == [("BAC009S0764W0121", ("甚至出现交易",))]
    (fault,) = missing
    assert fault.startswith("BAC009S0764W0122: no transcript")
    assert "转写" in SUITES["aishell-1"].words


def test_instructs2s_is_helpful_base_and_vicuna_without_mathematics_and_code(tmp_path: Path):
    rows = [
        {"dataset": "helpful_base", "instruction": "What is a whale?", "output": "x", "generator": "davinci"},
        {"dataset": "koala", "instruction": "Left out."},
        {"dataset": "vicuna", "instruction": "Write a C++ program."},
        {"dataset": "vicuna", "instruction": "How do I sleep better?"},
        {"dataset": "helpful_base", "instruction": "Who made Berlin?", "expected": "Nobody."},  # of a file of one's own
    ]
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(rows))
    with pytest.raises(FileNotFoundError, match=r"question.jsonl: no such file; it is from lm-sys/vicuna-blog-eval"):
        SUITES["instructs2s"].read(tmp_path)
    lines(
        tmp_path / "question.jsonl",
        {"question_id": 61, "text": "Write a C++ program.\n", "category": "coding"},
        {"question_id": 1, "text": "How do I sleep better?", "category": "generic"},
    )
    wav(tmp_path / "audio" / "helpful_base-001.flac")
    questions, _ = SUITES["instructs2s"].read(tmp_path)
    assert [(q.id, q.text) for q in questions] == [
        ("helpful_base-000", "What is a whale?"),
        ("vicuna-000", "How do I sleep better?"),
        ("helpful_base-001", "Who made Berlin?"),
    ]
    assert [q.sound is not None for q in questions] == [False, False, True]
    assert [q.references for q in questions] == [(), (), ("Nobody.",)]


def test_what_is_missing_is_told_in_one_line(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"give --data FOLDER \(folder mmsu of the hub's hlt-lab/voicebench\)"):
        SUITES["voicebench/mmsu"].read(None)
    with pytest.raises(FileNotFoundError, match="holds none of"):
        SUITES["voicebench/mmsu"].read(tmp_path)
    with pytest.raises(ValueError, match=r"no suite and no file .* quickstart"):
        suite("quikstart")


def test_sound_that_cannot_be_asked_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"31.0 s long, and a clip takes at most 30 s"):
        read_sound(Question("x", sound=str(wav(tmp_path / "long.wav", 31))))
    with pytest.raises(FileNotFoundError):
        read_sound(Question("x", sound=str(tmp_path / "none.wav")))


def test_columns_of_all_suites_are_there():
    from speechzoo.suites.columns import COLUMNS

    assert {key for one in SUITES.values() for key in one.columns} <= set(COLUMNS)
    assert OWN.keys() == {"id", "text", "sound", "references", "kind"}


def test_files_of_others_are_read_by_lines_and_their_faults_named(tmp_path: Path):
    (tmp_path / "alpaca_eval.json").write_text('[{"dataset": "vicuna", "instruction": "One two?"}]')
    file = tmp_path / "question.jsonl"
    file.write_text('{"text": "One two?", "category": "math"}\n\n{"text": "b", "category": "generic"}\n')
    assert SUITES["instructs2s"].read(tmp_path) == ([], [])
    file.write_text('{"text": "a", "category": "math"}\n{"text": "b"}\n')
    with pytest.raises(ValueError, match=r"question.jsonl:2: a record has the texts text, category"):
        SUITES["instructs2s"].read(tmp_path)
    file.write_text('{"text": 5, "category": "math"}\n')
    with pytest.raises(ValueError, match=r"question.jsonl:1: a record has the texts"):
        SUITES["instructs2s"].read(tmp_path)
    for content, kind in (("5", "int"), ('{"question": "a"}', "dict")):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match=rf"other.json: holds {kind}, and not a list"):
            read_table([tmp_path / "other.json"])
    (tmp_path / "latin.jsonl").write_bytes('{"question": "Où?"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.jsonl: not a text in UTF-8"):
        read_table([tmp_path / "latin.jsonl"])
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf[{"question": "a"}]')
    assert read_table([tmp_path / "bom.json"])[0].text == "a"
