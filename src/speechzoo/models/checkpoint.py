"""Checkpoints that hold what was trained, and say so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning import LightningModule


def trained_names(model: LightningModule) -> list[str]:
    """Names of the parameters that learn, sorted."""
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def trained_only(model: LightningModule, state: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of a state dict that belong to parameters that learn."""
    names = {prefix + name for name in trained_names(model)}
    return {name: value for name, value in state.items() if name in names}


def check_trained(model: LightningModule, saved: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model or another set of trained parameters.

    Raises:
        ValueError: naming the first parameters that differ.
    """
    theirs, ours = set(saved["trained"] if "trained" in saved else saved["state_dict"]), set(trained_names(model))
    if theirs != ours:
        raise ValueError(
            f"{type(model).__name__}: this checkpoint was trained with other parts or another `freeze`. Only in the "
            f"checkpoint: {sorted(theirs - ours)[:3]}; only in the model: {sorted(ours - theirs)[:3]}. To start a new "
            "stage from it, give it as model.init_from instead of --ckpt_path"
        )


def find(path: str | Path) -> Path:
    """The checkpoint file a path means: itself, or `last.ckpt` of a run folder.

    Raises:
        FileNotFoundError: naming the path and what was expected there.
    """
    path = Path(path).expanduser()
    file = path / "last.ckpt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such checkpoint (init_from takes a .ckpt file or a run folder)")
    return file


def load_stages(model: LightningModule, paths: list[str]) -> None:
    """Load the trained weights of earlier stages, in order.

    Raises:
        ValueError: if a checkpoint holds a weight that the model does not have, or has in another shape.
    """
    own = dict(model.named_parameters())
    for path in paths:
        state = torch.load(find(path), map_location="cpu", weights_only=True)["state_dict"]
        for name, value in state.items():
            if name not in own:
                raise ValueError(f"{path}: holds {name}, which this {type(model).__name__} does not have")
            if own[name].shape != value.shape:
                raise ValueError(f"{path}: {name} is {tuple(value.shape)}, the model's is {tuple(own[name].shape)}")
            with torch.no_grad():
                own[name].copy_(value)
