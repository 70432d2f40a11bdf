"""A checkpoint goes on from the weights it stands on, or says which are others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from test_checkpoint import STAGE1, STAGE2
from tiny_runs import saved, write_config, zoo
from torch import nn

import speechzoo
from speechzoo.cli import main
from speechzoo.interop.hub import load_run
from speechzoo.training.hollow import pack, unpack
from speechzoo.training.identity import differences, digest, frozen_parts

FROZEN = [r"--model.init_args.freeze=['^encoder\.','^llm\.']"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    """A config, and a LLaSM with frozen encoder and LLM trained by it; its Whisper is a copy that may be changed."""
    folder = tmp_path_factory.mktemp("identity")
    whisper = shutil.copy(tiny_whisper_pt, folder / "whisper.pt")
    write_config(folder / "tiny.yaml", tiny_llm_dir, whisper, manifest)
    zoo("fit", "-c", folder / "tiny.yaml", "--name=llasm", *FROZEN)
    return folder


def other_whisper(folder: Path) -> Path:
    """The same Whisper but for one number."""
    held = torch.load(folder / "whisper.pt", weights_only=True)
    held["model_state_dict"]["encoder.blocks.1.mlp.0.weight"][3, 5] += 1e-3
    torch.save(held, folder / "other.pt")
    return folder / "other.pt"


def test_one_changed_number_in_a_frozen_part_is_refused(folder: Path) -> None:
    common = ["-c", folder / "tiny.yaml", "--name=llasm", *FROZEN, "--ckpt_path", folder / "llasm" / "last.ckpt"]
    bases = saved(folder / "llasm" / "last.ckpt")["identity"]["bases"]
    assert {part: base["source"] for part, base in bases.items()}["encoder"] == "whisper.pt"
    assert set(bases) == {"encoder", "llm"} and {base["dtype"] for base in bases.values()} == {"float32"}
    changed = [f"--model.encoder.model={other_whisper(folder)}"]
    refusal = r"LLaSM: this checkpoint stands on other weights: the frozen encoder was whisper\.pt, float32, sha256 "
    for command, more in (("fit", ["--trainer.max_steps=4"]), ("validate", []), ("test", [])):
        with pytest.raises(ValueError, match=refusal + r"\w{12}, now it is other\.pt, float32, sha256 \w{12}$"):
            zoo(command, *common, *changed, *more)
    zoo("validate", *common)
    zoo("fit", *common, "--trainer.max_steps=3")


def test_a_loaded_run_refuses_too_unless_the_part_is_given(folder: Path) -> None:
    encoder = saved(folder / "llasm" / "last.ckpt")["hyper_parameters"]["encoder"]
    other = {**encoder, "init_args": {**encoder["init_args"], "model": str(other_whisper(folder))}}
    shutil.copy(folder / "whisper.pt", folder / "kept.pt")
    try:
        shutil.copy(folder / "other.pt", folder / "whisper.pt")
        with pytest.raises(ValueError, match="the frozen encoder was"):
            load_run(folder / "llasm")
    finally:
        shutil.copy(folder / "kept.pt", folder / "whisper.pt")
    load_run(folder / "llasm", encoder=other)


def test_stage_two_knows_the_weights_of_stage_one(folder: Path) -> None:
    config = folder / "tiny.yaml"
    zoo("fit", "-c", config, "--name=one", *STAGE1, "--trainer.max_steps=1")
    first = f"--model.init_args.init_from=['{folder / 'one'}']"
    zoo("fit", "-c", config, "--name=two", *STAGE2, first)
    (stage,) = saved(folder / "two" / "last.ckpt")["identity"]["stages"]
    assert stage["sha256"] == digest(saved(folder / "one" / "last.ckpt")["state_dict"].items())
    again = ["fit", "-c", config, "--name=two", *STAGE2, "--ckpt_path", folder / "two" / "last.ckpt"]
    moved = shutil.copytree(folder / "one", folder / "moved")
    zoo(*again, f"--model.init_args.init_from=['{moved}']", "--trainer.max_steps=3")
    zoo("fit", "-c", config, "--name=one", *STAGE1, "--ckpt_path", folder / "one" / "last.ckpt")  # trained on
    with pytest.raises(ValueError, match=r"started from, init_from\[0\], has changed: .*moved held weights \w{12}, "):
        zoo(*again, first, "--trainer.max_steps=4")
    with pytest.raises(ValueError, match="init_from names 0 stages, it was 1"):
        zoo(*again, "--trainer.max_steps=4")


def test_an_expanded_run_needs_nothing_else(folder: Path, capsys) -> None:
    assert main(["checkpoint", "expand", str(folder / "llasm"), str(folder / "whole")]) == 0
    assert "LLaSM of" in capsys.readouterr().out
    run, whole = load_run(folder / "llasm"), speechzoo.load(folder / "whole")
    theirs = dict(whole.named_parameters())
    assert all(value.equal(theirs[name]) for name, value in run.named_parameters())
    assert not [text for text in (str(spec) for spec in whole.specs.values()) if "last.ckpt" in text]
    assert main(["checkpoint", "expand", str(folder / "none"), str(folder / "other")]) == 1
    assert "no such checkpoint" in capsys.readouterr().err


class Parts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(3, 4, bias=False)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.table.weight
        self.norm = nn.BatchNorm1d(3)


def test_hashes_follow_names_types_and_bytes() -> None:
    x = torch.arange(6.0)
    assert digest([("a", x), ("b", x + 1)]) == digest([("b", x + 1), ("a", x.clone())])
    others = [("b", x), ("a", x.double()), ("a", x.reshape(2, 3)), ("a", x + torch.tensor([0, 0, 0, 0, 0, 1e-6]))]
    assert digest([("a", x)]) not in {digest([other]) for other in others}
    digest([("scalar", torch.tensor(1)), ("empty", torch.zeros(0, 3)), ("half", x.bfloat16())])


def test_what_learns_is_no_base_and_buffers_are() -> None:
    model = nn.ModuleDict({"one": Parts(), "two": Parts(), "three": Parts()})
    for part in ("one", "two"):
        model[part].requires_grad_(False)
    before = frozen_parts(model, ["one", "two", "three"], {"one": "a file"})
    with torch.no_grad():
        model["one"].norm.running_mean += 1
        model["three"].table.weight += 1  # learns, under both its names
    after = frozen_parts(model, ["one", "two", "three"], {"one": "another file"})
    assert before["two"] == after["two"] and before["three"] == after["three"]
    stages: dict = {"stages": []}
    (found,) = differences({"bases": before, **stages}, {"bases": after, **stages})
    assert found.startswith("the frozen one was a file, ")


def test_hollow_modules_keep_their_shape_their_ties_and_what_is_frozen() -> None:
    part = Parts()
    part.norm.weight.requires_grad_(False)
    data = pack({"part": part})
    hollow = unpack(data)["part"]
    assert all(p.is_meta for p in hollow.parameters()) and hollow.head.weight is hollow.table.weight
    shapes = {name: (p.shape, p.dtype, p.requires_grad) for name, p in part.named_parameters()}
    assert shapes == {name: (p.shape, p.dtype, p.requires_grad) for name, p in hollow.named_parameters()}
    assert hollow.norm.running_mean.equal(part.norm.running_mean)
    big = nn.ModuleList(nn.Linear(512, 512) for _ in range(4))  # 4 MB of numbers
    assert len(pack({"part": big})) < 10_000
