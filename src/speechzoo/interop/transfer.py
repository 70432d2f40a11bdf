"""What importing and exporting have in common: copying weights shard by shard, and the files around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig

from speechzoo.interop.layout import Released, Weights, find_source, read_pickle
from speechzoo.interop.saved import DTYPES, ShardWriter, new_folder, read_saved
from speechzoo.system.digests import check_files
from speechzoo.system.files import read_json, sha256


def write_parts(
    work: Path, released: Released, config: LlamaConfig, ours: dict[str, str], kept: Callable[[str, Tensor], bool]
) -> list[str]:
    """Copy a release's tensors, each read once: `ours` (by new name) to model.safetensors, those that `kept` chooses to
    kept.safetensors, the LLM's to `llm/`. Returns the kept names."""
    llm = ShardWriter(work / "llm")
    unused = unused_names(released.weights, config)
    own: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    weights = released.weights
    for name in weights:
        tensor = weights[name]
        if name in ours:
            own[ours[name]] = tensor.clone().contiguous()
        elif name in unused or not name.startswith(("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")):
            if kept(name, tensor):
                rest[name] = tensor.clone().contiguous()
        else:
            llm.add(name, tensor)
    llm.close()
    weights.close()
    save_file(own, work / "model.safetensors", {"format": "pt"})
    if rest:
        save_file(rest, work / "kept.safetensors", {"format": "pt"})
    config.dtype = release_dtype(released)  # of its weights: what config.json says may be another, or none of torch's
    config.save_pretrained(work / "llm")
    return sorted(rest)


def unused_names(weights: Weights, config: LlamaConfig) -> set[str]:
    """Tensors of the LLM that it does not read today: rotary tables of old transformers, and a head beside the table it
    is tied to, which .bin files hold."""
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return {name for name in weights if name.endswith("rotary_emb.inv_freq") or name in tied}


def write_around(work: Path, released: Released, tokenizer: str | None) -> dict[str, Any]:
    """Tokenizer and generation settings beside the LLM; returns what export needs to write the release again."""
    files = released.tokenizer_files(tokenizer)
    for file in files:
        shutil.copyfile(file, work / "llm" / file.name)
    generation = released.folder / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, work / "llm" / generation.name)
    return {
        "config": released.config,
        "weights": released.weights.kind,
        "files": [file.name for file in files] + ([generation.name] if generation.is_file() else []),
        "sha256": released.hashes(),
    }


def stop_ids(released: Released) -> list[int] | None:
    """End-of-sequence ids of generation_config.json, else of config.json.

    Raises:
        ValueError: if they are no ids.
    """
    file = released.folder / "generation_config.json"
    ids = read_json(file).get("eos_token_id") if file.is_file() else None
    ids = released.config.get("eos_token_id") if ids is None else ids
    ids = [ids] if isinstance(ids, int) else ids
    if ids is not None and not (isinstance(ids, list) and all(isinstance(i, int) for i in ids)):
        raise ValueError(f"{file}: eos_token_id is {ids!r}, expected an id or a list of them")
    return ids


def release_dtype(released: Released) -> str:
    """Name of the dtype of the release's weights."""
    name = next(iter(released.weights))
    dtype = str(released.weights[name].dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"{released.weights.files[name]}: {name} is {dtype}; float32, bfloat16 or float16 is expected")
    return dtype


def copy_encoder(source: str | Path, work: Path) -> tuple[str, dict[str, str]]:
    """Copy a speech encoder (an openai-whisper file or a Hugging Face folder); its path in the folder and its hashes.

    Raises:
        FileNotFoundError, ValueError: if it is neither.
    """
    path = Path(source).expanduser()
    if path.is_file():
        openai_state(path)
        shutil.copyfile(path, work / "encoder.pt")
        return "./encoder.pt", {path.name: sha256(path)}
    folder = find_source(source)
    config = read_json(folder / "config.json")
    if config.get("model_type") != "whisper":
        raise ValueError(f"{folder}/config.json: model_type is {config.get('model_type')!r}, expected whisper")
    weights = Weights(folder)
    (work / "encoder").mkdir()
    files = sorted({*weights.files.values(), *(file for file in folder.glob("*.json")), *folder.glob("merges.txt")})
    for file in files:
        shutil.copyfile(file, work / "encoder" / file.name)
    return "./encoder", {f"{folder.name}/{file.name}": sha256(file) for file in files}


def openai_state(file: Path) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Sizes and tensors of an openai-whisper file, mapped into memory.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such speech encoder")
    held = read_pickle(file)
    if not isinstance(held, dict) or not {"dims", "model_state_dict"} <= set(held):
        raise ValueError(f"{file}: not an openai-whisper checkpoint (it has no dims and model_state_dict)")
    return held["dims"], held["model_state_dict"]


def same_values(tensor: Tensor, other: Tensor | None) -> bool:
    """Whether a tensor is another one in the dtype of the first, bit for bit."""
    return other is not None and tensor.shape == other.shape and torch.equal(tensor, other.to(tensor.dtype))


def export_release(
    path: str | Path,
    target: str | Path,
    system: str,
    released_name: Callable[[str], str],
    more: Callable[[Path, dict[str, Any]], Iterable[tuple[str, Tensor]]] = lambda folder, source: (),
) -> None:
    """Write a saved form in its released layout again.

    Args:
        released_name: of a tensor of adaptor or unit decoder.
        more: further tensors, beside those that were kept, for the folder and its `source` record.

    Raises:
        ValueError: if the folder was not imported from such a release, or something else of it learnt apart from the
            LLM's own weights: the encoder, LoRA, embeddings beside a tied table.
    """
    folder = Path(path).expanduser()
    config = read_saved(folder)
    source = config.get("source", {})
    if source.get("system") != system:
        raise ValueError(f"{folder}: was not imported from {system}, so its released layout is not known")
    check_files(folder, config.get("digests", {}), "config.json")
    with new_folder(target) as work:
        writer = ShardWriter(work, source["weights"], 5 << 30)
        own = Weights(folder)
        llm = Weights(folder / "llm")
        for name in llm:
            writer.add(name, llm[name])
        for name in own:
            if not name.startswith(("adaptor.", "unit_decoder.")):
                raise ValueError(f"{folder}/model.safetensors: {name} has no place in the released layout")
            writer.add(released_name(name), own[name])
        kept = folder / "kept.safetensors"
        for name, tensor in chain(load_file(kept).items() if kept.is_file() else (), more(folder, source)):
            writer.add(name, tensor)
        writer.close()
        (work / "config.json").write_text(json.dumps(source["config"], indent=2, sort_keys=True) + "\n")
        for name in source["files"]:
            shutil.copyfile(folder / "llm" / name, work / name)
