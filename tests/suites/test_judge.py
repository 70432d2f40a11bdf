"""An LLM judge: its replies read, its verdicts kept, two runs compared, and what happens where it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from api_stand_in import chat_server

from speechzoo.corpora.llm import LocalLLM
from speechzoo.evaluation.answers import Answer
from speechzoo.suites.judge import SCALE, Court, LLMJudge, Task, agreement, verdict
from speechzoo.suites.questions import Question
from speechzoo.suites.scoring import judge
from speechzoo.system.endpoint import Endpoint, UnreachableError

QUESTIONS = [Question(f"q{n}", f"question {n}?", references=("yes",)) for n in range(3)]


def answers(*texts: str, **more) -> dict[str, Answer]:
    return {f"q{n}": Answer(f"q{n}", "", f"question {n}?", "yes", text, **more) for n, text in enumerate(texts)}


def endpoint(url: str) -> LLMJudge:
    return LLMJudge(Endpoint(url, "gpt", first_wait=0.001, tries=2), parallel=2)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("4", 4), (" 5.", 5), ("Score: 3", 3), ("4/5", 4), ("3 out of 5", 3), ('{"score": 2}', 2), ("**1**", 1),
        ("<think>5? no, 2 or 3</think>\n4", 4), ("6", None), ("0", None), ("3.5", None), ("good", None), ("", None),
        ("<think>I would say 4, but", None), ("5 or 2? So 3.</think>\n3", 3),
        ("2 or 3", None), ("10", None), ("between 4 and 5", None), ("4.0", 4), ("4.0, so 4", 4), ("0.0", None),
        ("-3", None), ("\u22123", None), ("- 3", 3), ("4-5", None),
    ],
)  # fmt: skip
def test_a_score_is_one_whole_number(reply: str, score: int | None):
    assert verdict("instruction", reply) == score


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Yes", 1), ("no.", 0), ("yes and no", None), ("maybe", None), ("**No**, it says Rome", 0),
        ("Yes, there is no difference", 1), ("There is no doubt: it agrees", None), ("My verdict: yes", 1),
        ("<think>Does it agree? No", None), ("hm, no, or yes?</think>yes", 1),
        ("It is not yes", None), ("Neither yes nor no.", None), ("I cannot say yes or no", None),
        ("Not sure, but yes", 1),
    ],
)  # fmt: skip
def test_an_answer_is_yes_or_no(reply: str, score: int | None):
    assert verdict("answer", reply) == score


def test_the_second_run_sees_the_other_order():
    task = Task("m", "q", "s2tif", "instruction", "why?", "so")
    first, second = (Task(**{**task.__dict__, "turn": turn}).prompt(0) for turn in (0, 1))
    assert first != second and sorted(first.split("\n")) == sorted(second.split("\n"))
    assert {first.index(SCALE[0]) < first.index(SCALE[4]), second.index(SCALE[0]) < second.index(SCALE[4])} == {
        True,
        False,
    }
    drawn = {
        Task("m", f"q{n}", "s2tif", "instruction", "", "").prompt(0)
        == Task("m", "q", "s2tif", "instruction", "", "").prompt(0)
        for n in range(20)
    }
    assert drawn == {True, False}  # which is first is drawn question by question
    both = [Task("m", "q", "x", "answer", "why?", "mine", ("right",), turn).prompt(0) for turn in (0, 1)]
    assert {text.index("mine") < text.index("Right answer: right") for text in both} == {True, False}


def test_scores_are_means_of_two_runs_and_verdicts_are_kept(tmp_path: Path):
    def script(request, number):
        prompt = request["messages"][0]["content"]
        low_first = prompt.index(SCALE[0]) < prompt.index(SCALE[4])
        return "4" if "good" in prompt else "1" if low_first else "3"

    given = {"a": answers("good", "bad", "bad"), "b": answers("good", "good", "bad", spoken="good")}
    with chat_server(script) as seen:
        scores, told = judge(given, QUESTIONS, "instruction", Court(endpoint(seen.url), tmp_path / "judge.jsonl"))
        # a: 3 texts, b: 3 texts and 3 speeches, two runs; `good` of a and b are the same prompt, asked once each
        assert len(seen.requests) == len(list((tmp_path / "judge.jsonl").read_text().splitlines()))
        assert {(r["model"], r["temperature"]) for r in seen.requests} == {("gpt", 0)}
        asked = len(seen.requests)
        again, _ = judge(given, QUESTIONS, "instruction", Court(endpoint(seen.url), tmp_path / "judge.jsonl"))
        assert len(seen.requests) == asked and again == scores
    assert scores["a"] == {"q0": {"s2tif": 4.0}, "q1": {"s2tif": 2.0}, "q2": {"s2tif": 2.0}}
    assert scores["b"]["q2"] == {"s2tif": 2.0, "s2sif": 4.0}
    # texts: good 3 equal, bad 3 apart by 2; speech: 3 equal
    assert told["agreement"] == {
        "s2tif": {"n": 6, "equal": 0.5, "mean_difference": 1.0},
        "s2sif": {"n": 3, "equal": 1.0, "mean_difference": 0.0},
    }


def test_garbage_is_asked_again_then_named(tmp_path: Path):
    def script(request, number):
        return "no idea" if "question 1?" in request["messages"][0]["content"] else "5"

    with chat_server(script) as seen:
        court = Court(endpoint(seen.url), tmp_path / "judge.jsonl")
        scores, told = judge({"a": answers("x", "y", "z")}, QUESTIONS, "instruction", court)
        assert len({r["seed"] for r in seen.requests if "question 1?" in r["messages"][0]["content"]}) == 6
    assert scores["a"] == {"q0": {"s2tif": 5.0}, "q2": {"s2tif": 5.0}}
    assert told["faults"] == ["a: q1, s2tif: no score in 'no idea'"] * 2  # both runs
    with chat_server(lambda request, number: "2") as seen:  # what had no score is asked again, and nothing else
        scores, _ = judge(
            {"a": answers("x", "y", "z")}, QUESTIONS, "instruction", Court(endpoint(seen.url), court.file)
        )
        assert len(seen.requests) == 2 and scores["a"]["q1"] == {"s2tif": 2.0}


def test_a_judge_that_goes_away_keeps_what_it_said(tmp_path: Path):
    with chat_server(lambda request, number: "5" if number < 3 else (500, "", {})) as seen:
        _, told = judge(
            {"a": answers("x", "y", "z")}, QUESTIONS, "instruction", Court(endpoint(seen.url), tmp_path / "j")
        )
    assert "status 500" in told["stopped"] and "2 times" in told["stopped"]
    kept = len((tmp_path / "j").read_text().splitlines())
    assert 1 <= kept <= 3
    with chat_server(lambda request, number: "5") as seen:
        scores, told = judge(
            {"a": answers("x", "y", "z")}, QUESTIONS, "instruction", Court(endpoint(seen.url), tmp_path / "j")
        )
        assert len(seen.requests) == 6 - kept
    assert "stopped" not in told and scores["a"]["q2"] == {"s2tif": 5.0}


def test_half_a_line_of_a_killed_process_is_dropped(tmp_path: Path):
    with chat_server(lambda request, number: "5") as seen:
        judge({"a": answers("x")}, QUESTIONS, "instruction", Court(endpoint(seen.url), tmp_path / "j"))
        whole = (tmp_path / "j").read_text()
        (tmp_path / "j").write_text(whole[: len(whole) - 20])
        judge({"a": answers("x")}, QUESTIONS, "instruction", Court(endpoint(seen.url), tmp_path / "j"))
        assert len(seen.requests) == 3
    found = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    assert [row["score"] for row in found] == [5.0, 5.0]


def test_kept_replies_are_read_as_replies_are_read_now(tmp_path: Path):
    """What an earlier release took for a score is none now, or another one."""
    with chat_server(lambda request, number: "5") as seen:
        judge({"a": answers("x", "y")}, QUESTIONS[:2], "instruction", Court(endpoint(seen.url), tmp_path / "j"))
    rows = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    replies = {("q0", 0): "between 4 and 5", ("q1", 0): "Score: 3"}
    rows = [{**row, "reply": replies.get((row["id"], row["turn"]), row["reply"])} for row in rows]
    (tmp_path / "j").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with chat_server(lambda request, number: "1") as seen:
        court = Court(endpoint(seen.url), tmp_path / "j")
        scores, _ = judge({"a": answers("x", "y")}, QUESTIONS[:2], "instruction", court)
        assert len(seen.requests) == 1
    assert scores["a"] == {"q0": {"s2tif": 3.0}, "q1": {"s2tif": 4.0}}


def test_another_judge_or_seed_is_another_verdict(tmp_path: Path):
    task = Task("m", "q", "s2tif", "instruction", "why?", "so")
    one = Court(LLMJudge(Endpoint("http://x/v1", "gpt")), tmp_path / "j")
    assert one.key(task) == Court(LLMJudge(Endpoint("http://y/v1", "gpt")), tmp_path / "j").key(task)
    assert one.key(task) != Court(LLMJudge(Endpoint("http://x/v1", "other")), tmp_path / "j").key(task)
    assert one.key(task) != Court(one.judge, tmp_path / "j", seed=1).key(task)


def test_a_local_model_replies(tiny_llm_dir: Path, tmp_path: Path):
    reply = LLMJudge(LocalLLM(str(tiny_llm_dir), "cpu"), tokens=8).reply("Reply with the number alone.", 0)
    assert isinstance(reply, str) and reply == LLMJudge(LocalLLM(str(tiny_llm_dir), "cpu"), tokens=8).reply(
        "Reply with the number alone.", 1
    )
    with pytest.raises(UnreachableError, match="no LLM that can be asked"):
        LLMJudge(LocalLLM(str(tmp_path / "none"), "cpu")).reply("x", 0)


def test_a_reply_that_ends_with_the_last_token_allowed_is_whole(tiny_llm_dir: Path):
    llm, asked = LocalLLM(str(tiny_llm_dir), "cpu"), [{"role": "user", "content": "hello"}]
    tokenizer, causal = llm._loaded
    given = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    first = causal.generate(**given, max_new_tokens=1, do_sample=False)[0, -1]
    assert llm.chat(asked, max_tokens=1).ended == "length"
    for ends in (int(first), [0, int(first)]):
        causal.generation_config.eos_token_id = ends
        assert llm.chat(asked, max_tokens=1).ended == "stop"


def test_agreement_by_hand():
    assert agreement([(1, 1), (2, 4), (5, 4), (3, 3)]) == {"n": 4, "equal": 0.5, "mean_difference": 0.75}
    assert agreement([]) == {"n": 0}
