"""LLaSM's released checkpoints, in and out (`LinkSoul/LLaSM-Cllama2`, `LinkSoul/LLaSM-Baichuan`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechzoo.adaptors import Linear
from speechzoo.interop.layout import Released, check_keys, find_source
from speechzoo.interop.saved import new_folder, write_config
from speechzoo.interop.shapes import llama_config, llama_shapes, shapes_of
from speechzoo.interop.transfer import (
    copy_encoder,
    export_release,
    openai_state,
    release_dtype,
    unused_names,
    write_around,
    write_parts,
)
from speechzoo.system.files import read_json

MODEL_TYPE = "llaaa"
PROJECTOR = "model.mm_projector."
LICENCE = {
    "id": "openrail",
    "text": "The released LLaSM weights are published as openrail; the language model inside has terms of its own "
    "(Llama 2 Community License, or Baichuan's).",
}


def released_name(name: str) -> str:
    """Released name of one of our parameters (LLM, adaptor)."""
    return name.removeprefix("llm.lm.").replace("adaptor.linear.", PROJECTOR, 1)


def token_ids(files: list[Path], vocab: int) -> dict[str, int]:
    """Ids of `<au_patch>`, `<au_start>`, `<au_end>`.

    Raises:
        ValueError: if added_tokens.json does not name all three below the vocabulary's size.
    """
    file = next((file for file in files if file.name == "added_tokens.json"), None)
    if file is None:
        raise ValueError(f"{files[0].parent}: has no added_tokens.json, which names LLaSM's three audio tokens")
    added = read_json(file)
    try:
        ids = {name: int(added[name]) for name in ("<au_patch>", "<au_start>", "<au_end>")}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: does not give the ids of <au_patch>, <au_start> and <au_end>") from error
    if not all(0 <= i < vocab for i in ids.values()):
        raise ValueError(f"{file}: ids {sorted(ids.values())} do not fit the vocabulary of {vocab}")
    return ids


def import_llasm(
    source: str | Path,
    speech_encoder: str | Path,
    output: str | Path,
    tokenizer: str | None = None,
    template: str | None = None,
) -> dict[str, Any]:
    """Bring a released LLaSM checkpoint into speechzoo's saved form.

    Args:
        source: folder in the released layout, or its hub name.
        speech_encoder: Whisper with its text decoder: a Hugging Face folder, its hub name, or an openai-whisper file.
        output: new folder.
        tokenizer: folder of the tokenizer where `source` has none, or another is wanted.
        template: `cllama2` or `baichuan`; default: baichuan if the vocabulary has its `<pad>` token, else cllama2.

    Returns:
        What was explained: the number of tensors that are not used (rotary tables).

    Raises:
        FileNotFoundError, FileExistsError, ValueError: one line; nothing is left at `output`.
    """
    released = Released(source, (MODEL_TYPE,))
    width, slots = released.setting("mm_hidden_size", int), released.setting("audio_token_len", int)
    if encoder_width(speech_encoder) != width:
        raise ValueError(f"{speech_encoder}: its width is {encoder_width(speech_encoder)}, config.json says {width}")
    config = llama_config(released.config)
    expected = llama_shapes(config)
    adaptor = shapes_of(lambda: Linear(width, config.hidden_size))
    expected |= {released_name(f"adaptor.{name}"): shape for name, shape in adaptor.items()}
    check_keys(released.weights, expected, unused_names(released.weights, config), released.folder)
    files = released.tokenizer_files(tokenizer)
    ids = token_ids(files, config.vocab_size)
    added = read_json(next(file for file in files if file.name == "added_tokens.json"))
    template = template or ("baichuan" if "<pad>" in added else "cllama2")
    ours = {name: name.replace(PROJECTOR, "adaptor.linear.") for name in released.weights if name.startswith(PROJECTOR)}
    with new_folder(output) as work:
        others = write_parts(work, released, config, ours, lambda name, tensor: True)
        info = write_around(work, released, tokenizer)
        encoder, hashes = copy_encoder(speech_encoder, work)
        dtype = release_dtype(released)
        prompt = {"tokenizer": "./llm", "template": template, "doubled_system": template == "cllama2"}
        settings: dict[str, Any] = {
            "encoder": {
                "class_path": "speechzoo.encoders.WhisperQueries",
                "init_args": {"model": encoder, "num_queries": slots, "dtype": dtype},
            },
            "adaptor": {"class_path": "speechzoo.adaptors.Linear", "init_args": {}},
            "llm": {"class_path": "speechzoo.llms.HFCausalLM", "init_args": {"model": "./llm", "dtype": dtype}},
            "prompt": {"class_path": "speechzoo.interop.prompts.LlasmPrompt", "init_args": prompt},
            "freeze": ["^encoder\\."],
            "last_clip_only": None,
        }
        where = "hyper_parameters."
        compat = {
            "doubled_system_prompt": {
                "value": prompt["doubled_system"],
                "switch": where + "prompt.init_args.doubled_system",
            },
            "decoder_slots": {"value": slots, "switch": where + "encoder.init_args.num_queries"},
            "last_clip_only": {
                "value": None,
                "switch": f"{where}last_clip_only (the id of <au_patch>, {ids['<au_patch>']}, for the released merge)",
            },
        }
        write_config(
            work,
            {
                "model_class": "speechzoo.models.LLaSM",
                "about": "Imported from a released LLaSM checkpoint.",
                "hyper_parameters": settings,
                "token_ids": ids,
                "compat": compat,
                "licence": LICENCE,
                "source": {
                    "system": "llasm",
                    "name": str(released.config.get("_name_or_path", "")),
                    **info,
                    "sha256": {**info["sha256"], **hashes},
                },
            },
        )
    return {"kept": len(others)}


def encoder_width(source: str | Path) -> int:
    """Width of a Whisper file or folder, without loading it."""
    path = Path(source).expanduser()
    if path.is_file():
        return int(openai_state(path)[0]["n_audio_state"])
    config = read_json(find_source(source) / "config.json")
    width = config.get("d_model")
    if not isinstance(width, int):
        raise ValueError(f"{source}/config.json: not a Whisper (it has no d_model)")
    return width


def export_llasm(path: str | Path, target: str | Path) -> None:
    """Write an imported model in the released layout: the tensors it came with, bit for bit where not trained since.

    Raises:
        FileExistsError, ValueError: one line; nothing is left at `target`.
    """
    export_release(path, target, "llasm", released_name)
