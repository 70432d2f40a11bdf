"""Tables: numbers as they should read, nothing invented, pairs compared on common questions, Markdown and LaTeX."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from speechzoo.evaluation import (
    Answer,
    Cell,
    StageSummary,
    SystemResult,
    Table,
    comparison_table,
    kind_table,
    pair_table,
    stage_table,
)
from speechzoo.evaluation.compare import pair_differences
from speechzoo.evaluation.tables import count, latex, markdown, megabytes, number, percent, points, seconds


def row(table: Table, name: str) -> list[str]:
    return [str(cell) for cell in next(r for r in table.rows if r[0].text == name)][1:]


def items(texts: list[str]) -> list[Answer]:
    return [Answer(f"q{i}", "k", f"question {i}", "yes it is", text) for i, text in enumerate(texts)]


def test_numbers():
    assert [count(x) for x in (812, 9_999, 31_204, 134_515_008, 8.03e9)] == [
        "812", "9,999", "31.2 k", "134.5 M", "8.0 G",
    ]  # fmt: skip
    assert [seconds(x) for x in (0.512, 9.99, 59.4, 75.3, 7300)] == [
        "0.51 s", "9.99 s", "59.4 s", "1 min 15 s", "2 h 1 min",
    ]  # fmt: skip
    assert percent(0.1234) == "12.3 %" and points(-0.0862) == "−8.6" and points(0.0) == "0.0"
    assert number(-1.25) == "−1.250" and megabytes(1412.3) == "1,412 MB"
    assert {f(None) for f in (count, seconds, percent, points, number, megabytes)} == {"not measured"}
    assert {f(float("nan")) for f in (count, seconds, percent, points, number, megabytes)} == {"not measured"}


def test_comparison_names_what_is_missing():
    trained = SystemResult(
        "A", items(["yes it is", "no"]), [StageSummary("one", seconds=60, tokens=100), StageSummary("two", seconds=30)]
    )
    plain = SystemResult("B", items(["yes it is", "yes it is"]), trainable_parameters=0)
    table = comparison_table([trained, plain])
    assert row(table, "Time") == ["1 min 30 s", "not trained here"]
    assert row(table, "Tokens") == ["not measured", "not trained here"]  # one stage did not say: no partial sum
    assert row(table, "Trainable parameters") == ["not measured", "0"]
    assert row(table, "Exact match ↑") == ["50.0 % [0.0, 100.0]", "100.0 % [100.0, 100.0]"]
    assert row(table, "WER ↓")[0].startswith("50.0 % [0.0, 100.0]")
    assert row(table, "Seconds per answer (median) ↓") == ["not measured"] * 2
    assert not any(r[0].text.startswith("Unit") for r in table.rows)


def test_stage_table_and_peak_memory(made_up):
    table = stage_table(made_up.systems)
    assert [r[0].text for r in table.rows] == [
        "LLaSM", "pretrain", "finetune", "LLaMA-Omni", "stage 1", "stage 2 (units)",
    ]  # fmt: skip
    assert row(table, "pretrain")[:3] == ["3 min 10 s", "200", "1,600"]
    assert made_up.systems[0].peak_memory == 2412.0
    assert replace(made_up.systems[0], peak_memory_mb=3000.0).peak_memory == 3000.0
    assert SystemResult("none", []).peak_memory is None


def test_pairs_use_the_questions_both_answered():
    a = SystemResult("A", items(["yes it is", "no", "yes it is"]))
    b = SystemResult("B", list(reversed(items(["no", "yes it is"]))))  # q0 wrong, q1 right, no q2, other order
    difference, n = pair_differences(a, b)["exact_match"]
    assert n == 2 and difference.value == 0
    c = SystemResult("C", items(["no"] * 3))
    assert pair_differences(a, c)["wer"][0].value == pytest.approx(1 / 3 - 1)
    table = pair_table([a, b, c])
    assert [r[0].text for r in table.rows if len(r) == 1] == ["A − B", "A − C", "B − C"]
    assert str(row(table, "Exact match")[0]) == "2" and str(row(table, "Exact match")[1]).startswith("0.0 [")


def test_a_clear_difference_stands_out():
    good, bad = SystemResult("good", items(["yes it is"] * 30)), SystemResult("bad", items(["no"] * 30))
    cells = {row[0].text: row[-1] for row in pair_table([good, bad]).rows}
    assert cells["Exact match"].strong and cells["Exact match"].text == "+100.0"
    assert cells["WER"].text == "−100.0" and cells["WER"].detail == "[−100.0, −100.0], p < 0.001"
    alike = [row for row in pair_table([good, SystemResult("same", good.answers)]).rows if len(row) > 1]
    assert alike and not any(row[-1].strong for row in alike) and "p = 1.000" in alike[-1][-1].detail


def test_kinds(made_up):
    table = kind_table(made_up.systems)
    assert [r[0].text for r in table.rows] == [
        "Kind of question", "capital", "sum", "Facts of the question", "seen in training", "unseen",
    ]  # fmt: skip
    assert [row(table, name)[0] for name in ("capital", "sum", "seen in training", "unseen")] == ["5", "10", "2", "13"]
    fewer = [made_up.systems[0], replace(made_up.systems[1], answers=made_up.systems[1].answers[:4])]
    assert row(kind_table(fewer), "capital")[0] == "5 / 4" and row(kind_table(fewer), "sum")[2] == "not measured"


def test_markdown_and_latex():
    table = Table(["", "A_1 & B"], caption="50 % of #1")
    table.add("Heading")
    table.add("x|y", Cell("12.3 %", "[1, 2]", strong=True))
    assert table.to_markdown().splitlines() == [
        "|  | A\\_1 & B |", "| --- | --- |", "| **Heading** |  |", "| x\\|y | **12.3 % \\[1, 2\\]** |",
    ]  # fmt: skip
    text = table.to_latex()
    assert r"\multicolumn{2}{l}{\textit{Heading}} \\" in text
    assert r"x\textbar{}y & \textbf{12.3 \% [1, 2]} \\" in text
    assert r"A\_1 \& B" in text and r"\caption{50 \% of \#1}" in text
    table.add("[x]", "y")  # else an argument of the row's end before it
    table.add("*", "y")
    assert "\n{}[x] & y" in table.to_latex() and "\n{}* & y" in table.to_latex()
    with pytest.raises(ValueError, match="3 cells in a table of 2"):
        table.add("a", "b", "c")
    assert latex("a<b>\n\n1 ± 2") == r"a\textless{}b\textgreater{} 1 $\pm$ 2"
    assert markdown("&lt; $5 or $6") == r"\&lt; \$5 or \$6"


def test_summary_file(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"seconds": 12.5, "steps": 3, "units": 9, "val_loss": None}))
    stage = StageSummary.from_file(path, "pretrain", [tmp_path / "metrics.csv"])
    assert (stage.name, stage.seconds, stage.steps, stage.val_loss, stage.tokens) == ("pretrain", 12.5, 3, None, None)
    assert stage.metrics == [str(tmp_path / "metrics.csv")]
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"summary\.json: holds list, not an object"):
        StageSummary.from_file(path, "pretrain")
    with pytest.raises(FileNotFoundError, match="has it finished"):
        StageSummary.from_file(tmp_path / "none.json", "pretrain")
