"""Writes a model in speechzoo's saved form: one trained here, or an imported one that was trained on."""

from __future__ import annotations

import copy
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from speechzoo.encoders.whisper import WhisperEncoder
from speechzoo.interop.layout import TOKENIZER_FILES
from speechzoo.interop.saved import ShardWriter, load_saved, new_folder, write_config
from speechzoo.interop.transfer import copy_encoder
from speechzoo.llms.hf import HFCausalLM
from speechzoo.llms.lora import base_name, merged
from speechzoo.models.base import SpeechLLM
from speechzoo.training.checkpoint_file import num_bytes
from speechzoo.training.freeze import is_frozen

PROBED, SAME = 32, 1e-4
"""Tokens that a written LLM is tried on, and the relative difference of logits up to which it is the same."""

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
    It is loaded and compared with the model before it gets its name; memory for both is needed.

    Args:
        path: new folder.
        merge_lora: add LoRA weights to the LLM's own, written in float32, so that nothing is rounded; default: keep
            them apart.
        licence: `{"id", "text"}` of the weights; default: that of the release a model was imported from.
        push_to_hub: also upload the folder under this hub name, with the login of huggingface_hub.

    Raises:
        DiskFullError: if there is too little room.
        FileExistsError: if there is something at `path`.
        ValueError: if the LLM is no `HFCausalLM`, or the encoder no Whisper; if LoRA cannot be merged; if what was
            written does not come back as the model is. Nothing is left at `path` then.
    """
    if not hasattr(model, "llm"):
        model.configure_model()
    if not isinstance(model.llm, HFCausalLM) or not isinstance(model.encoder, WhisperEncoder):
        raise ValueError("save_pretrained writes models with an HFCausalLM and a Whisper encoder")
    origin, path = getattr(model, "saved", {}), Path(path).expanduser()
    with new_folder(path, _need(model)) as work:
        lm = model.llm.lm
        alone = cast(Any, merged(lm) if merge_lora and isinstance(lm, PeftModel) else lm)
        with_lora = isinstance(alone, PeftModel)
        base: Any = alone.get_base_model() if with_lora else alone
        own = dict(_own(model, base, with_lora))
        _write_llm(model.llm, base, work / "llm", rows="llm.new_embeddings" not in own)
        base.config.save_pretrained(work / "llm")
        base.generation_config.save_pretrained(work / "llm")
        _write_tokenizer(model.prompt.name, work / "llm")
        source = str(model.specs["encoder"]["init_args"]["model"])
        encoder, hashes = copy_encoder(source, work) if Path(source).expanduser().exists() else (source, {})
        save_file(own, work / "model.safetensors", {"format": "pt"})
        settings = {**model.hparams, **model.specs, "init_from": []}
        settings["encoder"] = _with(settings["encoder"], model=encoder)
        settings["llm"] = _with(settings["llm"], model="./llm")
        if alone is not lm:
            settings["llm"] = _with(settings["llm"], lora=None, dtype="float32")
            names = [name for name, _ in model.named_parameters() if not name.startswith("llm.lm.")]
            names += [f"llm.lm.{name}" for name, _ in base.named_parameters()]
            found = [pattern for pattern in settings["freeze"] if any(re.search(pattern, name) for name in names)]
            settings["freeze"] = found  # a pattern that matches nothing, such as one for LoRA, is an error
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
        _prove(model, work, path)
    if push_to_hub is not None:
        upload(path, push_to_hub)
    return path


def push_to_hub(model: SpeechLLM, repo_id: str, merge_lora: bool = False, licence: Any = None, **options: Any) -> str:
    """Write a model to a temporary folder and `upload` it; returns the address of the commit."""
    with tempfile.TemporaryDirectory() as folder:
        path = save_pretrained(model, Path(folder, repo_id.rpartition("/")[2]), merge_lora, licence)
        return upload(path, repo_id, **options)


def upload(folder: Path, repo_id: str, private: bool | None = None, token: Any = None, **options: Any) -> str:
    """Put a folder on the hub; returns the address of the commit.

    Args:
        repo_id: `org/name`, made if it is not there.
        private: whether a new repository is.
        token: default: the login of huggingface_hub.
        options: of `HfApi.upload_folder`: `revision`, `commit_message`, `create_pr`.

    Raises:
        ConnectionError: the hub cannot be reached, or refuses; one line. The folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, exist_ok=True, private=private)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder), **options))
    except Exception as error:  # network, authentication and naming errors of several libraries
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ConnectionError(f"{folder}: not uploaded to {repo_id} ({reason})") from error


def _need(model: SpeechLLM) -> int:
    """Bytes that will be written at least: all weights but LoRA's, which may be merged, and the encoder's files."""
    weights = [p for name, p in model.named_parameters() if not name.startswith("encoder.") and "lora_" not in name]
    encoder = Path(str(model.specs["encoder"]["init_args"]["model"])).expanduser()
    files = encoder.rglob("*") if encoder.is_dir() else [encoder]
    return num_bytes(weights) + sum(file.stat().st_size for file in files if file.is_file())


def _with(spec: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**spec, "init_args": {**spec.get("init_args", {}), **values}}


def _own(model: SpeechLLM, base: PreTrainedModel, with_lora: bool) -> Iterator[tuple[str, Tensor]]:
    """Weights beside the LLM's folder and the encoder's file: adaptor, unit decoder, LoRA, an encoder that learnt.

    Of an LLM with LoRA also what else learnt in it (biases), which may be wider than the type of its folder.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("encoder."):
            take = not is_frozen(model.encoder)
        elif name == "llm.new_embeddings":
            take = with_lora or _tied(base)  # else they are rows of the table
        elif name.startswith("llm."):
            take = with_lora and (base_name(name) is None or parameter.requires_grad)
        else:
            take = True
        if take:
            yield name, parameter.detach().cpu().contiguous()


def _tied(lm: PreTrainedModel) -> bool:
    return bool(getattr(lm.config, "tie_word_embeddings", False))


@torch.no_grad()
def _write_llm(llm: HFCausalLM, base: PreTrainedModel, folder: Path, rows: bool) -> None:
    """The tensors of an LLM, without LoRA's, under their Hugging Face names, one by one; with `rows` the embeddings of
    new tokens go into the table."""
    writer = ShardWriter(folder)
    table = cast(Any, base).get_input_embeddings().weight
    written: set[int] = set()  # tied tables, and what peft's wrappers name twice, once
    for name, tensor in base.state_dict().items():
        plain, place = base_name(name), tensor.data_ptr()
        if plain is None or (tensor.numel() and place in written):
            continue
        written.add(place)
        tensor = tensor.cpu()
        if rows and llm.new_tokens and place == table.data_ptr():
            tensor = tensor.clone()
            tensor[llm.new_tokens] = llm.new_embeddings.detach().to(tensor)
        writer.add(plain, tensor)
    writer.close()


@torch.no_grad()
def _prove(model: Any, work: Path, path: Path) -> None:
    """Load what was written and compare it with the model: settings, every weight, and what the LLM computes.

    Raises:
        ValueError: if it is another model; nothing is left at `path` then.
    """
    again: Any = load_saved(work)
    found, table = nn.Module.state_dict(again), again.llm.lm.get_input_embeddings().weight
    merging = isinstance(model.llm.lm, PeftModel) and not isinstance(again.llm.lm, PeftModel)
    in_table = model.llm.new_tokens and not isinstance(model.llm.lm, PeftModel) and not _tied(model.llm.lm)
    rows = model.llm.lm.get_input_embeddings().weight.data_ptr() if in_table else None
    for name, tensor in nn.Module.state_dict(model).items():
        if name.startswith("val_losses.") or tensor.is_meta or (merging and name.startswith("llm.lm.")):
            continue
        if tensor.data_ptr() == rows:
            tensor = tensor.clone()
            tensor[model.llm.new_tokens] = model.llm.new_embeddings.to(tensor)
        elif name == "llm.new_embeddings":  # as they are used: in the type of the table
            tensor, found[name] = tensor.to(table.dtype), found[name].to(table.dtype)
        other = found.get(name)
        if other is None or other.dtype != tensor.dtype or not torch.equal(tensor.cpu(), other):
            was, now = (None if t is None else str(t.dtype).removeprefix("torch.") for t in (tensor, other))
            raise ValueError(f"{path}: not written, as {name} ({was}) would not come back as it is ({now})")
    # Equal weights compute the same; it is tried where that can be done exactly.
    if merging or ({p.dtype for p in model.llm.parameters()}, model.llm.lm.device.type) == ({torch.float32}, "cpu"):
        gap = _gap(model.llm, again.llm)
        if not gap < SAME:
            raise ValueError(f"{path}: not written, as the LLM would compute something else (logits {gap:.1e} apart)")


def _gap(ours: HFCausalLM, theirs: HFCausalLM) -> float:
    """Relative difference of the logits of some tokens, both where and in the type that `theirs` is."""
    like = next(theirs.lm.parameters())
    if {(p.device, p.dtype) for p in ours.parameters()} != {(like.device, like.dtype)}:
        ours = copy.deepcopy(ours).to(like)
    size = ours.lm.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([*range(0, size, max(1, size // PROBED)), *ours.new_tokens])
    found = []
    for llm in (ours, theirs):
        learning = [module for module in llm.modules() if module.training]
        llm.eval()
        with torch.autocast("cpu", enabled=False):
            states = llm.backbone(inputs_embeds=llm.embed(ids[None]), use_cache=False).last_hidden_state
            found.append(llm.head(states).double())
        for module in learning:
            module.training = True
    return float((found[0] - found[1]).norm() / found[0].norm())


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
