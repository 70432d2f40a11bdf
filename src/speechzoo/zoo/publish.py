"""From a training run to a published model: merged stages in half precision, configuration, card, index entry."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from speechzoo.interop.hub import load_run
from speechzoo.interop.saved import check_new, new_folder
from speechzoo.models.base import SpeechLLM
from speechzoo.models.checkpoint import read
from speechzoo.names.published import CARD, NAME, published, sha256
from speechzoo.parts.registry import PARTS, find_cached
from speechzoo.system.digests import read_tensors, sealed_tensors
from speechzoo.system.files import read_json, write_atomically, write_json
from speechzoo.training.published import CONFIG, WEIGHTS, base_values
from speechzoo.vocoders.latent import VOICE
from speechzoo.zoo.card import Facts, card, check_card

TRAINING_ONLY = ("optimizer", "lr_scheduler", "lr_scale", "loss_weights", "init_from")


def publish_model(run: str | Path, folder: Path, facts: Facts, vocoder: str | None = None) -> dict[str, Any]:
    """Write a run's model in the published form; returns its entry for the index.

    Args:
        run: a run folder or checkpoint; what its earlier stages (`init_from`) trained goes in too.
        folder: new folder, whose name is the model's.
        facts: what the card tells; see `speechzoo.zoo.card`.
        vocoder: name of the published vocoder of its units.

    Raises:
        ValueError: the name is none; there is no such vocoder; a weight does not survive half precision; the card does
            not parse. Nothing is left at `folder` then.
        FileExistsError: there is something at `folder`.
    """
    _check_name(folder.name)
    if vocoder is not None and not (folder.parent / vocoder).is_dir():
        published(vocoder)
    check_new(folder)
    model = load_run(run)
    state = {name: _half(name, tensor) for name, tensor in merged_state(run)}
    settings = {key: value for key, value in model.hparams.items() if key not in TRAINING_ONLY}
    settings = portable({**settings, **model.specs, "freeze": sorted(frozen_patterns(model, state))})
    llm = settings["llm"]["init_args"]
    if str(llm.get("model", "")).startswith("${part:") and _fits_bfloat16(model):
        llm["dtype"] = "${cpu:dtype}"  # as the recipes have it; its values are the same in both types
    config: dict[str, Any] = {
        "model": {"class_path": f"{type(model).__module__}.{type(model).__qualname__}", "init_args": settings},
        "bases": base_values(_thawed(model, state)),
    }
    if vocoder is not None:
        config["vocoder"] = vocoder
    with new_folder(folder) as work:
        (work / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        _write_rest(work, folder.name, type(model).__name__, state, facts, settings)
    about = {"architecture": type(model).__name__, "vocoder": vocoder}
    return _entry(folder, facts, {key: value for key, value in about.items() if value is not None}, settings)


def publish_vocoder(run: Path, folder: Path, facts: Facts, units: Path | None = None) -> dict[str, Any]:
    """Write a trained vocoder in half precision, with the k-means of its units; returns its entry.

    Its generator is a voice's own and stays where that is fetched from: the voice's licence is not ours.

    Raises:
        FileNotFoundError: the run holds no vocoder.
    """
    _check_name(folder.name)
    config = read_json(run / "config.json")
    state = {
        name: _half(name, tensor)
        for name, tensor in read_tensors(run / WEIGHTS).items()
        if not name.startswith("generator.")
    }
    voice = portable(read(run)["hyper_parameters"]["generator"])
    with new_folder(folder) as work:
        write_json(work / "config.json", {**config, VOICE: voice})
        if units is not None:
            shutil.copyfile(units, work / "kmeans.safetensors")
        _write_rest(work, folder.name, "LatentVocoder", state, facts, voice)
    return _entry(folder, facts, {"architecture": "LatentVocoder"}, voice)


def _write_rest(
    work: Path, name: str, architecture: str, state: dict[str, Tensor], facts: Facts, settings: dict[str, Any]
) -> None:
    (work / WEIGHTS).write_bytes(sealed_tensors(state))
    if facts.answers is not None:
        shutil.copyfile(facts.answers, work / "answers.jsonl")
    bases = [PARTS[part].hub_name for part in named_parts(settings)] or hub_names(settings)
    (work / CARD).write_text(card(name, architecture, facts, bases), encoding="utf-8")
    check_card(work / CARD)


def named_parts(settings: Any) -> list[str]:
    """The pretrained parts that `portable` settings name."""
    return [name for name in PARTS if f"${{part:{name}}}" in str(settings)]


def hub_names(settings: dict[str, Any]) -> list[str]:
    """Base models that settings name by themselves: hub names, and Whisper's sizes under OpenAI's."""
    found = {key: str(spec["init_args"].get("model", "")) for key in ("encoder", "llm") if (spec := settings.get(key))}
    if (size := found.get("encoder")) and "/" not in size:
        found["encoder"] = f"openai/whisper-{size}"
    return [name for name in found.values() if name]


def write_index(root: Path, name: str, entry: dict[str, Any]) -> None:
    """Put an entry into `index.yaml` under its name, at the end or where it was; the rest stays as it is written."""
    file = root / "index.yaml"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if not yaml.safe_load(text):
        text = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    blocks = re.split(r"^(?=[^\s#])", f"{text.rstrip()}\n" if text else "", flags=re.MULTILINE)  # one for each entry
    key = re.compile(rf"['\"]?{re.escape(name)}['\"]?\s*:")
    own = next((at for at, block in enumerate(blocks) if key.match(block)), len(blocks))
    after = re.search(r"(?:^#.*\n|^\n)*\Z", blocks[own], re.MULTILINE) if own < len(blocks) else None  # of the next one
    told = yaml.safe_dump({name: entry}, sort_keys=False, allow_unicode=True, width=110)
    blocks[own : own + 1] = [told + (after[0] if after else "")]
    write_atomically(file, "".join(blocks))


def merged_state(run: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Everything that a run and its earlier stages trained; the later one counts."""
    held: dict[str, Tensor] = {}
    for stage in _stages(run):
        held |= read(stage)["state_dict"]
    yield from sorted(held.items())


def _stages(run: str | Path) -> Iterator[str | Path]:
    saved = read(run)
    for stage in saved["hyper_parameters"].get("init_from", []):
        yield from _stages(stage)
    yield run


def frozen_patterns(model: SpeechLLM, state: dict[str, Tensor]) -> Iterator[str]:
    """`freeze` of the published model: what is not in its weights."""
    for part in model.specs:
        names = [name for name, _ in model.named_parameters() if name.startswith(f"{part}.")]
        if part == "llm" and any(name in state for name in names):
            if not any(name in state for name in names if name.startswith("llm.lm.")):
                yield r"^llm\.lm\."
        elif names and not any(name in state for name in names):
            yield rf"^{part}\."


def portable(value: Any) -> Any:
    """The same settings, with local paths of fetched parts written as `${part:NAME}`.

    Raises:
        ValueError: another path of this machine is among them, which nobody else has.
    """
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if isinstance(value, str):
        for name in PARTS:
            place = find_cached(name)
            if place is not None and (value == str(place) or value.startswith(f"{place}/")):
                return f"${{part:{name}}}{value[len(str(place)) :]}"
        if _is_local(value):
            raise ValueError(f"{value} is on this machine alone: a published model names its parts by part or hub name")
    return value


def _is_local(value: str) -> bool:
    """Whether a text is the path of something on this machine."""
    return "/" in value and "\n" not in value and len(value) < 256 and Path(value).expanduser().exists()


def _thawed(model: SpeechLLM, state: dict[str, Tensor]) -> SpeechLLM:
    """The model with `requires_grad` as the published one has it."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in state)
    return model


def _half(name: str, tensor: Tensor) -> Tensor:
    """Float16; a weight beyond its range cannot be published so.

    Raises:
        ValueError: naming the weight.
    """
    if not tensor.is_floating_point():
        return tensor.contiguous()
    narrow = tensor.to(torch.float16)
    if not torch.isfinite(narrow).all():
        raise ValueError(f"{name}: beyond the range of float16 (largest {float(tensor.abs().max()):.3g})")
    return narrow.contiguous()


def _fits_bfloat16(model: SpeechLLM) -> bool:
    """Whether the LLM's frozen weights are bfloat16 numbers, in whatever type they are held."""
    frozen = [parameter for parameter in model.llm.parameters() if not parameter.requires_grad]
    return all(torch.equal(weight, weight.bfloat16().to(weight)) for weight in frozen)


def _check_name(name: str) -> None:
    if NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r}: a model's name has lower-case letters, digits, '.', '_' and '-' only")


def _entry(folder: Path, facts: Facts, more: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        **more,
        "about": facts.about,
        "licence": facts.licence,
        "megabytes": round(sum(file.stat().st_size for file in folder.iterdir()) / 1e6, 1),
        "recipe": facts.recipe,
        "parts": {name: PARTS[name].sha256 for name in named_parts(settings)},
        "files": {file.name: sha256(file) for file in sorted(folder.iterdir())},
        "results": [result.plain() for result in facts.results],
    }
