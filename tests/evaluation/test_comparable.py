"""What makes runs no fair comparison: each reason is found, alone, and names the runs it is about."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import make_run

from speechzoo.evaluation.comparable import test_set as questions_of
from speechzoo.evaluation.comparable import unfair
from speechzoo.evaluation.runs import find_runs
from speechzoo.evaluation.settings import group_runs, settings


def reasons(folder: Path, first: dict, second: dict, seeds: int = 1) -> list[str]:
    paths = [make_run(folder / f"a{seed}", lr=0.1, seed=seed, **first) for seed in range(seeds)]
    paths += [make_run(folder / f"b{seed}", lr=0.2, seed=seed, **second) for seed in range(seeds)]
    return unfair(group_runs(find_runs(paths)))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"tokens": 1060}, "tokens trained on differ: LLaSM, lr=0.1 (a0): 1,000; LLaSM, lr=0.2 (b0): 1,060"),
        ({"examples": 40}, "conversations trained on differ: LLaSM, lr=0.1 (a0): 80; LLaSM, lr=0.2 (b0): 40"),
        ({"steps": 20}, "optimiser steps differ: LLaSM, lr=0.1 (a0): 10; LLaSM, lr=0.2 (b0): 20"),
        (
            {"commit": "0000000000"},
            "commits of the code differ: LLaSM, lr=0.1 (a0): 334b92f0c1; LLaSM, lr=0.2 (b0): 0000000000",
        ),
        (
            {"commit": None},
            "commits of the code differ: LLaSM, lr=0.1 (a0): 334b92f0c1; LLaSM, lr=0.2 (b0): not recorded",
        ),
    ],
)
def test_another_budget_or_commit(tmp_path: Path, other: dict, told: str) -> None:
    assert reasons(tmp_path, {}, other) == [told]


def test_budgets_within_a_twentieth_are_the_same(tmp_path: Path) -> None:
    assert reasons(tmp_path, {}, {"tokens": 1050, "examples": 84}) == []


def test_training_data_of_the_same_name_and_other_content(tmp_path: Path) -> None:
    for place, text in (("one", "1"), ("two", "2")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "train.jsonl").write_text(text)
    paths = [make_run(tmp_path / p / "run", data=str(tmp_path / p / "train.jsonl")) for p in ("one", "two")]
    (told,) = unfair(group_runs(find_runs(paths)))
    assert told.startswith("training data differ: ")
    assert "(one/run): train.jsonl 6b86b273" in told and "(two/run): train.jsonl d4735e3a" in told


def test_groups_called_by_their_runs_are_told_apart(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / f"{name}{seed}", seed=seed, steps=steps, system="word " * 20 + name)
        for name, steps in (("a", 10), ("b", 10), ("c", 20))
        for seed in (0, 1)
    ]
    assert unfair(group_runs(find_runs(paths))) == ["optimiser steps differ: (a0, a1) and (b0, b1): 10; (c0, c1): 20"]


def test_commits_within_a_group_are_told_by_run(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"r{seed}", seed=seed, commit=c) for seed, c in enumerate(("aaa", "bbb", "aaa"))]
    assert unfair(group_runs(find_runs(paths))) == [
        "commits of the code differ: LLaSM (r0, r2): aaa; LLaSM (r1): bbb",
    ]


def test_no_commit_anywhere_is_said_once(tmp_path: Path) -> None:
    (told,) = reasons(tmp_path, {"commit": None}, {"commit": None}, seeds=2)
    assert told == "commit of the code: recorded by none of LLaSM, lr=0.1 (a0, a1), LLaSM, lr=0.2 (b0, b1)"


def test_another_number_of_questions(tmp_path: Path) -> None:
    (told,) = reasons(tmp_path, {"right": 1}, {"right": 1, "asked": 3})
    sets = [questions_of(run) for run in find_runs([tmp_path / "a0", tmp_path / "b0"])]
    assert [one[:12] for one in sets] == ["4 questions ", "3 questions "] and len({one[12:] for one in sets}) == 2
    assert told == (
        f"test questions differ: LLaSM, lr=0.1 (a0): {sets[0]}; LLaSM, lr=0.2 (b0): {sets[1]}. "
        "All that answered have 3 in common; scores are of each run's own"
    )


def test_a_run_that_answered_nothing(tmp_path: Path) -> None:
    (told,) = reasons(tmp_path, {"right": 1}, {})
    assert told.endswith("; LLaSM, lr=0.2 (b0): none answered") and "in common" not in told


def test_many_runs_are_told_by_the_first_and_the_last(tmp_path: Path) -> None:
    (told,) = reasons(tmp_path, {}, {"steps": 20}, seeds=5)
    assert told == "optimiser steps differ: LLaSM, lr=0.1 (a0 … a4, 5 runs): 10; LLaSM, lr=0.2 (b0 … b4, 5 runs): 20"


def test_a_small_part_is_the_same_wherever_it_lies(tmp_path: Path) -> None:
    """A published configuration names it, that of a run says where it lay; a newer version has the same name."""
    names = ["${part:whisper-tiny.en}", "/cache/whisper-tiny.en-0.1.0-1/tiny.en.pt"]
    names += ["/other/whisper-tiny.en-0.2.0-1/tiny.en.pt", "/mine/large-v3.pt", "/yours/large-v3.pt", "large-v3"]
    runs = find_runs([make_run(tmp_path / f"r{n}", encoder=encoder(name)) for n, name in enumerate(names)])
    found = [settings(run)["model.init_args.encoder.init_args.model"] for run in runs]
    assert found == ["whisper-tiny.en"] * 3 + ["large-v3.pt"] * 2 + ["large-v3"]


def encoder(model: str) -> dict:
    return {"class_path": "speechzoo.encoders.WhisperEncoder", "init_args": {"model": model}}


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    """Two folders above are alike: the name takes a third, and a difference within the group is not hidden."""
    paths = [make_run(tmp_path / top / "sweep" / "run", seed=n, commit=top) for n, top in enumerate(("old", "new"))]
    runs = find_runs(paths)
    assert [run.name for run in runs] == ["old/sweep/run", "new/sweep/run"]
    label = "LLaSM"
    assert unfair(group_runs(runs)) == [
        f"commits of the code differ: {label} (old/sweep/run): old; {label} (new/sweep/run): new"
    ]


def test_stages_of_the_same_name_keep_their_settings(tmp_path: Path) -> None:
    for way, lr in (("a", 0.1), ("b", 0.2)):
        first = make_run(tmp_path / f"pretrain_{way}" / "s0", lr=lr)
        make_run(tmp_path / f"finetune_{way}" / "s0", seed=ord(way), init_from=[str(first)])
    runs = find_runs([tmp_path / f"finetune_{way}" / "s0" for way in "ab"])
    assert [list(run.configs) for run in runs] == [["s0", "finetune_a/s0"], ["s0", "finetune_b/s0"]]
    assert [group.names for group in group_runs(runs)] == ["finetune_a/s0", "finetune_b/s0"]
    assert [settings(run)["s0: model.init_args.optimizer.init_args.lr"] for run in runs] == ["0.1", "0.2"]
