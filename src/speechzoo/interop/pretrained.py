"""Writes a model in speechzoo's saved form: one trained here, or an imported one that was trained on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from speechzoo.encoders.whisper import WhisperEncoder
from speechzoo.interop.layout import TOKENIZER_FILES
from speechzoo.interop.saved import ShardWriter, new_folder, write_config
from speechzoo.interop.transfer import copy_encoder
from speechzoo.llms.hf import HFCausalLM
from speechzoo.models.base import SpeechLLM
from speechzoo.training.freeze import is_frozen

NO_LICENCE = {"id": "other", "text": "not stated; the licences of the base models apply"}


def save_pretrained(
    model: SpeechLLM,
    path: str | Path,
    merge_lora: bool = False,
    licence: dict[str, str] | None = None,
    push_to_hub: str | None = None,
) -> Path:
    """Write a model so that `speechzoo.load(path)` gives it back.

    The folder needs nothing outside itself, but for a Whisper that the model names (`tiny`) instead of having its file.

    Args:
        path: new folder.
        merge_lora: add LoRA weights to the LLM's own; default: keep them apart.
        licence: `{"id", "text"}` of the weights; default: that of the release a model was imported from.
        push_to_hub: also upload the folder under this hub name, with the login of huggingface_hub.

    Raises:
        FileExistsError: if there is something at `path`.
        ValueError: if the LLM is no `HFCausalLM`, or the encoder no Whisper.
    """
    if not hasattr(model, "llm"):
        model.configure_model()
    if not isinstance(model.llm, HFCausalLM) or not isinstance(model.encoder, WhisperEncoder):
        raise ValueError("save_pretrained writes models with an HFCausalLM and a Whisper encoder")
    origin, path = getattr(model, "saved", {}), Path(path).expanduser()
    with new_folder(path) as work:
        lm = model.llm.lm
        base = lm.get_base_model() if hasattr(lm, "peft_config") else lm
        _write_llm(model.llm, work / "llm", merge_lora)
        base.config.save_pretrained(work / "llm")
        base.generation_config.save_pretrained(work / "llm")
        _write_tokenizer(model.prompt.name, work / "llm")
        source = str(model.specs["encoder"]["init_args"]["model"])
        encoder, hashes = copy_encoder(source, work) if Path(source).expanduser().exists() else (source, {})
        save_file(dict(_own(model, merge_lora)), work / "model.safetensors", {"format": "pt"})
        settings = {**model.hparams, **model.specs, "init_from": []}
        settings["encoder"] = _with(settings["encoder"], model=encoder)
        settings["llm"] = _with(settings["llm"], model="./llm")
        if merge_lora:
            settings["llm"] = _with(settings["llm"], lora=None)
        settings["prompt"] = _with(settings["prompt"], tokenizer="./llm")
        config = {
            "model_class": f"{type(model).__module__}.{type(model).__qualname__}",
            "about": origin.get("about", ""),
            "hyper_parameters": settings,
            "compat": origin.get("compat", {}),
            "licence": licence or origin.get("licence", NO_LICENCE),
            "base": {"llm": model.specs["llm"]["init_args"].get("model"), "encoder": Path(source).name},
            "source": {**origin.get("source", {}), "sha256": {**origin.get("source", {}).get("sha256", {}), **hashes}},
        }
        if "./" in str(config["base"]["llm"]) or Path(str(config["base"]["llm"])).exists():
            config["base"]["llm"] = Path(str(config["base"]["llm"])).name  # a path of this machine says nothing
        _copy_rest(model, work, config)
        write_config(work, config)
    if push_to_hub is not None:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(push_to_hub, exist_ok=True)
        api.upload_folder(repo_id=push_to_hub, folder_path=str(path))
    return path


def _with(spec: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**spec, "init_args": {**spec.get("init_args", {}), **values}}


def _own(model: SpeechLLM, merge_lora: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights beside the LLM's folder and the encoder's file: adaptor, unit decoder, LoRA, an encoder that learnt."""
    lm = model.llm.lm
    tied = getattr(lm.config, "tie_word_embeddings", False)
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            take = not is_frozen(model.encoder)
        elif name == "llm.new_embeddings":
            take = tied  # else they are rows of the table
        elif name.startswith("llm."):
            take = "lora_" in name and not merge_lora
        else:
            take = True
        if take:
            yield name, parameter.detach().cpu().contiguous()


@torch.no_grad()
def _write_llm(llm: HFCausalLM, folder: Path, merge_lora: bool) -> None:
    """The LLM's tensors under their Hugging Face names, one by one: trained rows of new tokens and, if asked for, LoRA
    go into the tables they belong to."""
    lm = llm.lm
    base = lm.get_base_model() if hasattr(lm, "peft_config") else lm
    layers = {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
    tied = base.config.tie_word_embeddings
    table = base.get_input_embeddings().weight
    writer = ShardWriter(folder)
    for name, tensor in base.state_dict().items():
        if "lora_" in name or (tied and name == "lm_head.weight"):
            continue
        is_table = tensor.data_ptr() == table.data_ptr()
        tensor = tensor.cpu()
        if ".base_layer." in name:
            owner = name.rpartition(".base_layer.")[0]
            name = name.replace(".base_layer.", ".")
            if merge_lora and name.endswith(".weight"):
                for adapter in layers[owner].active_adapters:
                    delta = layers[owner].get_delta_weight(adapter).cpu()
                    tensor = (tensor.float() + delta.float()).to(tensor.dtype)
        if llm.new_tokens and not tied and is_table:
            tensor = tensor.clone()
            tensor[llm.new_tokens] = llm.new_embeddings.detach().to(tensor)
        writer.add(name, tensor)
    writer.close()


def _write_tokenizer(name: str, folder: Path) -> None:
    """The tokenizer as the prompt reads it, without the tokens the prompt adds."""
    if Path(name).is_dir():
        for file in TOKENIZER_FILES:
            if (Path(name) / file).is_file():
                shutil.copyfile(Path(name) / file, folder / file)
    else:
        AutoTokenizer.from_pretrained(name, trust_remote_code=False).save_pretrained(folder)


def _copy_rest(model: SpeechLLM, work: Path, config: dict[str, Any]) -> None:
    """What an imported model had beside its weights: unused tensors, for export, and the vocoder."""
    origin = getattr(model, "saved_in", None)
    if origin is None:
        return
    for name in ("kept.safetensors", "vocoder"):
        held = Path(origin) / name
        if held.is_dir():
            shutil.copytree(held, work / name)
            config["vocoder"] = f"./{name}"
        elif held.is_file():
            shutil.copyfile(held, work / name)
    generation = Path(origin) / "llm" / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, work / "llm" / generation.name)
