"""`predict` and `test` score the run's own answers and leave them for `compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_runs import UNIT_DECODER, write_config, zoo

from speechzoo.cli import main
from speechzoo.evaluation import load_answers, score
from speechzoo.evaluation.tables import percent


@pytest.fixture
def asked(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, wavs: list[Path]) -> Path:
    """A config beside a manifest of four questions, one of them without an answer."""
    clips = wavs
    content = [{"type": "text", "text": "Write down:"}, {"type": "audio", "path": str(clips[0])}]
    rows = [
        ("b", [{"role": "user", "content": content}, {"role": "assistant", "content": "hello", "units": [1, 2]}]),
        ("a", [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好，世界", "units": [3]}]),
        ("c", [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "two", "units": [4]}]),
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"id": i, "messages": m}) + "\n" for i, m in rows))
    last = {"id": "d", "messages": [{"role": "user", "content": "no answer"}]}
    (tmp_path / "open.jsonl").write_text((tmp_path / "asked.jsonl").read_text() + json.dumps(last) + "\n")
    return write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, tmp_path / "asked.jsonl")


def test_fit_predict_compare(asked: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "tiny"
    short = ["--model.init_args.generation={max_new_tokens: 3}", "--trainer.limit_predict_batches=1.0"]
    more = ["--trainer.callbacks+=StageCost", "--trainer.callbacks+=AnswerWriter", "--trainer.limit_test_batches=1.0"]
    zoo("fit", "-c", asked, *short, *more)
    common = ["-c", asked, *short, *more, f"--ckpt_path={out / 'last.ckpt'}"]
    with pytest.warns(UserWarning, match="answers were cut off at 3 tokens"):
        cli = zoo_loud("predict", *common, f"--data.init_args.predict={tmp_path / 'open.jsonl'}")
    said = capsys.readouterr().out
    assert cli.model.generation == {"max_new_tokens": 3}
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["b", "a", "c", "d"]
    answers = load_answers(out / "answers.jsonl")
    assert [(a.id, a.reference) for a in answers] == [("b", "hello"), ("a", "你好，世界"), ("c", "two")]
    assert [a.stopped for a in answers] == [line["stopped"] for line in lines[:3]]
    assert [a.text for a in answers] == [line["text"] for line in lines[:3]]
    assert answers[0].question == "" and answers[0].audio and answers[2].question == "What is 1 + 1?"
    assert f"[{percent(score(answers)['wer'].low)}, " in said
    for name in ("WER", "CER", "Exact match", "ROUGE-L"):
        assert name in said
    assert "Whisper's English normaliser" in said and "each character is a word" in said

    (out / "answers.jsonl").unlink()
    cli = zoo_loud("test", *common)
    assert "test/loss" in cli.trainer.callback_metrics
    tested = {a.id: a.text for a in load_answers(out / "answers.jsonl")}
    assert tested == {a.id: a.text for a in answers}

    assert main(["compare", str(out)]) == 0
    table = capsys.readouterr().out
    assert "WER ↓" in table and "Answers cut off" in table and "of 3" in table


def zoo_loud(*arguments: object):
    """`zoo` without its silence about warnings."""
    from speechzoo.commands.training import run

    return run([str(argument) for argument in arguments])


def test_units_are_scored_where_both_have_them(asked: Path, tmp_path: Path, capsys) -> None:
    short = ["--model.init_args.generation={max_new_tokens: 3}", "--trainer.limit_predict_batches=1.0"]
    zoo("predict", "-c", asked, "--model=LLaMAOmni", *UNIT_DECODER, *short, "--ckpt_path=untrained")
    answers = load_answers(tmp_path / "tiny" / "answers.jsonl")
    assert [a.reference_units for a in answers] == [[1, 2], [3], [4]]
    assert all(a.units is not None for a in answers)
    assert "Unit error rate" in capsys.readouterr().out


def test_unknown_generation_settings_are_refused(asked: Path) -> None:
    with pytest.raises((SystemExit, ValueError), match=r"num_beams|2"):
        zoo("predict", "-c", asked, "--model.init_args.generation={num_beams: 4}")
