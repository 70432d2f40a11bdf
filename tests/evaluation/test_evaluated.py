"""What `speechzoo evaluate` wrote, beside runs, sweeps and models of the zoo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import make_run, quiz

from speechzoo.cli.compare import main
from speechzoo.evaluation import save_answers
from speechzoo.evaluation.answers import MEASURES
from speechzoo.evaluation.comparable import unfair
from speechzoo.evaluation.evaluated import read_evaluated
from speechzoo.evaluation.grouping import group_by
from speechzoo.evaluation.runs import find_runs
from speechzoo.evaluation.runs_tables import scores, suite_table
from speechzoo.evaluation.settings import architecture, group_runs


def evaluated(folder: Path, suite: str, first: dict | None = None, **models: tuple[str | None, int]) -> Path:
    """As `speechzoo evaluate` leaves it: models by name with what was asked and how many of four they got right."""
    for name, (source, right) in models.items():
        (folder / name).mkdir(parents=True)
        identity = {"endpoint": "http://host/v1"} if source is None else {"source": source, "content": "0"}
        (folder / name / "model.json").write_text(json.dumps(identity))
        save_answers(folder / name / "answers.jsonl", quiz(right))
        if first is not None:
            (folder / name / "latency.json").write_text(json.dumps({"questions": 4, "omegas": first}))
    (folder / "suite.json").write_text(json.dumps({"suite": suite}))
    return folder


def right(run) -> int:
    return sum(answer.text == answer.reference for answer in run.answers)


@pytest.mark.parametrize("order", [1, -1])
def test_answers_belong_to_the_run_that_gave_them(tmp_path: Path, order: int) -> None:
    sweep = tmp_path / "sweep"
    trials = [make_run(sweep / f"trial_00{n}", seed=n, right=4) for n in range(2)]
    states = [{"number": n, "state": "finished", "exit_code": 0, "error": "", "values": {}} for n in range(2)]
    (sweep / "sweep.json").write_text(json.dumps({"trials": states}))
    alone = make_run(tmp_path / "alone", "LLaMAOmni")
    models = {"one": (str(trials[0]), 1), "two": (str(trials[1] / "last.ckpt"), 2), "alone": (str(alone), 3)}
    (trials[1] / "last.ckpt").write_text("")
    done = evaluated(tmp_path / "eval", "quickstart", **models, cascade=("cascade:alone", 0), theirs=(None, 4))
    runs = find_runs([sweep, done][::order])
    assert [(run.name, right(run), run.suite) for run in runs] == [
        ("trial_000", 1, "quickstart"),
        ("trial_001", 2, "quickstart"),
        ("alone", 3, "quickstart"),
        ("cascade", 0, "quickstart"),
        ("theirs", 4, "quickstart"),
    ]
    assert [bool(run.stages) for run in runs] == [True, True, True, False, False]


def test_another_suite_is_another_row(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    first = evaluated(tmp_path / "a", "quickstart", run=(str(run), 1))
    second = evaluated(tmp_path / "b", "questions", run=(str(run), 3))
    found = find_runs([run, first, second])
    assert [(one.name, one.suite, right(one)) for one in found] == [
        ("run", "quickstart", 1),
        ("run on questions", "questions", 3),
    ]


def test_other_ways_to_ask_are_no_fair_comparison(tmp_path: Path) -> None:
    def reasons(**settings: dict) -> list[str]:
        (tmp_path / "b" / "two" / "model.json").write_text(json.dumps({"endpoint": "http://b", **settings["model"]}))
        (tmp_path / "b" / "suite.json").write_text(json.dumps({"suite": "s", **settings["suite"]}))
        return unfair(group_runs(find_runs([tmp_path / "a", tmp_path / "b"])))

    for folder, name in (("a", "one"), ("b", "two")):
        evaluated(tmp_path / folder, "s", **{name: (None, 1)})
    common = {"written": False, "words": "", "recogniser": "tiny"}
    (tmp_path / "a" / "suite.json").write_text(json.dumps({"suite": "s", **common}))
    assert reasons(model={}, suite=common) == []
    (told,) = reasons(model={"max_new_tokens": 5}, suite={**common, "written": True})
    assert told == ("ways to ask differ: one: recogniser=tiny; two: max_new_tokens=5, recogniser=tiny, written=True")
    for folder, sound in (("a", "clean"), ("b", "clean"), ("b", "noisy")):
        digests = {f"q{n}": sound for n in range(4)} | {f"q{n}": f"other {folder}" for n in range(4, 9)}
        (tmp_path / folder / "questions.json").write_text(json.dumps(digests))
        told = reasons(model={}, suite=common) if folder == "b" else []
        assert len(told) == (sound == "noisy")
    assert told[0].startswith("words or sounds of the test questions differ: one: ")
    (tmp_path / "b" / "questions.json").unlink()
    assert "two: recogniser=large-v3" in reasons(model={}, suite={**common, "recogniser": "large-v3"})[0]


def test_a_model_of_the_zoo_keeps_its_name_and_cost(tmp_path: Path) -> None:
    done = evaluated(tmp_path / "eval", "quickstart", tiny=("llasm-tiny", 2))
    for paths in ([done], [Path("llasm-tiny"), done]):
        (run,) = find_runs(paths)
        assert (run.name, right(run), len(run.answers)) == ("llasm-tiny", 2, 4)
        assert architecture(run) == "LLaSM" and run.total("steps") > 0


def test_the_first_sound_is_that_of_the_smallest_chunk(tmp_path: Path) -> None:
    times = {
        name: {"first_audio": {"median": s, "p95": 9.0}} for name, s in (("100", 0.7), ("20", 0.3), ("offline", 2))
    }
    done = evaluated(tmp_path / "a", "s", first={**times, "10": {"llm": {"median": 0.1}}}, one=(None, 1))
    voice = evaluated(tmp_path / "b", "s", first={"offline": times["offline"]}, two=(None, 1))
    silent = evaluated(tmp_path / "c", "s", three=(None, 1))
    assert [read_evaluated(f)[0].first_sound for f in (done, voice, silent)] == [0.3, 2.0, None]
    assert main([str(done), str(voice), "--out", str(tmp_path / "out"), "--cost", "first_sound"]) == 0
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())["front"]
    assert [(p["label"], p["cost"]) for p in told["points"]] == [("one", [0.3]), ("two", [2.0])]


def test_scores_of_rules_and_judges_are_shown(tmp_path: Path) -> None:
    done = evaluated(tmp_path / "eval", "s", one=(None, 1), two=(None, 1))
    judged = [replace(a, scores={"s2tif": n + 1.0, "ifeval_total": 3.0}) for n, a in enumerate(quiz(1))]
    judged[0] = replace(judged[0], scores=None, quality={"UTMOS": 4.25})
    save_answers(done / "one" / "answers.jsonl", judged)
    table = suite_table(group_runs(find_runs([done])))
    assert table.header == ["Runs of", "UTMOS", "s2tif"]
    rows = [[str(cell) for cell in row] for row in table.rows]
    assert rows == [["one", "4.250", "3.000"], ["two", "not measured", "not measured"]]  # (2 + 3 + 4) / 3
    assert suite_table(group_runs(find_runs([make_run(tmp_path / "run", right=2)]))) is None


def test_a_stage_that_started_from_the_zoo_has_its_cost(tmp_path: Path) -> None:
    (run,) = find_runs([make_run(tmp_path / "run", init_from=["llama-omni-tiny-asr"])])
    (zoo,) = find_runs([Path("llama-omni-tiny-asr")])
    assert run.missing == [] and run.total("steps") == 10 + zoo.total("steps") and run.last("val_loss") == 1.0


def test_folders_that_are_damaged_or_empty(tmp_path: Path) -> None:
    empty = evaluated(tmp_path / "empty", "s", none=(None, 1))
    (empty / "none" / "answers.jsonl").unlink()
    with pytest.raises(ValueError, match="no model has answered there yet"):
        find_runs([empty])
    (empty / "suite.json").write_text("{")
    with pytest.raises(ValueError, match=r"suite\.json: not JSON"):
        find_runs([empty])


def test_wandb_has_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict = {}

    class Run:
        summary: dict = {}

        def log(self, values: dict) -> None:
            logged.update(values)

        def finish(self) -> None:
            logged["finished"] = True

    monkeypatch.setattr("speechzoo.evaluation.wandb_run.open_run", lambda *_: Run())
    paths = [str(make_run(tmp_path / name, lr=lr, right=2)) for name, lr in (("a", 0.1), ("b", 0.2))]
    assert main([*paths, "--out", str(tmp_path / "out")]) == 0
    assert {"Results", "Quality against cost", "Cost", "All runs", "warnings", "report"} <= set(logged)
    assert {"front", "loss", "scores", "finished"} <= set(logged)
    assert [row[0] for row in logged["All runs"].data] == ["a", "b"]
    assert Run.summary["LLaSM, lr=0.1/exact_match"] == 0.5 and Run.summary["LLaSM, lr=0.2/val_loss"] == 1.0


def test_wandb_is_offline_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert main([str(make_run(tmp_path / "a")), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("by", [(), ("lr",)])
def test_scores_of_two_suites_are_not_averaged(tmp_path: Path, by: tuple[str, ...]) -> None:
    paths = [make_run(tmp_path / f"run{n}", seed=n) for n in range(3)]  # the last one was not evaluated
    first = evaluated(tmp_path / "a", "quickstart", **{path.name: (str(path), 1) for path in paths[:2]})
    second = evaluated(tmp_path / "b", "questions", **{path.name: (str(path), 3) for path in paths[:2]})
    runs = find_runs([*paths, first, second])
    groups = group_by(runs, by) if by else group_runs(runs)
    name = "lr=0.1" if by else "LLaSM"
    assert [(group.label, group.names, scores(group, MEASURES[2])) for group in groups] == [
        (f"{name} (run0)", "run0 … run2 (3)", [0.25, 0.25]),
        (f"{name} (run0 on questions)", "run0 on questions, run1 on questions", [0.75, 0.75]),
    ]


def test_a_model_called_like_a_setting_is_a_group_of_its_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    done = evaluated(tmp_path / "a", "s", **{"0.1": (None, 1)})
    assert [group.names for group in group_by(find_runs([run, done]), ("lr",))] == ["run", "0.1"]
