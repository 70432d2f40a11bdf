"""The numbers of a table, worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechzoo.evaluation.answers import Answer
from speechzoo.suites.catalogue import QUESTIONS, SUITES
from speechzoo.suites.columns import COLUMNS
from speechzoo.suites.evaluate import Evaluated
from speechzoo.suites.results import latency_table, main_table, write_results

ANSWERS = [
    # 1 of 4 words wrong and 2 of 17 letters; spoken right; 4 words in 2 s
    Answer("a", "x", "qa?", "it is in france", "it is in Finland", spoken="it is in Finland", reply_seconds=2.0,
           quality={"UTMOS": 4.0},
           scores={"s2tif": 4.0, "s2sif": 3.0, "s2t": 0.0, "ifeval_strict": 1, "ifeval_total": 3}),
    # right; spoken with 1 word of 2 wrong; 2 words in 1 s
    Answer("b", "y", "qb?", "hello joe", "hello joe", spoken="hello jo", reply_seconds=1.0,
           quality={"UTMOS": 3.0}, scores={"s2tif": 5.0, "s2t": 1.0, "ifeval_strict": 2, "ifeval_total": 2}),
    # no reference, no speech
    Answer("c", "y", "qc?", "", "well", scores={"s2tif": 3.0}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "covered"),
    [
        ("s2tif", 4.0, 3),
        ("s2sif", 3.0, 1),
        ("s2t", 0.5, 2),
        ("asr_wer", 1 / 6, 2),
        ("asr_cer", 1 / 25, 2),  # "it is in finland" 16 letters and blanks, "hello joe" 9, one of them missing
        ("utmos", 3.5, 2),
        ("wps", 6 / 3, 2),
        ("wer", 1 / 6, 2),
        ("ifeval_strict", 3 / 5, 2),
    ],
)
def test_columns_by_hand(key: str, value: float, covered: int):
    found = COLUMNS[key].interval(ANSWERS, 0)
    assert found.value == pytest.approx(value)
    assert found.low <= value <= found.high
    assert len(COLUMNS[key].counted(ANSWERS)) == covered


def test_a_column_without_answers_is_not_measured():
    assert COLUMNS["refusal"].interval(ANSWERS, 0) is None


def test_the_table_has_the_papers_rows_beside_ours():
    text = main_table(SUITES["instructs2s"], [Evaluated("ours", ANSWERS, [])], 0).to_markdown()
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in text.splitlines()}
    assert rows["ours"][0] == "3" and rows["ours"][1].startswith("4.00") and "n = 1" in rows["ours"][2]
    assert rows["ours"][6] == "not measured"  # Distill-MOS
    # arXiv 2409.06666v2, Table 2, last row
    assert rows["LLaMA-Omni"] == ["199", "3.99", "3.47", "10.8 %", "–", "3.9296", "–", "2.73", "–", "–"]
    assert rows["SALMONN + Orca"] == ["199", "3.44", "3.40", "3.8 %", "–", "3.8286", *"––––"]


def test_columns_of_speech_are_left_out_where_nobody_speaks():
    silent = [Answer("a", "", "q?", "yes", "yes", scores={"s2t": 1.0})]
    header = main_table(QUESTIONS, [Evaluated("m", silent, [])], 0).header
    assert header[2:] == ["Reference in the text (S2T) ↑", "S2TIF, 1 to 5 ↑", "WER ↓", "Exact match ↑"]


def test_latency_stands_beside_table_4():
    omegas = {
        "40": {name: {"median": value} for name, value in (("llm", 0.3), ("vocoder", 0.05), ("first_audio", 0.35))}
    }
    timed = Evaluated("ours", ANSWERS, [], latency={"questions": 2, "device": "cpu", "omegas": omegas})
    rows = latency_table(SUITES["instructs2s"], [timed]).to_markdown().splitlines()
    assert rows[4] == "| 40 | 300 + 50 = 350 | 302 + 45 = 347 | 3.52 | 10.4 % | 3.6688 | 2.74 |"
    assert rows[2].startswith("| 10 | not measured | 206 + 30 = 236 | 3.54 | 9.8 % |")
    assert latency_table(SUITES["instructs2s"], [Evaluated("m", ANSWERS, [])]) is None
    voice = Evaluated("a voice", ANSWERS, [], latency={**timed.latency, "omegas": {"offline": omegas["40"]}})
    assert latency_table(SUITES["instructs2s"], [voice]) is None  # it waits for no units
    assert "a voice" not in latency_table(SUITES["instructs2s"], [timed, voice]).to_markdown()


def test_results_hold_scores_differences_and_what_failed(tmp_path: Path):
    better = [Answer(**{**a.__dict__, "scores": {**a.scores, "s2tif": 5.0}}) for a in ANSWERS]
    done = [Evaluated("a", better, []), Evaluated("b/c", ANSWERS, ["d: silent"], stopped="gone")]
    told = {
        "judge": "gpt",
        "runs": 2,
        "agreement": {"s2tif": {"n": 6, "equal": 0.5, "mean_difference": 0.25}},
        "faults": ["b: x: no score"],
    }
    text = write_results(tmp_path, "instructs2s", SUITES["instructs2s"], done, ["e: no sound"], told, "large-v3", 0)
    assert text == (tmp_path / "table.md").read_text()
    for part in (
        "both runs gave 50.0 % of 6 answers the same score", "1 no score for: b: x: no score", "1 not in the suite: e",
        "b/c was not asked to the end: gone", "1 b/c has no answer to: d: silent", "a − b/c",
    ):  # fmt: skip
        assert part in text
    facts = json.loads((tmp_path / "results.json").read_text())
    assert facts["models"]["a"]["scores"]["s2tif"] == {"value": 5.0, "low": 5.0, "high": 5.0, "n": 3}
    (difference,) = [d for d in facts["differences"] if d["score"] == "s2tif"]
    assert (difference["a"], difference["b"], difference["n"]) == ("a", "b/c", 3)
    assert difference["value"] == pytest.approx(1.0)  # (1 + 0 + 2) / 3
    assert facts["models"]["b/c"]["faults"] == ["d: silent"]
    assert facts["paper"]["table_2"]["LLaMA-Omni"]["s2tif"] == 3.99
    latex = (tmp_path / "table.tex").read_text()
    assert latex.count("\\begin{table}") == 3 and "10.8 \\%" in latex


def test_without_a_judge_its_columns_say_so(tmp_path: Path):
    plain = [Answer("a", "", "q?", "", "yes")]
    text = write_results(tmp_path, "instructs2s", SUITES["instructs2s"], [Evaluated("m", plain, [])], [], {}, "x", 0)
    assert "not measured" in text and "S2TIF, 1 to 5 and S2SIF, 1 to 5: not measured, no judge was given" in text
    gone = {"judge": "gpt", "runs": 2, "stopped": "no answer", "faults": []}
    text = write_results(tmp_path, "instructs2s", SUITES["instructs2s"], [Evaluated("m", plain, [])], [], gone, "x", 0)
    assert "the judge could not be asked: no answer" in text
