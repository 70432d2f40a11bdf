"""Groups by chosen keys: how a key is found by its end, who is in which group, what else differs there."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import make_run

from speechzoo.evaluation.comparable import unfair
from speechzoo.evaluation.grouping import find_key, group_by
from speechzoo.evaluation.runs import Run, find_runs

ADAPTOR = "model.init_args.adaptor"
KEYS = {
    f"{ADAPTOR}.class_path": "speechzoo.adaptors.Linear",
    f"{ADAPTOR}.init_args.stack": "5",
    "model.class_path": "speechzoo.models.LLaSM",
    "model.init_args.encoder.init_args.model": "whisper",
    "model.init_args.llm.init_args.model": "llm",
    "model.init_args.llm.init_args.lora.r": "4",
    "model.init_args.optimizer.init_args.lr": "0.1",
    "seed_everything": "0",
}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (f"{ADAPTOR}.class_path", f"{ADAPTOR}.class_path"),
        (ADAPTOR, f"{ADAPTOR}.class_path"),
        ("adaptor.class_path", f"{ADAPTOR}.class_path"),
        ("adaptor", f"{ADAPTOR}.class_path"),
        ("stack", f"{ADAPTOR}.init_args.stack"),
        ("adaptor.stack", f"{ADAPTOR}.init_args.stack"),
        ("lr", "model.init_args.optimizer.init_args.lr"),
        ("model", "model.class_path"),
        ("encoder.model", "model.init_args.encoder.init_args.model"),
        ("lora", "model.init_args.llm.init_args.lora"),
        ("seed_everything", "seed_everything"),
    ],
)
def test_a_key_is_found_by_its_end(given: str, meant: str) -> None:
    assert find_key(given, [KEYS]) == meant


def test_what_is_no_key_or_several() -> None:
    with pytest.raises(ValueError, match=r"no run has a setting layers"):
        find_key("layers", [KEYS])
    with pytest.raises(ValueError, match=r"init_args.model may be model.init_args.encoder.init_args.model, model"):
        find_key("init_args.model", [KEYS])


def adaptor(name: str, stack: int) -> dict:
    return {"adaptor": {"class_path": f"speechzoo.adaptors.{name}", "init_args": {"stack": stack}}}


def test_groups_are_means_over_what_else_differs_and_say_so(tmp_path: Path) -> None:
    made = [("Linear", 4, 0.1), ("Linear", 5, 0.1), ("ConcatMLP", 5, 0.1), ("Linear", 4, 0.2)]
    paths = [
        make_run(tmp_path / f"r{n}", lr=lr, val_loss=n + 1.0, **adaptor(name, stack))
        for n, (name, stack, lr) in enumerate(made)
    ]
    runs = find_runs(paths)
    groups = group_by(runs, ["adaptor"])
    assert [(g.label, [run.name for run in g.runs]) for g in groups] == [
        ("adaptor=Linear", ["r0", "r1", "r3"]),
        ("adaptor=ConcatMLP", ["r2"]),
    ]
    assert groups[0].values("val_loss") == [1.0, 2.0, 4.0]
    assert groups[0].mixed == {"stack": "4 / 5", "lr": "0.1 / 0.2"}
    (told,) = [line for line in unfair(groups) if "mean over" in line]
    assert told.startswith("adaptor=Linear (r0, r1, r3) is a mean over runs that also differ in ")
    assert "stack (4 / 5)" in told and "lr (0.1 / 0.2)" in told

    both = group_by(runs, ["adaptor", "lr"])
    assert [g.label for g in both] == [
        "adaptor=Linear, lr=0.1",
        "adaptor=ConcatMLP, lr=0.1",
        "adaptor=Linear, lr=0.2",
    ]


def test_a_setting_that_only_some_have(tmp_path: Path) -> None:
    lora = {"llm": {"class_path": "HFCausalLM", "init_args": {"model": "llm", "lora": {"r": 4}}}}
    frozen = {"llm": {"class_path": "HFCausalLM", "init_args": {"model": "llm", "lora": None}}}
    runs = find_runs([make_run(tmp_path / "a", **lora), make_run(tmp_path / "b", **frozen), make_run(tmp_path / "c")])
    runs.append(Run("cascade", tmp_path))  # nobody trained it
    groups = group_by(runs, ["lora"])
    assert [g.label for g in groups] == ["lora={r: 4}", "lora=none", "lora=–", "cascade"]


def test_seeds_can_be_asked_for(tmp_path: Path) -> None:
    runs = find_runs([make_run(tmp_path / f"r{n}", lr=0.1 * (n + 1), seed=n % 2) for n in range(4)])
    groups = group_by(runs, ["seed_everything"])
    assert [(g.label, [run.name for run in g.runs]) for g in groups] == [
        ("seed_everything=0", ["r0", "r2"]),
        ("seed_everything=1", ["r1", "r3"]),
    ]
