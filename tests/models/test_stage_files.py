"""Finding checkpoints, keeping what was trained, and loading earlier stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from torch import nn

from speechzoo.models.checkpoint import check_trained, find, load_stages, trained_names, trained_only


class Two(LightningModule):
    """A frozen part and one that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.learns = nn.Linear(2, 2), nn.Linear(2, 3)
        self.fixed.requires_grad_(False)


def save(path: Path, **state: torch.Tensor) -> str:
    torch.save({"state_dict": {name.replace("__", "."): value for name, value in state.items()}}, path)
    return str(path)


def test_a_folder_means_its_last_checkpoint(tmp_path: Path, monkeypatch):
    (tmp_path / "last.ckpt").touch()
    assert find(tmp_path) == find(str(tmp_path / "last.ckpt")) == tmp_path / "last.ckpt"
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert find(f"~/{tmp_path.name}") == tmp_path / "last.ckpt"


def test_what_is_missing_is_named(tmp_path: Path):
    for path, file in [(tmp_path, tmp_path / "last.ckpt"), (tmp_path / "no.ckpt", tmp_path / "no.ckpt")]:
        with pytest.raises(FileNotFoundError, match=f"{file}: no such checkpoint"):
            find(path)


def test_only_what_learns_is_kept():
    model = Two()
    assert trained_names(model) == ["learns.bias", "learns.weight"]
    assert set(trained_only(model, model.state_dict())) == {"learns.bias", "learns.weight"}
    inside = {f"part.{name}": value for name, value in model.state_dict().items()}
    assert set(trained_only(model, inside, "part.")) == {"part.learns.bias", "part.learns.weight"}


def test_another_set_of_trained_parameters_is_refused():
    model = Two()
    check_trained(model, {"trained": ["learns.bias", "learns.weight"], "state_dict": {}})
    with pytest.raises(ValueError, match=r"Only in the checkpoint: \['fixed.bias'\]; only in the model: \['learns.w"):
        check_trained(model, {"trained": ["fixed.bias", "learns.bias"], "state_dict": {}})


def test_later_stages_win_and_frozen_parts_can_be_loaded(tmp_path: Path):
    model = Two()
    first = save(tmp_path / "1.ckpt", learns__bias=torch.ones(3), fixed__bias=torch.full((2,), 5.0))
    second = save(tmp_path / "2.ckpt", learns__bias=torch.full((3,), 2.0))
    weight = model.learns.weight.clone()
    load_stages(model, [first, second])
    assert model.learns.bias.tolist() == [2, 2, 2] and model.fixed.bias.tolist() == [5, 5]
    assert model.learns.weight.equal(weight)
    assert model.learns.bias.requires_grad and not model.fixed.bias.requires_grad


def test_weights_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"a.ckpt: holds other.bias, which this Two does not have"):
        load_stages(Two(), [save(tmp_path / "a.ckpt", other__bias=torch.ones(3))])
    with pytest.raises(ValueError, match=r"b.ckpt: learns.bias is \(4,\), the model's is \(3,\)"):
        load_stages(Two(), [save(tmp_path / "b.ckpt", learns__bias=torch.ones(4))])
