"""Sweep files: the same trials and command lines as W&B's agent makes of them."""

from __future__ import annotations

import math
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from jsonargparse import ArgumentParser
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from speechzoo.sweeps import SweepFile, load_sweep
from speechzoo.sweeps.search import drawn, searched
from speechzoo.sweeps.space import Parameter
from speechzoo.sweeps.state import Trial

RECIPES = Path(__file__).parents[2] / "recipes"
SHIPPED = sorted((RECIPES / "sweeps").glob("*.yaml"))
STUDY = sorted((RECIPES / "study").glob("*.yaml"))  # more of it: test_study.py


@pytest.mark.parametrize("macro", ["args", "args_no_hyphens", "args_no_equals", "args_no_boolean_flags"])
def test_arguments_are_those_of_wandb_agent(write, macro: str) -> None:
    parameters = {
        "trainer.max_steps": {"value": 7},
        "flag": {"value": False},
        "other": {"value": True},
        "b": {"value": [1, "x"]},
        "a": {"value": 1e-05},
        "nested": {"parameters": {"z": {"value": 2}, "y": {"parameters": {"x": {"value": "s"}}}}},
    }
    sweep = load_sweep(write(parameters=parameters, command=["fit", f"${{{macro}}}"]))
    (values,) = sweep.grid()
    assert values["nested"] == {"y": {"x": "s"}, "z": 2}
    theirs = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})[macro]
    assert sweep.command_line(values) == ["fit", *theirs]


def test_null_is_no_text() -> None:
    """W&B's agent writes None, which a setting that takes texts takes for one."""
    values = {"a": None, "b": {"r": 4, "to": None, "x": [True, None]}, "c": {"r": 4}}
    sweep = SweepFile(Path("s.yaml"), "s", "grid", ["fit", "${args}"], [])
    line = sweep.command_line(values)
    assert line == ["fit", "--a=null", '--b={"r": 4, "to": null, "x": [true, null]}', "--c={'r': 4}"]
    parser = ArgumentParser(parser_mode="omegaconf+")
    parser.add_argument("--a", type=str | None, default="")
    parser.add_argument("--b", type=dict)
    parser.add_argument("--c", type=dict)
    assert parser.parse_args(line[1:]).as_dict() == values


def test_macros_of_the_command(write, monkeypatch) -> None:
    monkeypatch.setenv("GPUS", "8")
    command = ["${env}", "${interpreter}", "-m", "${program}", "fit", "${args}", "--n=${envvar:GPUS}", "--x=${vars.y}"]
    line = load_sweep(write(command=command)).command_line({"lr": 0.1})
    assert line == ["/usr/bin/env", sys.executable, "-m", "speechzoo", "fit", "--lr=0.1", "--n=8", "--x=${vars.y}"]
    with pytest.raises(ValueError, match=r"macro \$\{args_json_file\}"):
        load_sweep(write(command=["fit", "${args_json_file}"]))


def test_grid_is_every_combination_once_in_the_order_of_names(write) -> None:
    sweep = load_sweep(write())
    grid = sweep.grid()
    assert [tuple(values) for values in grid] == [("config", "model.lr")] * 6
    assert [tuple(values.values()) for values in grid] == [
        (c, lr) for c in ("a.yaml", "b.yaml") for lr in (0.1, 0.01, 1e-3)
    ]
    whole = {
        "a": {"min": 2, "max": 4},
        "b": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25},
        "c": {"value": 1},
    }
    assert len(load_sweep(write(parameters=whole)).grid()) == 3 * 4
    assert Parameter.read("k", {"distribution": "int_uniform", "min": 1.0, "max": 3.0}).values() == [1, 2, 3]
    with pytest.raises(ValueError, match="a grid takes"):
        load_sweep(write(parameters={"lr": {"min": 0.1, "max": 1.0}})).grid()


def test_names_may_be_numbers(write) -> None:
    sweep = load_sweep(write(parameters={2: {"value": 1}, "a": {"parameters": {3: {"value": 2}}}}))
    assert sweep.grid() == [{"2": 1, "a": {"3": 2}}]


def test_random_is_seeded_and_the_same_after_a_restart(write) -> None:
    sweep = load_sweep(write(method="random", parameters={"lr": {"min": 0.0, "max": 1.0}, "k": {"values": [1, 2, 3]}}))

    def draw(seed: int) -> list[dict]:
        return [drawn(sweep, seed, number) for number in range(20)]

    assert draw(0) == draw(0) != draw(1)
    assert len({values["lr"] for values in draw(0)}) == 20


@pytest.mark.parametrize(
    ("spec", "low", "high", "median"),
    [
        ({"min": 0.0, "max": 4.0}, 0, 4, 2),
        ({"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-2}, 1e-6, 1e-2, 1e-4),
        ({"distribution": "log_uniform", "min": math.log(1e-6), "max": math.log(1e-2)}, 1e-6, 1e-2, 1e-4),
        ({"distribution": "normal", "mu": 3, "sigma": 0.5}, -1, 7, 3),
        ({"distribution": "log_normal", "mu": 0, "sigma": 0.5}, 0, 20, 1),
    ],
)
def test_continuous_draws(spec: dict, low: float, high: float, median: float) -> None:
    rng = np.random.default_rng(0)
    drawn = [Parameter.read("x", spec).draw(rng) for _ in range(4000)]
    assert low <= min(drawn) and max(drawn) <= high
    assert np.median(drawn) == pytest.approx(median, rel=0.15)


def test_discrete_draws() -> None:
    rng = np.random.default_rng(0)
    whole = Counter(Parameter.read("x", {"min": 2, "max": 5}).draw(rng) for _ in range(4000))
    assert set(whole) == {2, 3, 4, 5} and min(whole.values()) > 850
    steps = {
        Parameter.read("x", {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.1}).draw(rng) for _ in range(500)
    }
    assert steps == {round(0.1 * i, 1) for i in range(11)}
    spec = {"values": ["a", "b"], "probabilities": [0.9, 0.1]}
    assert Counter(Parameter.read("x", spec).draw(rng) for _ in range(2000))["a"] == pytest.approx(1800, abs=60)


def test_bayes_finds_the_better_half(write) -> None:
    pytest.importorskip("optuna")
    space = {"lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-1}, "k": {"min": 1, "max": 8}}
    sweep = load_sweep(write(method="bayes", parameters=space))
    trials: list[Trial] = []
    for number in range(40):
        values = searched(sweep, 0, trials)
        assert values == searched(sweep, 0, trials)  # a restart proposes the same
        loss = abs(math.log10(values["lr"]) + 3) + abs(values["k"] - 6)
        trials.append(Trial(number, values, "failed" if number == 3 else "finished", metric=loss))
    early, late = [np.mean([t.metric for t in part]) for part in (trials[:10], trials[-10:])]
    assert late < 0.6 * early


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"early_terminate": {"type": "hyperband", "min_iter": 3}}, "early_terminate needs W&B's server"),
        ({"method": "custom"}, "method has to be one of"),
        ({"methd": "grid"}, "unknown keys"),
        ({"parameters": {"lr": {"values": []}}}, "list of values is empty"),
        ({"parameters": {"lr": {"distribution": "beta"}}}, "'beta' is not offered"),
        ({"parameters": {"lr": {"min": 1, "maximum": 2}}}, "needs value, values, or min and max"),
        ({"parameters": {"lr": {"distribution": "uniform", "min": 1}}}, r"lacks \['max'\]"),
        ({"parameters": {"lr": {"min": 3, "max": 2}}}, "between 3 and 2"),
        ({"parameters": {"llm": {"values": "small"}}}, "values has to be a list, not 'small'"),
        ({"parameters": {"k": {"values": {"a": 1}}}}, "values has to be a list"),
        ({"parameters": {"k": {"values": [1], "probabilities": 1}}}, "probabilities has to be a list"),
        ({"parameters": {"k": {"values": [1], "probabilities": ["1e-4"]}}}, "probabilities have to be numbers; YAML"),
        ({"parameters": {"k": {"distribution": ["uniform"], "min": 0, "max": 1}}}, "is not offered"),
        ({"parameters": {"k": {"distribution": "int_uniform", "min": 0.5, "max": 2}}}, "takes whole numbers"),
        ({"parameters": {"k": {"distribution": "q_uniform", "min": 0, "max": 2, "q": 0}}}, "q has to be above 0"),
        ({"parameters": {"k": {"distribution": "normal", "sigma": "1e-3"}}}, "have to be numbers; YAML reads 1e-4"),
        ({"parameters": {"k": {"min": 0, "max": float("nan")}}}, "have to be numbers"),
        ({"command": ["${program}", "${args}"]}, "has to run `speechzoo fit`"),
        ({"method": "bayes", "metric": None}, "needs metric.name"),
        ({"metric": {"name": "x", "goal": "min"}}, "minimize or maximize"),
        ({"parameters": {"day": {"values": [date(2026, 1, 2)]}}}, "parameter 'day'.* quote what YAML takes for a date"),
        ({"run_cap": "3"}, "run_cap is a whole number from 1 on, not '3'"),
        ({"run_cap": 0}, "run_cap is a whole number"),
        ({"command": "speechzoo fit"}, "command is a list of words"),
        ({"command": ["speechzoo", "fit", "--config=a.yaml"]}, "all trials would be the same"),
        ({"command": ["speechzoo", "fit", "--x=${args}"]}, "all trials would be the same"),
        ({"command": ["speechzoo", "fit", "${args}", "${args_json}"]}, r"macro \$\{args_json\} .* is not offered"),
        ({"metric": {"name": 3}}, "metric.name is needed, e.g. val/loss, not 3"),
        ({"metric": {"target": 0.5}}, "metric.name is needed"),
        ({"metric": {"name": "x", "target": "low"}}, "metric.target is a number, not 'low'"),
        ({"parameters": {"a": {"parameters": {"b": {"value": 1}}, "value": 3}}}, r"has parameters .* no \['value'\]"),
        ({"parameters": {"k": {"values": [1, 2], "probabilities": [-0.5, 1.5]}}}, "one probability for each value"),
        ({"parameters": {"k": {"distribution": "log_uniform", "min": 1, "max": 5000}}}, "exponents of e"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(write, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        load_sweep(write(**change))
    assert "sweep.yaml" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_says_two_things_or_is_no_utf_8_is_named(write) -> None:
    path = write()
    path.write_text(path.read_text() + "method: random\n")
    with pytest.raises(ValueError, match=r"sweep.yaml:\d+: not YAML \(the key 'method' stands twice\)"):
        load_sweep(path)
    path.write_bytes("name: café".encode("latin-1"))
    with pytest.raises(ValueError, match="sweep.yaml: not YAML"):
        load_sweep(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps(path: Path, monkeypatch) -> None:
    """Each is a W&B file (its JSON schema allows these keys), its configs exist, and it says how to run it."""
    monkeypatch.chdir(RECIPES.parent)
    content = yaml.safe_load(path.read_text())
    sweep = load_sweep(path)
    assert sweep.name == content["program"].replace("speechzoo", path.stem) == path.stem
    assert f"speechzoo sweep recipes/sweeps/{path.name}" in path.read_text() and "wandb sweep" in path.read_text()
    for values in sweep.grid():
        configs = [
            word.removeprefix("--config=") for word in sweep.command_line(values) if word.startswith("--config=")
        ]
        assert len(configs) >= 2 and all(Path(config).is_file() for config in configs)


@pytest.mark.parametrize("path", SHIPPED + STUDY, ids=lambda path: path.stem)
def test_shipped_sweeps_under_wandb_agent(path: Path, tmp_path: Path, monkeypatch) -> None:
    """The agent of W&B itself makes our command line of each trial, and marks the trial as one of a sweep."""
    from wandb import wandb_agent

    started = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **given: SimpleNamespace(**given))
    for name, value in (("WANDB_SWEEP_ID", "abc"), ("WANDB_DIR", str(tmp_path)), ("WANDB_RUN_ID", "")):
        monkeypatch.setenv(name, value)
    (tmp_path / "wandb" / "sweep-abc").mkdir(parents=True)
    content, sweep = yaml.safe_load(path.read_text()), load_sweep(path)
    agent = wandb_agent.Agent.__new__(wandb_agent.Agent)  # the constructor would call the server
    agent.__dict__ |= {"_sweep_command": content["command"], "_function": None, "_in_jupyter": False}
    agent.__dict__ |= {"_run_processes": {}, "_forward_signals": False}
    for number, values in enumerate(sweep.grid()):
        arguments = {name: {"value": value} for name, value in values.items()}
        agent._command_run({"run_id": f"r{number}", "program": content["program"], "args": arguments})
        started.append(agent._run_processes[f"r{number}"])
        ours = sweep.command_line(values)
        assert [sys.executable if word == "python" else word for word in started[-1].command] == ours
        assert started[-1].env["WANDB_RUN_ID"] == f"r{number}" and started[-1].env["WANDB_SWEEP_ID"] == "abc"
        assert all(f"--{name}={value}" in ours for name, value in values.items())
    assert len({tuple(one.command) for one in started}) == len(started) > 1


def test_shipped_sweeps_have_the_size_they_say() -> None:
    assert {path.stem: len(load_sweep(path).grid()) for path in SHIPPED} == {
        "adaptor_lr_k": 24,
        "llasm_vs_llama_omni": 6,
        "tiny": 4,
    }
