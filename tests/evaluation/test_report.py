"""The report is complete, self-contained, deterministic, and says "not measured" instead of inventing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from speechzoo.evaluation import Answer, ReportData, SystemResult, describe_environment, write_report
from speechzoo.evaluation.figures import read_curve
from speechzoo.evaluation.report import choose_examples, flatten

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects text and addresses; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_everything_is_in_both_reports(made_up, tmp_path):
    markdown, html = write_report(made_up, tmp_path)
    page = Page(html.read_text())
    source = markdown.read_text()
    for text in (
        made_up.title, *made_up.intro, *made_up.limits, *made_up.notes, made_up.human_note, "LLaSM", "LLaMA-Omni",
        "Cascade", "147.3 M", "3 min 10 s", "Whisper tiny.en", "under 20 %", "2.13.0", "training questions",
    ):  # fmt: skip
        assert text in page.text
        assert text in source
    assert "llasm.pretrain.lr" in page.text and "not met" in page.text
    assert page.tags.count("img") == 2 + 6  # loss curves of two systems, six questions
    assert page.tags.count("audio") == 6 + 6 + 2  # questions, LLaMA-Omni's spoken answers, human recordings
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", source):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report_files" / "tables.tex").read_text().count(r"\begin{table}") == 4


def test_the_page_needs_nothing_from_outside(made_up, tmp_path):
    _, html = write_report(made_up, tmp_path)
    text = html.read_text()
    assert all(address.startswith(("data:", "#")) for address in Page(text).addresses)
    assert "http" not in re.sub(r"base64,[^\"]+", "", text) and "<script" not in text and "url(" not in text


def test_same_data_same_bytes(made_up, tmp_path):
    first = [path.read_bytes() for path in write_report(made_up, tmp_path)]
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "report_files").iterdir()}
    assert [path.read_bytes() for path in write_report(made_up, tmp_path)] == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "report_files").iterdir()} == pictures
    assert not list(tmp_path.rglob("*.part"))


def test_text_of_a_model_cannot_break_the_page(made_up, tmp_path):
    nasty = "<script>alert(1)</script> | `x` *y*\n# z"
    system = made_up.systems[0]
    answers = [replace(answer, text=nasty) for answer in system.answers]
    made_up.systems[0] = replace(system, answers=answers)
    markdown, html = write_report(made_up, tmp_path)
    assert "<script>" not in html.read_text() and "script" not in Page(html.read_text()).tags
    assert r"\<script\>alert(1)\</script\> \| \`x\` \*y\* \# z" in markdown.read_text()


def test_what_is_missing_is_said(tmp_path):
    answers = [Answer("a", "k", "q?", "yes", "yes")]
    data = ReportData("T", [], [SystemResult("only", answers)], [], human_note="The recordings could not be fetched.")
    markdown, html = write_report(data, tmp_path)
    for text in (markdown.read_text(), Page(html.read_text()).text):
        assert "not measured" in text and "Not measured." in text and "The recordings could not be fetched." in text
    empty = ReportData("T", [], [], [])
    write_report(empty, tmp_path)


def test_mistakes_are_named(made_up, tmp_path):
    answers = [replace(a, audio="sounds/gone.wav") for a in made_up.systems[0].answers]
    broken = replace(made_up, systems=[replace(made_up.systems[0], answers=answers)])
    with pytest.raises(FileNotFoundError, match=r"gone\.wav"):
        write_report(broken, tmp_path)
    with pytest.raises(ValueError, match="different names"):
        write_report(replace(made_up, systems=[made_up.systems[0]] * 2), tmp_path)


def test_examples_show_right_and_wrong_answers_of_all_kinds():
    def system(name: str, right: set[int]) -> SystemResult:
        kinds = ["capital", "sum"]
        texts = ["yes" if i in right else "no" for i in range(12)]
        return SystemResult(name, [Answer(f"q{i:02}", kinds[i % 2], f"{i}?", "yes", t) for i, t in enumerate(texts)])

    systems = [system("A", {0, 1, 2, 3, 4, 5}), system("B", {0, 1, 2, 3, 6, 7})]
    chosen = choose_examples(systems, 6)
    # all right: 0-3, one right: 4-7, none: 8-11; kinds take turns
    assert chosen == ["q00", "q05", "q08", "q01", "q04", "q09"]
    assert choose_examples(systems, 100) and len(choose_examples(systems, 100)) == 12
    assert choose_examples(list(reversed(systems)), 6) == chosen
    assert choose_examples([], 6) == []


def test_curve_of_a_stage_that_was_continued(tmp_path: Path):
    first, second = tmp_path / "1.csv", tmp_path / "2.csv"
    first.write_text("step,train/loss,val/loss\n0,3.0,\n1,2.0,\n1,,2.5\n2,9.0,\n3,9.0,\n")  # killed after 3
    second.write_text("epoch,step,train/loss\n0,2,1.0\n0,3,0.5\n")  # continued from the checkpoint at 2
    steps, values = read_curve([first, second], ["train/loss"])
    assert steps.tolist() == [0, 1, 2, 3] and values.tolist() == [3.0, 2.0, 1.0, 0.5]
    assert read_curve([first, second], ["val/loss"])[1].tolist() == [2.5]
    assert read_curve([first], ["train/loss_step", "train/loss"])[1].size == 4
    whole = second.read_text()
    for half in ("0", "0,4", "0,4,0."):  # of a process that was killed as it wrote
        second.write_text(whole + half)
        assert read_curve([second], ["train/loss"])[0].tolist() == [2, 3]
    assert read_curve([], ["train/loss"])[0].dtype == np.dtype(int)


def test_settings_become_dotted_names():
    assert flatten({"a": {"b": 1, "c": {}}, "d": None, "e": [1, 2]}) == {
        "a.b": "1", "a.c": "{}", "d": "none", "e": "[1, 2]",
    }  # fmt: skip


def test_environment():
    facts = describe_environment()
    assert re.fullmatch(r"3\.\d+\.\d+\S*", facts["python"]) and facts["torch"] and facts["processor"]
