"""Loading a model runs none of its author's code: no slot and no road takes a class that is not known."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import write_config, zoo

import speechzoo
from speechzoo.cli import main
from speechzoo.interop.hub import load, load_run
from speechzoo.models import LLaSM
from speechzoo.names.recipes import recipe
from speechzoo.names.trust import SLOTS, known
from speechzoo.talk.sources import open_talker
from speechzoo.training.shard_reader import ShardReader

PARTS = ("encoder", "adaptor", "llm", "prompt", "optimizer", "lr_scheduler")
PATHS = [
    "subprocess.Popen",
    "os.system",
    "builtins.exec",
    "functools.partial",
    "speechzoo.interop.hub.sys.exit",
    "speechzoo.text.Path",
    "speechzoo.models.checkpoint.torch.load",
    "speechzoo.cli.main",
    "torch.optim.os.system",
    "torch.load",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trusted")
    zoo("fit", "-c", write_config(folder / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest))
    return folder / "tiny"


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it_ran"


def hostile(class_path: str, mark: Path) -> dict[str, Any]:
    """A part that would create the mark, if anybody made it."""
    arguments = {
        "subprocess.Popen": {"args": ["touch", str(mark)]},
        "os.system": {"command": f"touch {mark}"},
        "builtins.exec": {"source": f"open({str(mark)!r}, 'w')"},
    }
    return {"class_path": class_path, "init_args": arguments.get(class_path, {})}


def changed(run: Path, into: Path, **parts: Any) -> Path:
    """The run's checkpoint with other hyper-parameters, written as anybody could."""
    saved = torch.load(run / "last.ckpt", weights_only=True)
    model_class = parts.pop("model_class", saved["model_class"])
    saved = {**saved, "model_class": model_class, "hyper_parameters": {**saved["hyper_parameters"], **parts}}
    into.mkdir(parents=True, exist_ok=True)
    torch.save(saved, into / "last.ckpt")
    return into


def refused(load_it: Any, mark: Path, *named: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_it()
    text = str(caught.value)
    assert "\n" not in text and all(name in text for name in named), text
    assert not mark.exists()


@pytest.mark.parametrize("slot", PARTS)
@pytest.mark.parametrize("class_path", PATHS)
def test_no_slot_of_a_checkpoint_takes_another_class(run: Path, tmp_path: Path, mark: Path, slot, class_path) -> None:
    before = set(sys.modules)
    bad = changed(run, tmp_path / "bad", **{slot: hostile(class_path, mark)})
    refused(lambda: load_run(bad), mark, f"{class_path!r} as {slot}", "--trust-code")
    assert not {
        name for name in set(sys.modules) - before if not name.startswith(("speechzoo", "torch", "transformers"))
    }


@pytest.mark.parametrize("slot", PARTS)
def test_nor_one_inside_another(run: Path, tmp_path: Path, mark: Path, slot: str) -> None:
    good = torch.load(run / "last.ckpt", weights_only=True)["hyper_parameters"][slot]
    for place in ("model", "inner"):
        arguments = {**good.get("init_args", {}), place: hostile("subprocess.Popen", mark)}
        bad = changed(run, tmp_path / place, **{slot: {**good, "init_args": arguments}})
        with pytest.raises((ValueError, TypeError)) as caught:
            load_run(bad)
        assert "\n" not in str(caught.value) and not mark.exists()


def test_nor_beside_the_parts(run: Path, tmp_path: Path, mark: Path) -> None:
    part = hostile("subprocess.Popen", mark)
    for name in ("freeze", "loss_weights", "lr_scale", "init_from"):
        bad = changed(run, tmp_path / name, **{name: [part]})
        refused(lambda bad=bad: load_run(bad), mark, "subprocess.Popen")
    refused(lambda: load_run(changed(run, tmp_path / "new", novel=part)), mark, "novel")
    for class_path in ("subprocess.Popen", "os.system", "lightning.Trainer", 5, None):
        bad = changed(run, tmp_path / "model", model_class=class_path)
        with pytest.raises(ValueError):
            load_run(bad)
        assert not mark.exists()


def test_arguments_are_compared_with_the_signature_first(run: Path, tmp_path: Path, mark: Path) -> None:
    bad = changed(run, tmp_path / "bad", adaptor={"class_path": "speechzoo.adaptors.Linear", "init_args": {"stak": 4}})
    refused(lambda: load_run(bad), mark, "adaptor", "stak")
    kernel = torch.load(run / "last.ckpt", weights_only=True)["hyper_parameters"]["llm"]
    kernel = {**kernel, "init_args": {**kernel["init_args"], "attn_implementation": "somebody/kernel"}}
    refused(lambda: load_run(changed(run, tmp_path / "kernel", llm=kernel)), mark, "somebody/kernel")


@pytest.mark.parametrize("slot", PARTS)
def test_no_slot_of_a_saved_model_takes_one(run: Path, tmp_path: Path, mark: Path, slot: str) -> None:
    folder = tmp_path / "saved"
    speechzoo.save_pretrained(load_run(run), folder)
    config = json.loads((folder / "config.json").read_text())
    config["hyper_parameters"][slot] = hostile("subprocess.Popen", mark)
    (folder / "config.json").write_text(json.dumps(config))
    refused(lambda: load(folder), mark, f"'subprocess.Popen' as {slot}", "config.json")
    refused(lambda: open_talker(str(folder)), mark, f"'subprocess.Popen' as {slot}")


def test_commands_refuse_in_one_line(run: Path, tmp_path: Path, mark: Path, wavs: list[Path], capsys) -> None:
    bad = changed(run, tmp_path / "bad", prompt=hostile("subprocess.Popen", mark))
    commands = [
        ["ask", bad, wavs[0]],
        ["demo", f"it={bad}"],
        ["ask", f"cascade:{bad}", wavs[0]],
        ["checkpoint", "expand", bad, tmp_path / "out"],
    ]
    for command in commands:
        assert main([str(word) for word in command]) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "subprocess.Popen" in line]
        assert "--trust-code" in line and not mark.exists()
    cascade = tmp_path / "cascade.yaml"
    cascade.write_text(yaml.safe_dump({"recognizer": "tiny", "llm": hostile("subprocess.Popen", mark)}))
    refused(lambda: open_talker(str(cascade)), mark, "subprocess.Popen")


def test_an_earlier_stage_gives_weights_alone(run: Path, tmp_path: Path, mark: Path) -> None:
    bad = changed(run, tmp_path / "bad", prompt=hostile("subprocess.Popen", mark))
    settings = torch.load(run / "last.ckpt", weights_only=True)["hyper_parameters"]
    model = LLaSM(**{**settings, "init_from": [str(bad)]})
    model.configure_model()
    assert not mark.exists()
    refused(lambda: LLaSM.load_from_checkpoint(bad / "last.ckpt"), mark, "subprocess.Popen")


def test_the_run_of_a_recipe_goes_on_whatever_its_checkpoint_names(run: Path, mark: Path, tmp_path: Path) -> None:
    """`fit` builds from the recipe alone."""
    saved = torch.load(run / "last.ckpt", weights_only=True)
    saved["hyper_parameters"]["prompt"] = hostile("subprocess.Popen", mark)
    torch.save(saved, tmp_path / "last.ckpt")
    config = tmp_path / "config.yaml"  # with another folder, also for its checkpoints
    config.write_text((run / "config.yaml").read_text().replace(str(run), str(tmp_path / "new")))
    cli = zoo("fit", "-c", config, "--trainer.max_steps=3", f"--ckpt_path={tmp_path / 'last.ckpt'}")
    assert cli.trainer.global_step == 3 and not mark.exists()


def test_the_index_of_shards_names_tensors_alone(tmp_path: Path, mark: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return open, (str(mark), "w")

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="refused, not an index of tensors"):
        ShardReader(tmp_path).read_metadata()
    assert not mark.exists()


MINE = """
from pathlib import Path
from speechzoo.adaptors import Linear
Path({mark!r}).touch()
class Mine(Linear):
    pass
"""


def test_own_classes_are_taken_when_they_are_trusted(
    run: Path, tmp_path: Path, mark: Path, monkeypatch, capsys
) -> None:
    (tmp_path / "my_own_adaptor.py").write_text(MINE.format(mark=str(mark)))
    monkeypatch.syspath_prepend(tmp_path)
    good = torch.load(run / "last.ckpt", weights_only=True)["hyper_parameters"]["adaptor"]
    theirs = changed(run, tmp_path / "theirs", adaptor={**good, "class_path": "my_own_adaptor.Mine"})
    refused(lambda: load_run(theirs), mark, "'my_own_adaptor.Mine' as adaptor")
    model = load_run(theirs, trust_code=True)
    assert mark.exists() and type(model.adaptor).__name__ == "Mine"
    assert "importing code it names: my_own_adaptor.Mine (adaptor)" in capsys.readouterr().err


def test_all_that_recipes_name_is_known() -> None:
    """So every run of ours can be loaded without a flag."""
    seen = 0
    for file in sorted(recipe("README.md").parent.rglob("*.yaml")):
        config = yaml.safe_load(file.read_text())
        for slot, part in (config.get("model") or {}).get("init_args", {}).items() if "model" in config else ():
            if not isinstance(part, dict) or "class_path" not in part:
                continue
            seen += 1
            name = part["class_path"]
            names = {path.rsplit(".", 1)[-1] for path in known(slot)} | {
                n.rsplit(".", 1)[-1] for n in SLOTS[slot].names
            }
            assert name in known(slot) or name in SLOTS[slot].names or ("." not in name and name in names), (file, name)
    assert seen > 30
