"""Comparing finished runs: which runs there are, their groups, the numbers, what makes a comparison unfair."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import make_run, quiz

from speechzoo.cli.compare import main
from speechzoo.evaluation import Answer, save_answers
from speechzoo.evaluation.comparable import objective, unfair
from speechzoo.evaluation.runs import find_runs
from speechzoo.evaluation.runs_figures import WRAP, plot_bars, plot_curves, wrap
from speechzoo.evaluation.runs_report import compare_runs
from speechzoo.evaluation.runs_tables import difference, difference_table, interval, measures_of, result_table, scores
from speechzoo.evaluation.settings import group_runs


def test_mean_and_sd_over_seeds(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / f"a{s}", seed=s, val_loss=v, right=r) for s, v, r in ((0, 1.0, 2), (1, 1.2, 3), (2, 1.7, 4))
    ]
    paths += [make_run(tmp_path / f"b{s}", lr=0.01, seed=s, val_loss=2.0 + s, right=1) for s in range(3)]
    groups = group_runs(find_runs(paths))
    assert [group.label for group in groups] == ["LLaSM, lr=0.1", "LLaSM, lr=0.01"]  # seeds and names are no settings
    table = result_table(groups)
    assert table.header[:6] == ["Run", "Model", "lr", "Seeds", "Train loss", "Validation loss"]
    first = dict(zip(table.header, table.rows[0], strict=True))
    assert str(first["Seeds"]) == "0, 1, 2"
    assert str(first["Validation loss"]) == "1.3000 ± 0.3606"  # sqrt((.09 + .01 + .16) / 2)
    assert str(table.rows[1][5]) == "3.0000 ± 1.0000"
    assert first["Exact match ↑"].text == "75.0 %" and first["Exact match ↑"].detail.startswith("± 25.0 [")
    (exact,) = [measure for measure in measures_of(groups) if measure.key == "exact_match"]
    assert scores(groups[0], exact) == [0.5, 0.75, 1.0]
    value, low, high = interval(groups[0], exact)
    assert value == 0.75 and 0 < low < 0.75 < high <= 1
    # q0: 1 - 1, q1: 1 - 0, q2: 2/3 - 0, q3: 1/3 - 0
    found, n = difference(groups[0], groups[1], exact)
    assert n == 4 and found.value == pytest.approx(0.5) and found.low < 0.5 < found.high


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    groups = group_runs(find_runs([make_run(tmp_path / "a", val_loss=0.25)]))
    assert str(result_table(groups).rows[0][-1]) == "0.2500"


def test_settings_that_follow_from_another_are_no_columns(tmp_path: Path) -> None:
    plain = {"adaptor": {"class_path": "Linear", "init_args": {"stack": 4}}}
    mlp = {"adaptor": {"class_path": "ConcatMLP", "init_args": {"stack": 4, "hidden_dim": 2048}}}
    runs = find_runs([make_run(tmp_path / "a", **plain), make_run(tmp_path / "b", **mlp)])
    assert [group.label for group in group_runs(runs)] == ["LLaSM, adaptor=Linear", "LLaSM, adaptor=ConcatMLP"]


def column(groups, name: str) -> list[str]:
    table = result_table(groups)
    return [str(row[table.header.index(name)]) for row in table.rows]


def llm(**init: object) -> dict:
    return {"llm": {"class_path": "HFCausalLM", "init_args": {"model": "llm", **init}}}


def test_lists_and_dictionaries_are_settings_that_differ(tmp_path: Path) -> None:
    def groups(name: str, *values: dict) -> list:
        return group_runs(find_runs([make_run(tmp_path / name / f"r{i}", **v) for i, v in enumerate(values)]))

    some = groups("none", llm(lora=None), llm(lora={"r": 4, "lora_alpha": 8}), llm(lora={"r": 8, "lora_alpha": 8}))
    assert column(some, "lora") == ["none", "{lora_alpha: 8, r: 4}", "{lora_alpha: 8, r: 8}"]
    assert column(some, "Run") == ["r0", "r1", "r2"]
    assert [g.label for g in some][:2] == ["LLaSM, lora=none", "LLaSM, lora={lora_alpha: 8, r: 4}"]
    each = groups("each", llm(lora={"r": 4}), llm(lora={"r": 4, "use_dora": True}), llm(lora={"r": 8}))
    assert column(each, "r") == ["4", "4", "8"] and column(each, "use_dora") == ["–", "True", "–"]
    lists = groups("lists", {"freeze": ["^encoder"]}, {"freeze": ["^encoder", "^llm"]}, {"freeze": None})
    assert column(lists, "freeze") == ["['^encoder']", "['^encoder', '^llm']", "none"]
    weights = groups("weights", {"loss_weights": {"lm": 1.0}}, {"loss_weights": {"lm": 1.0, "ctc": 0.5}})
    assert column(weights, "ctc") == ["–", "0.5"]


def test_many_settings_leave_labels_that_can_be_read(tmp_path: Path) -> None:
    """Runs are called by name there; their table says what each is, and nothing is cut in a figure."""
    options = [{**llm(lora={"r": r}), "freeze": [f"^part_{r}\\."], "system": "word " * 9 + str(r)} for r in range(40)]
    paths = [make_run(tmp_path / f"trial_{i:03d}", lr=0.1 / (i + 1), right=i % 5, **o) for i, o in enumerate(options)]
    groups = group_runs(find_runs(paths))
    assert len(groups) == 40 and [g.label for g in groups] == [f"trial_{i:03d}" for i in range(40)]
    assert result_table(groups).header[:6] == ["Run", "Model", "freeze", "r", "lr", "system"]
    text = "LLaSM, lora={r: 4, lora_alpha: 8}, " * 4
    assert wrap(text).replace("\n", " ") == text.strip() and max(map(len, wrap(text).splitlines())) <= WRAP
    sizes = [struct.unpack(">II", plot_bars(some, measures_of(some))[16:24]) for some in (groups[:5], groups)]
    assert sizes[0][0] == sizes[1][0] < 2000 and sizes[1][1] > 6 * sizes[0][1] / 2  # a row each, not narrower columns
    wide = struct.unpack(">II", plot_curves(groups)[16:24])
    assert wide[0] < 2000 and wide[1] > struct.unpack(">II", plot_curves(groups[:5])[16:24])[1]


def test_runs_of_one_recorded_step_have_no_curves(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / name, lr=lr) for name, lr in (("a", 0.1), ("b", 0.2))]
    for path in paths:
        file = path / "csv" / "version_0" / "metrics.csv"
        file.write_text("epoch,step,train/loss,val/loss\n0,4,3.0,\n0,4,,2.5\n")
    assert plot_curves(group_runs(find_runs(paths))) is None


def test_a_run_one_stands_in_has_its_name_and_a_copied_log_is_no_version(tmp_path: Path, monkeypatch) -> None:
    folder = make_run(tmp_path / "mine")
    (run,) = find_runs([folder])
    copied = folder / "csv" / "version_0_old"
    copied.mkdir(parents=True)
    (copied / "metrics.csv").write_text("step,train/loss\n900,9.0\n")
    for place, given in ((folder, Path()), (folder / "csv", Path(".."))):
        monkeypatch.chdir(place)
        (here,) = find_runs([given])
        assert here.name == "mine" and here.stages == run.stages


def test_named_manifests_are_data(tmp_path: Path) -> None:
    runs = find_runs([make_run(tmp_path / n, data={"a": "one.jsonl", "b": f"{n}.jsonl"}) for n in ("x", "y")])
    assert "training data differ" in "\n".join(unfair(group_runs(runs)))


@pytest.mark.parametrize(
    ("model", "weights", "told"),
    [
        ("LLaSM", None, "1 lm"),
        ("LLaMAOmni2", {"lm": 0.0}, "1 unit"),
        ("Ultravox", {"kl_end": 0.5}, "1 lm + 1 kl + 0.5 kl_end"),
        ("Foreign", {"power": 2.0}, "1 lm + 2 power"),
    ],
)
def test_objectives_are_those_of_the_architecture(tmp_path: Path, model: str, weights: dict | None, told: str) -> None:
    (run,) = find_runs([make_run(tmp_path / "run", model, loss_weights=weights)])
    assert objective(run) == told


def test_what_makes_a_comparison_unfair(tmp_path: Path) -> None:
    text = {"loss_weights": {"ctc": 0.0}}
    fair = [make_run(tmp_path / f"f{s}{m}", m, seed=s, **text) for m in ("LLaSM", "LLaMAOmni") for s in (0, 1)]
    assert unfair(group_runs(find_runs(fair))) == []

    (tmp_path / "one.jsonl").write_text("1")
    (tmp_path / "two.jsonl").write_text("2")
    paths = [
        make_run(tmp_path / "x" / "a", data=str(tmp_path / "one.jsonl")),
        make_run(
            tmp_path / "x" / "b",
            "LLaMAOmni",
            seed=1,
            tokens=1100,
            data=str(tmp_path / "two.jsonl"),
            unit_decoder={"x": 1},
        ),
    ]
    lines = "\n".join(unfair(group_runs(find_runs(paths))))
    assert "training data differ: LLaSM (a): one.jsonl 6b86b273; LLaMAOmni (b): two.jsonl d4735e3a" in lines
    assert "seeds differ: LLaSM (a): 0; LLaMAOmni (b): 1" in lines
    assert "tokens trained on differ: LLaSM (a): 1,000; LLaMAOmni (b): 1,100" in lines
    assert "training objectives differ: LLaSM (a): 1 lm; LLaMAOmni (b): 1 lm + 1 ctc" in lines
    assert "validation data" not in lines and "LLMs" not in lines and "conversations" not in lines

    twice = [make_run(tmp_path / "t" / name) for name in "ab"]
    assert "come twice" in "\n".join(unfair(group_runs(find_runs(twice))))


def test_same_manifest_in_another_place_is_the_same_data(tmp_path: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "train.jsonl").write_text("same")
    paths = [make_run(tmp_path / p / "run", seed=i, data=f"{p}/train.jsonl") for i, p in enumerate(("one", "two"))]
    (group,) = group_runs(find_runs(paths))
    assert [run.name for run in group.runs] == ["one/run", "two/run"]


def test_unfinished_and_failed_runs_are_listed_and_not_averaged(tmp_path: Path, capsys) -> None:
    sweep = tmp_path / "sweep"
    make_run(sweep / "trial_000", val_loss=1.0)
    make_run(sweep / "trial_001", seed=1, val_loss=None)
    states = [("finished", 0, ""), ("failed", 1, "Traceback\nRuntimeError: out of memory"), ("waiting", None, "")]
    trials = [
        {"number": n, "state": s, "exit_code": c, "error": e, "values": {"seed": n}}
        for n, (s, c, e) in enumerate(states)
    ]
    (sweep / "sweep.json").write_text(json.dumps({"settings": {}, "trials": trials}))
    stopped = make_run(tmp_path / "stopped", val_loss=None)
    assert main([str(sweep), str(stopped), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "3 of 4 runs did not finish and are not in the averages: trial\\_001, trial\\_002, stopped" in text
    assert text == capsys.readouterr().out.split("\nWritten")[0]
    assert "exit code 1: RuntimeError: out of memory" in text and "not started" in text
    assert "its last recorded step is 9" in text
    facts = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [group["val_loss"] for group in facts["groups"]] == [[1.0]]
    assert [run["state"] for run in facts["runs"]] == ["finished", "failed", "unfinished", "unfinished"]
    assert main([str(stopped), "--out", str(tmp_path / "none")]) == 1
    assert "none of the runs finished" in capsys.readouterr().err


def test_stages_are_one_run_and_its_cost_is_their_sum(tmp_path: Path) -> None:
    """A folder like the quickstart's: the second stage names the first as the command wrote it."""
    folder = tmp_path / "checkpoints" / "quick"
    make_run(folder / "llasm_pretrain", tokens=300)
    make_run(folder / "llasm_finetune", init_from=["checkpoints/quick/llasm_pretrain"])
    answers = [Answer("q", "sum", "question", "answer", "answer")]
    for key in ("llasm", "text"):
        save_answers(folder / "answers" / f"{key}.jsonl", answers)
    save_answers(folder / "answers" / "asr.jsonl", [Answer("other", "asr", "words", "words", "words")])
    run, text = find_runs([folder])
    assert run.name == "llasm_finetune" and run.answers == answers and run.missing == []
    assert run.total("tokens") == 1300 and run.total("seconds") == 120
    assert text.name == "text" and text.stages == [] and text.answers == answers
    groups = group_runs([run, text])
    assert [group.label for group in groups] == ["LLaSM", "text"] and unfair(groups) == []

    # Another sweep's trial of the same name as this run's neighbour, and as this run itself.
    make_run(tmp_path / "one" / "trial_000", tokens=7)
    make_run(tmp_path / "two" / "trial_000", init_from="one/trial_000")
    make_run(tmp_path / "two" / "trial_001", init_from="one/trial_000")
    for name in ("trial_000", "trial_001"):
        (second,) = find_runs([tmp_path / "two" / name])
        assert second.total("tokens") == 1007 and second.missing == []

    lonely = find_runs([make_run(tmp_path / "b", init_from=["gone/pretrain"])])
    assert "started from gone/pretrain, not found here" in unfair(group_runs(lonely))[0]


def test_a_checkpoint_that_a_run_started_from_is_its_run(tmp_path: Path) -> None:
    """Two first stages make two groups and no two seeds of one, and their cost counts."""
    for name, lr in (("a", 0.1), ("b", 0.5)):
        make_run(tmp_path / name, lr=lr, steps=7)
        start = str(tmp_path / name / "last.ckpt")
        make_run(tmp_path / f"{name}2", seed=ord(name), init_from=[start])
    make_run(tmp_path / "c2", init_from=[str(tmp_path / "b" / "step=3.ckpt")])
    runs = find_runs([tmp_path / name for name in ("a2", "b2", "c2")])
    assert [(list(run.configs), run.missing, run.total("steps")) for run in runs] == [
        (["a", "a2"], [], 17),
        (["b", "b2"], [], 17),
        (["b", "c2"], [], 17),
    ]
    starts = [group.settings["model.init_args.init_from"] for group in group_runs(runs)]
    assert starts == ["a", "b", "b/step=3.ckpt"]
    assert [run.name for run in find_runs([tmp_path])] == ["a2", "b2", "c2"]


def test_all_files_and_their_escaping(tmp_path: Path) -> None:
    options = {"prompt": {"init_args": {"system": "100% of A&B_{x} <b>"}}}
    paths = [make_run(tmp_path / "a_1", right=3, **options), make_run(tmp_path / "b", right=2)]
    paths[1].joinpath("config.yaml").write_text(
        paths[1]
        .joinpath("config.yaml")
        .read_text()
        .replace("model: llm", "model: llm\n    prompt: {init_args: {system: none}}")
    )
    md, html, tex, _ = compare_runs(find_runs(paths), tmp_path / "out")
    assert r"100\% of A\&B\_\{x\} \textless{}b\textgreater{}" in tex.read_text() and r"a\_1" in tex.read_text()
    assert "±" not in tex.read_text() and tex.read_text().count(r"\begin{table}") == tex.read_text().count(
        r"\end{table}"
    )
    assert "A&amp;B_{x} &lt;b&gt;" in html.read_text() and html.read_text().count("data:image/png;base64,") == 3
    assert "![loss](loss.png)" in md.read_text()
    for name in ("front.png", "loss.png", "scores.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_runs([tmp_path / "none"])
    with pytest.raises(ValueError, match="no run here"):
        find_runs([tmp_path])
    (make_run(tmp_path / "a") / "config.yaml").write_text("model: 3")
    with pytest.raises(ValueError, match="not the config of a run"):
        find_runs([tmp_path / "a"])


def test_a_difference_on_fewer_questions_says_how_many(tmp_path: Path) -> None:
    for name, lr in (("a", 0.1), ("b", 0.2)):
        spoken = [replace(one, spoken="answer" if n < 2 else None) for n, one in enumerate(quiz(2))]
        save_answers(make_run(tmp_path / name, lr=lr) / "answers.jsonl", spoken)
    table = difference_table(group_runs(find_runs([tmp_path / "a", tmp_path / "b"])))
    assert table is not None
    told = dict(zip(table.header, map(str, table.rows[0]), strict=True))
    assert told["n"] == "4" and told["WER"] == "0.0 [0.0, 0.0], p = 1.000"
    assert told["ASR-WER of the speech against its text"] == "0.0 [0.0, 0.0], p = 1.000 (n = 2)"


def test_a_rate_over_no_words_has_no_bounds(tmp_path: Path) -> None:
    save_answers(make_run(tmp_path / "a") / "answers.jsonl", [Answer("q", "k", "?", "!", "!")])
    table = result_table(group_runs(find_runs([tmp_path / "a"])))
    told = dict(zip(table.header, map(str, table.rows[0]), strict=True))
    assert (told["WER ↓"], told["Exact match ↑"]) == ("not measured", "100.0 % [100.0, 100.0]")
