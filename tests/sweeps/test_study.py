"""The study: every trial's configuration can be built, trials of a file get equal budgets, and differ in one thing."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import printed

from speechzoo.evaluation.grouping import find_key
from speechzoo.evaluation.report import flatten
from speechzoo.names.spec import to_factory
from speechzoo.sweeps import load_sweep

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "recipes" / "study"
NAMES = sorted(path.stem for path in STUDY.glob("*.yaml"))
TRIALS = {"adaptor": 42, "encoder": 9, "llm": 6, "objective": 6, "pretraining": 6, "speech_out": 6}
EXAMPLES = {"adaptor": 800, "encoder": 800, "llm": 800, "objective": 800, "pretraining": 800, "speech_out": 7200}
GROUPS = {
    "adaptor": ["adaptor", "lr"],
    "encoder": ["encoder.layer"],
    "llm": ["lora"],
    "objective": ["loss_weights"],
    "pretraining": ["init_from"],
    "speech_out": ["model"],
}
# What follows from a file's question, beside what `--group-by` names.
FOLLOWS = {
    "adaptor": ("model.init_args.adaptor.",),
    "encoder": ("model.init_args.freeze", "data.init_args.feature_cache"),
    "llm": ("model.init_args.freeze",),
    "objective": ("data.init_args.teacher_cache",),
    "pretraining": (),
    "speech_out": (
        *("model.init_args.unit_decoder.", "model.init_args.optimizer.init_args.lr", "recipe"),
        *("trainer.logger", "trainer.callbacks", "trainer.default_root_dir"),
    ),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch, tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    """`${part:...}` gives tiny random parts; nothing is downloaded. Files are named as from the repository's root."""
    there = {"smollm2-135m-instruct": tiny_llm_dir, "whisper-tiny.en": tiny_whisper_pt}
    monkeypatch.setattr("speechzoo.parts.registry.fetch", there.__getitem__)
    monkeypatch.chdir(ROOT)


@cache
def trials(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Values and whole configuration of every trial of seed 0, and of the first one's other seeds."""
    sweep = load_sweep(STUDY / f"{name}.yaml")
    found = []
    grid = sweep.grid()
    for values in grid:
        if values["seed_everything"] and values | {"seed_everything": 0} != grid[0]:
            continue
        line = sweep.command_line(values)
        found.append((values, printed(*line[line.index("fit") :])))
    return found


def test_there_is_a_file_for_each_question_and_it_says_how_to_run_it() -> None:
    assert list(TRIALS) == NAMES
    readme = (STUDY / "README.md").read_text()
    for name in NAMES:
        text = (STUDY / f"{name}.yaml").read_text()
        sweep = load_sweep(STUDY / f"{name}.yaml")
        assert sweep.name == f"study_{name}" and len(sweep.grid()) == TRIALS[name]
        assert f"speechzoo sweep recipes/study/{name}.yaml" in text and f"wandb sweep recipes/study/{name}.yaml" in text
        assert f"checkpoints/sweeps/study_{name}" in text and f"({name}.yaml)" in readme
        assert f"--group-by {','.join(GROUPS[name])}" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_trial_can_be_built_and_has_the_same_budget(name: str) -> None:
    budgets = set()
    for values, config in trials(name):
        model = to_factory(config["model"])()  # its constructor loads no weights
        assert not list(model.parameters())
        assert config["seed_everything"] == config["data"]["init_args"]["seed"] == values["seed_everything"]
        data, trainer = config["data"]["init_args"], config["trainer"]
        batch = data["batch_size"] * (trainer["accumulate_grad_batches"] or 1)
        assert trainer["max_epochs"] == -1 and trainer["max_steps"] % trainer["val_check_interval"] == 0
        budgets.add((trainer["max_steps"] * batch, str(data["train"]), str(data["val"]), trainer["val_check_interval"]))
    ((examples, *_),) = budgets
    assert examples == EXAMPLES[name]
    assert {values["seed_everything"] for values, _ in trials(name)} == {0, 1, 2}


@pytest.mark.parametrize("name", NAMES)
def test_trials_differ_in_their_question_alone(name: str) -> None:
    flat = [flatten(config) for _, config in trials(name)]
    keys = [find_key(given, flat) for given in GROUPS[name]]
    seeds = ("seed_everything", "data.init_args.seed", "name")
    for key in dict.fromkeys(key for one in flat for key in one):
        if len({one.get(key) for one in flat}) > 1:
            asked = any(key == one or key.startswith(f"{one}.") for one in keys)
            assert asked or key in seeds or key.startswith(FOLLOWS[name]), key
    groups = {tuple(str(at(config, key)) for key in keys) for _, config in trials(name)}
    assert len(groups) * 3 == TRIALS[name]


def at(config: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config


def test_adaptors_take_the_same_positions_a_second() -> None:
    seen = {}
    for _, config in trials("adaptor"):
        spec = config["model"]["init_args"]["adaptor"]
        adaptor = to_factory(spec)(384, 576)  # widths of Whisper tiny and SmolLM2-135M
        kind = type(adaptor).__name__
        lens = adaptor.out_lens(torch.tensor([500, 1500]))  # 50 frames a second: 10 s and 30 s
        seen[kind] = lens.tolist()
    assert len(seen) == 7 and set(map(tuple, seen.values())) == {(100, 300)}


def test_the_cascade_of_the_study_is_one() -> None:
    told = yaml.safe_load((STUDY / "parts" / "cascade.yaml").read_text())
    assert told == {
        "recognizer": "${part:whisper-tiny.en}",
        "llm": "checkpoints/quickstart/llama_omni_stage1",
        "voice": "piper-joe",
    }
