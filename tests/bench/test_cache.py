"""`speechzoo bench cache`: the same steps with and without caches, and what the command says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import write_config, zoo

from speechzoo.bench import cache
from speechzoo.cli import bench as command


@pytest.fixture
def recipe(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    """A stage 2 of LLaMA-Omni with tiny parts, which uses both caches."""
    path = write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)
    content = yaml.safe_load(path.read_text())
    content["model"]["class_path"] = "LLaMAOmni"
    sizes = {"num_units": 12, "upsample": 3, "dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32}
    content["model"]["init_args"] |= {
        "unit_decoder": {"class_path": "CTCUnitDecoder", "init_args": sizes},
        "freeze": [r"^encoder\.", r"^adaptor\.", r"^llm\."],
        "loss_weights": {"lm": 0.0},
    }
    content["data"]["init_args"] |= {"feature_cache": "features", "state_cache": "states"}
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_steps_are_the_same_and_the_figures_follow(recipe: Path, monkeypatch, capsys) -> None:
    ran: list[dict] = []

    def here(given) -> None:
        zoo(*given)
        folder = Path(next(word for word in given if "default_root_dir" in word).partition("=")[2])
        told = json.loads((folder / "cost.json").read_text())
        files = [f for f in folder.rglob("*.safetensors")]
        ran.append({**told, "bytes": sum(f.stat().st_size for f in files), "held": {f.parents[2].name for f in files}})
        assert len(told["losses"]) == 4 and not (folder / "last.ckpt").exists()

    monkeypatch.setattr(cache, "run", here)
    file = recipe.parent / "figures.json"
    assert command.main(["cache", str(recipe), "--steps=3", "--warm-up=1", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["recipes"][str(recipe)]
    assert list(found) == ["none", "features", "states"]
    assert [told["held"] for told in ran] == [set(), {"feature_cache"}, {"feature_cache", "state_cache"}]
    for told, figures in zip(ran, found.values(), strict=True):
        assert figures["cpu_seconds"] == told["step"] > 0
        if figures is not found["none"]:
            assert figures["gain"] == pytest.approx(ran[0]["step"] / told["step"])
            assert figures["build_cpu_seconds"] == pytest.approx(told["loaders"] - ran[0]["loaders"])
            assert figures["megabytes"] == told["bytes"] / 1e6 > 0
            assert figures["loss_change"] < 1e-3  # states are kept in half precision
    assert not (recipe.parent / "features").exists()  # the recipe's own caches are left alone
    assert "CPU s a step without caches" in capsys.readouterr().out


def test_steps_are_counted_after_the_warm_up(tmp_path: Path) -> None:
    cost = cache.StepCost(str(tmp_path / "cost.json"), warm_up=2)
    cost.times, cost.losses = [10.0, 15.0, 18.0, 19.0, 21.0], [4.0, 3.0, 2.0, 1.0]
    cost.on_train_end(None, None)
    assert json.loads((tmp_path / "cost.json").read_text())["step"] == 1.5


def test_what_cannot_be_measured_is_said(tmp_path: Path, capsys) -> None:
    plain = tmp_path / "plain.yaml"
    plain.write_text("data: {init_args: {train: a.jsonl}}\n")
    assert command.main(["cache", str(plain)]) == 1
    said = "plain.yaml: uses none of data.feature_cache, data.state_cache, data.teacher_cache"
    assert said in capsys.readouterr().err
    assert command.main(["cache", str(tmp_path / "none.yaml")]) == 1
    assert "none.yaml: no such recipe" in capsys.readouterr().err
    broken = tmp_path / "broken.yaml"
    broken.write_text("data: {init_args: {feature_cache: x}}\n")
    assert command.main(["cache", str(broken)]) == 1
    assert "broken.yaml: " in capsys.readouterr().err


def test_a_cache_that_costs_nothing_pays_at_once(recipe: Path, monkeypatch, capsys) -> None:
    def ran(given) -> None:
        folder = Path(next(word for word in given if "default_root_dir" in word).partition("=")[2])
        cached = "--data.init_args.feature_cache=null" not in given
        (folder / "cost.json").write_text(json.dumps({"step": 1.0 if cached else 3.0, "loaders": 0.1, "losses": [1.0]}))

    monkeypatch.setattr(cache, "run", ran)
    assert command.main(["cache", str(recipe)]) == 0
    assert "3.00 times less; built in 0 CPU s, 0 MB; pays after 0 steps" in capsys.readouterr().out
