"""Quality against cost: who is on the front, who is beaten by whom, which quality is taken where none is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import make_run

from speechzoo.cli.compare import main
from speechzoo.evaluation.pareto import front, front_table
from speechzoo.evaluation.runs import find_runs
from speechzoo.evaluation.runs_figures import plot_front
from speechzoo.evaluation.settings import group_runs


def groups_of(folder: Path, **made: tuple[float, float]) -> list:
    """Groups by name: tokens and validation loss of their only run."""
    paths = [
        make_run(folder / name, lr=0.1 * n, tokens=tokens, val_loss=loss)
        for n, (name, (tokens, loss)) in enumerate(made.items(), start=1)
    ]
    groups = group_runs(find_runs(paths))
    for group in groups:
        group.label = group.runs[0].name
    return groups


def test_the_front_and_who_beats_the_others(tmp_path: Path) -> None:
    groups = groups_of(
        tmp_path, dear=(4000, 0.5), cheap=(1000, 2.0), middle=(2000, 1.0), bad=(2000, 1.5), twin=(4000, 0.5)
    )
    found = front(groups, cost="tokens")
    assert found is not None and found.quality.key == "val_loss"
    assert {p.group.label: p.beaten_by for p in found.points} == {
        "dear": (),
        "cheap": (),
        "middle": (),
        "bad": ("middle",),
        "twin": (),  # as good as another one: neither beats the other
    }
    table = front_table(found)
    assert table.header == ["Runs of", "Tokens trained on, all stages ↓", "Validation loss ↓", "Beaten by"]
    rows = [[str(cell) for cell in row] for row in table.rows]
    assert rows[0] == ["cheap", "1,000", "2.000", "nobody"] and ["bad", "2,000", "1.500", "middle"] in rows
    assert [row[0].strong for row in table.rows].count(False) == 1
    assert plot_front(found) == plot_front(found) and plot_front(found).startswith(b"\x89PNG")


def test_more_is_better_of_exact_match(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / f"r{n}", lr=n, tokens=1000 * n, right=right) for n, right in ((1, 3), (2, 2), (3, 4))]
    found = front(group_runs(find_runs(paths)), cost="tokens")
    assert found is not None and found.quality.key == "exact_match"
    assert [(p.quality, bool(p.beaten_by)) for p in found.points] == [([0.75], False), ([0.5], True), ([1.0], False)]


def test_means_over_seeds_are_compared(tmp_path: Path) -> None:
    losses = {0.1: (1.0, 3.0), 0.2: (1.9, 1.9)}  # the mean of the first is worse, its best run is better
    paths = [
        make_run(tmp_path / f"{lr}-{seed}", lr=lr, seed=seed, val_loss=loss)
        for lr, own in losses.items()
        for seed, loss in enumerate(own)
    ]
    found = front(group_runs(find_runs(paths)))
    assert found is not None
    assert [(p.quality, p.beaten_by) for p in found.points] == [([1.0, 3.0], ("LLaSM, lr=0.2",)), ([1.9, 1.9], ())]
    assert str(front_table(found).rows[0][2]) == "2.000 ± 1.414"


def test_losses_of_other_objectives_are_no_default(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / "a", "LLaSM"), make_run(tmp_path / "b", "LLaMAOmni")]
    groups = group_runs(find_runs(paths))
    assert front(groups) is None and front(groups, quality="val_loss") is not None


def test_what_is_no_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = groups_of(tmp_path, a=(1, 1.0), b=(2, 2.0))
    with pytest.raises(ValueError, match=r"no quality is called 'beauty'; there are wer, cer"):
        front(groups, "beauty")
    with pytest.raises(ValueError, match=r"no cost is called 'money'; there are seconds, tokens"):
        front(groups, cost="money")
    with pytest.raises(ValueError, match="first_sound: not known of two groups"):
        front(groups, cost="first_sound")
    assert main([str(tmp_path / "a"), "--quality", "beauty"]) == 1
    assert "no quality is called 'beauty'" in capsys.readouterr().err


def test_the_front_is_in_all_that_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        str(make_run(tmp_path / name, lr=lr, right=n)) for n, (name, lr) in enumerate({"a": 0.1, "b": 0.2}.items())
    ]
    out = tmp_path / "out"
    options = ["--out", str(out), "--group-by", "lr", "--cost", "trainable_parameters"]
    assert main([*paths, *options]) == 0
    told = json.loads((out / "comparison.json").read_text())["front"]
    assert told["cost"] == "trainable_parameters" and told["quality"] == "exact_match"
    assert [(p["label"], p["cost"], p["quality"], p["beaten_by"]) for p in told["points"]] == [
        ("lr=0.1", [12000], [0.0], ["lr=0.2"]),
        ("lr=0.2", [12000], [0.25], []),
    ]
    text = capsys.readouterr().out
    assert "## Quality against cost" in text and "![front](front.png)" in text and (out / "front.png").is_file()
    assert "<h2>Quality against cost</h2>" in (out / "comparison.html").read_text()


def test_a_loss_that_diverged_is_on_no_front(tmp_path: Path) -> None:
    groups = groups_of(tmp_path, diverged=(10, float("nan")), dear=(4000, 0.5), cheap=(1000, 2.0))
    found = front(groups, cost="tokens")
    assert found is not None and [point.group.label for point in found.points] == ["dear", "cheap"]
    paths = [make_run(tmp_path / f"seed{n}", lr=9, seed=n, val_loss=loss) for n, loss in enumerate((1.0, float("nan")))]
    out = tmp_path / "out"
    assert main([*(str(path) for path in paths), str(tmp_path / "dear"), "--out", str(out)]) == 0
    text = (out / "comparison.md").read_text()
    assert "| 0.5000 ± 0.0000 | nan |" in text and "| seed1 | finished | 1 | 0.5000 | nan |  |" in text
    told = json.loads((out / "comparison.json").read_text(), parse_constant=pytest.fail)
    assert [group["val_loss"] for group in told["groups"]] == [[1.0, None], [0.5]]
