"""LLaMA-Omni's released checkpoints, in and out (`ICTNLP/Llama-3.1-8B-Omni`)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from speechzoo.adaptors import ConcatMLP
from speechzoo.interop.layout import Released, Weights, check_keys, read_pickle
from speechzoo.interop.saved import new_folder, write_config
from speechzoo.interop.shapes import llama_config, llama_shapes, rope, rope_theta, shapes_of
from speechzoo.interop.transfer import (
    copy_encoder,
    export_release,
    openai_state,
    release_dtype,
    same_values,
    stop_ids,
    unused_names,
    write_around,
    write_parts,
)
from speechzoo.system.files import sha256
from speechzoo.units import CTCUnitDecoder

MODEL_TYPE = "omni_speech2s_llama"
ENCODER = "model.speech_encoder."
LICENCE = {
    "id": "other",
    "text": "The released LLaMA-Omni weights are for research only, not for commercial use; they are built on Llama "
    "3.1 and also fall under the Llama 3.1 Community License.",
}


def ours_name(name: str) -> str | None:
    """Our name of a released tensor of adaptor or unit decoder; None for others."""
    if name.startswith("model.speech_projector."):
        return name.replace("model.speech_projector.", "adaptor.", 1)
    if name.startswith("speech_generator."):
        name = name.replace("speech_generator.", "unit_decoder.", 1)
        return name.replace("unit_decoder.layers.", "unit_decoder.transformer.layers.", 1)
    return None


def released_name(name: str) -> str:
    """Released name of one of our parameters (LLM, adaptor, unit decoder)."""
    if name.startswith("llm.lm."):
        return name.removeprefix("llm.lm.")
    if name.startswith("adaptor."):
        return name.replace("adaptor.", "model.speech_projector.", 1)
    name = name.replace("unit_decoder.transformer.layers.", "unit_decoder.layers.", 1)
    return name.replace("unit_decoder.", "speech_generator.", 1)


def decoder_settings(released: Released) -> dict[str, Any]:
    """Arguments of `CTCUnitDecoder` from a released config.

    Raises:
        ValueError: if `ctc_decoder_config` is not four whole numbers, or the decoder is of layers that ours has not.
    """
    text = released.setting("ctc_decoder_config", str)
    numbers = re.fullmatch(r"\(\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,?\s*\)", text.strip())
    if numbers is None:
        raise ValueError(f"{released.folder}/config.json: ctc_decoder_config {text!r} is not (layers,width,heads,ffn)")
    layers, dim, heads, ffn = map(int, numbers.groups())
    # The release's decoder is made of the LLM's config; ours has its rope, but neither its length nor its activation.
    scaling = rope(released.config) or {"rope_type": "default"}
    known = {"default", "linear", "llama3"} | ({"yarn"} if "original_max_position_embeddings" in scaling else set())
    for name, value, can in (
        ("hidden_act", released.config.get("hidden_act", "silu"), {"silu"}),
        ("rope_type", scaling.get("rope_type"), known),
    ):
        if value not in can:
            raise ValueError(f"{released.folder}/config.json: {name} {value!r} is not supported in the unit decoder")
    return {
        "num_units": released.setting("unit_vocab_size", int),
        "upsample": released.setting("ctc_upsample_factor", int),
        "dim": dim,
        "num_layers": layers,
        "num_heads": heads,
        "ffn_dim": ffn,
        "rope_theta": rope_theta(released.config),
        "rope_scaling": rope(released.config),
        "rms_norm_eps": released.config.get("rms_norm_eps", 1e-6),
        "align": "label",
        "answer_align": "predict",
    }


def import_llama_omni(
    source: str | Path,
    speech_encoder: str | Path,
    output: str | Path,
    tokenizer: str | None = None,
    vocoder: str | Path | None = None,
) -> dict[str, Any]:
    """Bring a released LLaMA-Omni checkpoint into speechzoo's saved form.

    Args:
        source: folder in the released layout, or its hub name.
        speech_encoder: the openai-whisper file that the checkpoint's config names, e.g. `large-v3.pt`.
        output: new folder.
        tokenizer: folder of the tokenizer where `source` has none, or another is wanted.
        vocoder: folder with fairseq's `config.json` and `g_00500000`, copied along.

    Returns:
        What was explained: the number of encoder tensors inside the checkpoint, and whether they equal the file's.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: one line; nothing is left at `output`.
    """
    released = Released(source, (MODEL_TYPE,))
    for name, value in (("speech_projector_type", "linear"), ("speech_generator_type", "ctc")):
        if released.config.get(name, value) != value:
            raise ValueError(f"{released.folder}/config.json: {name} {released.config[name]!r} is not supported")
    dims, encoder_state = openai_state(Path(speech_encoder).expanduser())
    width = released.setting("speech_encoder_hidden_size", int)
    if dims.get("n_audio_state") != width:
        raise ValueError(f"{speech_encoder}: its width is {dims.get('n_audio_state')}, config.json says {width}")
    config, decoder = llama_config(released.config), decoder_settings(released)
    stack = released.setting("speech_encoder_ds_rate", int)
    released.setting("ctc_loss_weight", int, float, default=1.0)
    if released.config.get("tokenizer_model_max_length") is not None:
        released.setting("tokenizer_model_max_length", int, float)
    expected = llama_shapes(config)
    for prefix, make in (
        ("adaptor.", lambda: ConcatMLP(width, config.hidden_size, stack)),
        ("unit_decoder.", lambda: CTCUnitDecoder(config.hidden_size, **decoder)),
    ):
        expected |= {released_name(prefix + name): shape for name, shape in shapes_of(make).items()}
    inside = {name for name in released.weights if name.startswith(ENCODER)}
    explained = inside | unused_names(released.weights, config)
    check_keys(released.weights, expected, explained, released.folder)
    ours = {name: new for name in released.weights if (new := ours_name(name)) is not None}
    same: list[str] = []

    def kept(name: str, tensor: Tensor) -> bool:
        if name.startswith(ENCODER) and same_values(tensor, encoder_state.get(f"encoder.{name[len(ENCODER) :]}")):
            same.append(name)
            return False
        return True

    with new_folder(output) as work:
        others = write_parts(work, released, config, ours, kept)
        info = write_around(work, released, tokenizer)
        encoder, hashes = copy_encoder(speech_encoder, work)
        if vocoder is not None:
            hashes |= _copy_vocoder(Path(vocoder).expanduser(), work)
        dtype = release_dtype(released)
        _write(work, released, decoder, encoder, stack, dtype, {**info, "inside": sorted(same)}, hashes, vocoder)
    differ = sum(name.startswith(ENCODER) for name in others)
    return {"encoder_tensors_inside": len(same) + differ, "encoder_tensors_that_differ": differ, "kept": len(others)}


def _write(
    work: Path,
    released: Released,
    decoder: dict[str, Any],
    encoder: str,
    stack: int,
    dtype: str,
    info: dict[str, Any],
    hashes: dict[str, str],
    vocoder: Any,
) -> None:
    prompt = {
        "tokenizer": "./llm",
        "bos": "as_tokenizer",
        "stop_ids": stop_ids(released),
        "max_length": released.config.get("tokenizer_model_max_length") or 2048,
    }
    prompt = {"class_path": "speechzoo.interop.prompts.LlamaOmniPrompt", "init_args": prompt}
    settings: dict[str, Any] = {
        "encoder": {
            "class_path": "speechzoo.encoders.WhisperEncoder",
            "init_args": {"model": encoder, "window": "padded", "dtype": dtype},
        },
        "adaptor": {"class_path": "speechzoo.adaptors.ConcatMLP", "init_args": {"stack": stack}},
        "llm": {"class_path": "speechzoo.llms.HFCausalLM", "init_args": {"model": "./llm", "dtype": dtype}},
        "prompt": prompt,
        "unit_decoder": {"class_path": "speechzoo.units.CTCUnitDecoder", "init_args": decoder},
        "freeze": ["^encoder\\."],
        "loss_weights": {"lm": 1.0, "ctc": float(released.config.get("ctc_loss_weight", 1.0))},
    }
    where = "hyper_parameters."
    compat = {
        "ctc_align": {"value": "label", "switch": where + "unit_decoder.init_args.align"},
        "answer_align": {"value": "predict", "switch": where + "unit_decoder.init_args.answer_align"},
        "bos_and_newline": {"value": "as_tokenizer", "switch": where + "prompt.init_args.bos"},
    }
    write_config(
        work,
        {
            "model_class": "speechzoo.models.LLaMAOmni",
            "about": "Imported from a released LLaMA-Omni checkpoint.",
            "hyper_parameters": settings,
            "vocoder": "./vocoder" if vocoder is not None else None,
            "compat": compat,
            "licence": LICENCE,
            "source": {
                "system": "llama-omni",
                "name": str(released.config.get("_name_or_path", "")),
                **info,
                "sha256": {**info["sha256"], **hashes},
            },
        },
    )


def _copy_vocoder(folder: Path, work: Path) -> dict[str, str]:
    files = [folder / "config.json", *sorted(folder.glob("g_*"))[-1:]]
    if len(files) < 2 or not files[0].is_file():
        raise FileNotFoundError(f"{folder}: a unit HiFi-GAN folder holds config.json and g_00500000")
    read_pickle(files[1])
    (work / "vocoder").mkdir()
    for file in files:
        shutil.copyfile(file, work / "vocoder" / file.name)
    return {f"{folder.name}/{file.name}": sha256(file) for file in files}


def export_llama_omni(path: str | Path, target: str | Path) -> None:
    """Write an imported model in the released layout: the tensors it came with, bit for bit where not trained since.

    `config.json` is the released one; its `speech_encoder` is a path relative to where the official loader runs.

    Raises:
        FileExistsError, ValueError: one line; nothing is left at `target`.
    """

    def more(folder: Path, source: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        llm = Weights(folder / "llm")
        dtype = llm[next(iter(llm))].dtype
        state = openai_state(folder / "encoder.pt")[1] if source["inside"] else {}
        for name in source["inside"]:
            yield name, state[f"encoder.{name[len(ENCODER) :]}"].to(dtype)

    export_release(path, target, "llama-omni", released_name, more)
