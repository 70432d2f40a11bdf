"""Checkpoints that hold what was trained, and say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from speechzoo.llms.lora import base_name
from speechzoo.names.published import is_name, published
from speechzoo.training.checkpoint_file import read_file, recover
from speechzoo.training.identity import changed, differences, digest, frozen_parts, known_by
from speechzoo.training.published import WEIGHTS, check_bases, is_published, read_published
from speechzoo.training.sharded_folder import is_sharded_folder, read_whole

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
    """Refuse a checkpoint of another model, other sizes or another set of trained parameters.

    Raises:
        ValueError: naming the first parameters that differ.
    """
    theirs, ours = set(saved["trained"] if "trained" in saved else saved["state_dict"]), set(trained_names(model))
    if "values" in saved:  # published, all stages' weights together: what is frozen here may be among them
        theirs -= {name for name, _ in model.named_parameters()} - ours
    if theirs != ours:
        raise ValueError(
            f"{type(model).__name__}: this checkpoint was trained with other parts or another `freeze`. Only in the "
            f"checkpoint: {sorted(theirs - ours)[:3]}; only in the model: {sorted(ours - theirs)[:3]}. To start a new "
            "stage from it, give it as model.init_from instead of --ckpt_path"
        )
    _check_shapes(model, saved.get("state_dict", {}), "this checkpoint")


def _check_shapes(model: LightningModule, state: Mapping[str, torch.Tensor], where: object) -> None:
    own = dict(model.named_parameters())
    for name, value in state.items():
        if name in own and own[name].shape != value.shape:
            raise ValueError(f"{where}: {name} is {tuple(value.shape)}, the model's is {tuple(own[name].shape)}")


def check_continued(settings: Mapping[str, Any], saved: dict[str, Any], path: Any) -> None:
    """Refuse to go on without the optimizer's state, or with an optimizer or schedule that it does not fit.

    Of settings that it replaces by the checkpoint's it warns.

    Args:
        settings: the model's hyper-parameters.
        path: of the checkpoint, for the message.

    Raises:
        ValueError: see above.
    """
    if not saved.get("optimizer_states"):
        raise ValueError(
            f"{path}: holds no optimizer state: it can be evaluated, but not continued. To start from its weights, "
            "give it as model.init_from instead of --ckpt_path"
        )
    before = saved.get("hyper_parameters", {})
    changed = [name for name in ("optimizer", "lr_scale") if name in before and before[name] != settings[name]]
    new_run = "to train with another, start a new run with the checkpoint as model.init_from"
    for name in ("optimizer", "lr_scheduler", "lr_scale"):
        if name in before and _kind(before[name]) != _kind(settings[name]):
            raise ValueError(
                f"{path}: was trained with model.{name} {before[name]}, whose state does not fit {settings[name]}: "
                f"{new_run}"
            )
    for name in changed:
        rank_zero_warn(
            f"model.{name} is {settings[name]}, but this run goes on with that of the checkpoint, {before[name]}: "
            f"{new_run}"
        )


def _kind(setting: Any) -> Any:
    """What a saved state belongs to: the class of an optimizer or schedule, the groups of `lr_scale`."""
    return setting.get("class_path", list(setting)) if isinstance(setting, Mapping) else setting


def identity(model: Any, stages: list[dict[str, Any]]) -> dict[str, Any]:
    """What a checkpoint stands on: hashes of each part's frozen weights, and of the earlier stages (`load_stages`).

    A part that is frozen as it was born (LLaMA-Omni's unit decoder in stage 1) is no base: nothing stands on it.
    """
    given = {"encoder", "llm"}.union(*(stage["parts"] for stage in stages))
    return {"bases": frozen_parts(model, given, {part: _source(model, part) for part in model.specs}), "stages": stages}


def _source(model: Any, part: str) -> str:
    """The name of a part's pretrained weights; empty where it has none."""
    return Path(str(_settings(model.specs.get(part)).get("model", ""))).name


def _settings(spec: Any) -> Mapping[str, Any]:
    return spec.get("init_args", {}) if isinstance(spec, dict) else {}


def check_identity(model: Any, saved: dict[str, Any], replaced: Iterable[str] = ()) -> None:
    """Refuse a checkpoint that was trained on other frozen weights, or from another result of an earlier stage.

    Checkpoints of versions that did not record it pass.

    Args:
        replaced: parts that are meant to be others than in training.

    Raises:
        ValueError: naming what differs.
    """
    if "values" in saved:
        check_bases(model, saved["values"], replaced)
    if "identity" not in saved:
        return
    theirs, ours = saved["identity"], model.identity
    kept = [{name: base for name, base in one["bases"].items() if name not in set(replaced)} for one in (theirs, ours)]
    found = differences({**theirs, "bases": kept[0]}, {**ours, "bases": kept[1]})
    if found:
        raise ValueError(f"{type(model).__name__}: this checkpoint stands on other weights: {'; '.join(found)}")


def check_frozen(model: LightningModule, stages: Iterable[str]) -> None:
    """Refuse to train over LoRA weights that are frozen as they were born: no checkpoint holds these random numbers.

    Args:
        stages: checkpoints whose weights were loaded.

    Raises:
        ValueError: naming the first of them.
    """
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    born = {name for name in frozen if name.startswith("llm.") and base_name(name) is None}
    born = born.difference(*(read(path)["state_dict"] for path in stages)) if born else born
    if born:
        raise ValueError(
            f"model.freeze: {len(born)} random LoRA weights would not learn and not be saved, so that the run could "
            f"not be loaded again: {sorted(born)[0]} ...: let them learn, name their stage in init_from, or no llm.lora"
        )


def find(path: str | Path) -> Path:
    """The checkpoint a path means: itself (a file, or a folder of shards), `last.ckpt` of a run folder, or the weights
    of a published model, by its folder or its name in the zoo.

    Raises:
        FileNotFoundError: naming the path and what was expected there.
        ValueError: see `speechzoo.names.published.published`.
    """
    path = published(str(path)) if is_name(path) else Path(path).expanduser()
    if path.is_dir() and is_published(path):
        return path / WEIGHTS
    inside = path.is_dir() and not is_sharded_folder(path)
    found = path / "last.ckpt" if inside else path
    recover(found)
    if not (found.is_file() or is_sharded_folder(found)):
        raise FileNotFoundError(
            f"{found}: no such checkpoint (init_from takes a .ckpt file, a run folder or a name of `speechzoo list`)"
        )
    return found


def read(path: str | Path) -> dict[str, Any]:
    """A whole checkpoint on the CPU: plain data and tensors, which stay in the file until they are used.

    Raises:
        FileNotFoundError: see `find`.
        DamagedError: if it is not what was written.
    """
    found = find(path)
    if found.is_dir():
        return read_whole(found)
    if found.name == WEIGHTS:
        return read_published(found.parent)
    return read_file(found)


def load_stages(model: LightningModule, paths: list[str]) -> list[dict[str, Any]]:
    """Load the trained weights of earlier stages, in order; `{"path", "sha256", "parts"}` of each.

    The hash is of the weights alone, so a stage may be moved, but not trained on. Training is warned of a stage that
    stood on other frozen weights than there are now, see `other_bases`.

    Raises:
        ValueError: if a checkpoint holds a weight that the model does not have, or has in another shape.
    """
    own = dict(model.named_parameters())
    trainer, loaded = model._trainer, []
    for path in paths:
        held = read(path)
        if trainer is not None and trainer.training and trainer.is_global_zero:
            for found in other_bases(model, held):
                rank_zero_warn(f"model.init_from: {path} was trained beside other weights: {found}")
        # An average of weights (Lightning's WeightAveraging) brings the frozen ones and buffers as well.
        state = {name: held["state_dict"][name] for name in held.get("trained", held["state_dict"])}
        if strange := [name for name in state if name not in own]:
            raise ValueError(f"{path}: holds {strange[0]}, which this {type(model).__name__} does not have")
        _check_shapes(model, state, path)
        for name, value in state.items():
            with torch.no_grad():
                own[name].copy_(value)
        parts = sorted({name.split(".")[0] for name in state})
        loaded.append({"path": str(path), "sha256": digest(state.items()), "parts": parts})
    return loaded


def other_bases(model: Any, held: Mapping[str, Any]) -> list[str]:
    """One sentence for each part that was frozen in an earlier stage and has other weights here, before its are loaded.

    A part that is held in another dtype now is known by the name of its weights alone.

    Args:
        held: the stage's checkpoint; those of versions that recorded no identity, and published models, pass.
    """
    names, trained = dict[str, Tensor](), set(held.get("trained", ()))
    lora = _settings(held.get("hyper_parameters", {}).get("llm")).get("lora")
    for name, tensor in nn.Module.state_dict(model, keep_vars=True).items():
        # LoRA that is new in this stage renamed the LLM's weights.
        before = name if lora else base_name(name.replace(".base_model.model.", ".", 1))
        names.update({before: tensor} if before is not None else {})
    learnt = {id(tensor) for name, tensor in names.items() if name in trained}  # tied tables have two names
    own = {name: tensor for name, tensor in names.items() if id(tensor) not in learnt}
    found = []
    for part, base in held.get("identity", {}).get("bases", {}).items():
        tensors = [(name.removeprefix(f"{part}."), own[name]) for name in own if name.startswith(f"{part}.")]
        now = known_by(tensors, _source(model, part))
        by = "sha256" if now["dtype"] == base["dtype"] else "source"
        if now[by] != base[by]:
            found.append(changed(part, base, now))
    return found
