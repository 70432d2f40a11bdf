"""Read a CTranslate2 Whisper container and rewrite it as an openai-whisper checkpoint.

The container (``model.bin``, binary version 6) is a flat little-endian list of named arrays; Whisper's names map one to
one onto openai-whisper's, except that query/key/value (or key/value) projections are stored as one fused matrix.
Format: https://github.com/OpenNMT/CTranslate2 (``python/ctranslate2/specs/model_spec.py``).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

_BINARY_VERSION = 6
_DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def read_container(path: str | Path) -> tuple[str, dict[str, np.ndarray]]:
    """Read every array of a CTranslate2 container.

    Returns:
        The name of the model family the container holds, e.g. ``"WhisperSpec"``, and its arrays by name. Scalars
        are arrays of shape ``[]``; an alias is the same array under a second name.

    Raises:
        ValueError: not a version 6 container, an unknown number type, or a file cut short.
    """
    arrays: dict[str, np.ndarray] = {}
    with Path(path).open("rb") as file:
        (version,) = _unpack(file, "I", path)
        if version != _BINARY_VERSION:
            raise ValueError(f"{path}: CTranslate2 binary version is {version}, only {_BINARY_VERSION} can be read")
        family = _string(file, path)
        _revision, count = _unpack(file, "II", path)
        for _ in range(count):
            name = _string(file, path)
            (rank,) = _unpack(file, "B", path)
            shape = _unpack(file, f"{rank}I", path)
            dtype_id, nbytes = _unpack(file, "BI", path)
            if dtype_id not in _DTYPES:
                raise ValueError(f"{path}: array {name!r} has the unknown number type {dtype_id}")
            arrays[name] = np.frombuffer(_bytes(file, nbytes, path), dtype=_DTYPES[dtype_id]).reshape(shape)
        (aliases,) = _unpack(file, "I", path)
        for _ in range(aliases):
            alias, name = _string(file, path), _string(file, path)
            arrays[alias] = arrays[name]
    return family, arrays


def whisper_checkpoint(path: str | Path) -> dict[str, Any]:
    """Rewrite a float CTranslate2 Whisper container as the mapping that ``whisper.load_model(file)`` reads.

    Returns:
        ``{"dims": {...}, "model_state_dict": {...}}`` with float16 tensors; save it by ``torch.save``.

    Raises:
        ValueError: not a Whisper container, quantised weights, or a key bias (openai-whisper has none) that is not 0.
    """
    family, arrays = read_container(path)
    if family != "WhisperSpec":
        raise ValueError(f"{path}: holds a {family}, not a Whisper model")
    quantised = [name for name, array in arrays.items() if array.ndim == 2 and array.dtype.kind != "f"]
    if quantised:
        raise ValueError(f"{path}: {quantised[0]!r} is quantised; a float16 export is needed")

    n_text_ctx, n_text_state = arrays["decoder/position_encodings/encodings"].shape
    n_audio_ctx, n_audio_state = arrays["encoder/position_encodings/encodings"].shape
    dims = {
        "n_mels": arrays["encoder/conv1/weight"].shape[1],
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": n_audio_state,
        "n_audio_head": int(arrays["encoder/num_heads"]),
        "n_audio_layer": _layers(arrays, "encoder"),
        "n_vocab": arrays["decoder/embeddings/weight"].shape[0],
        "n_text_ctx": n_text_ctx,
        "n_text_state": n_text_state,
        "n_text_head": int(arrays["decoder/num_heads"]),
        "n_text_layer": _layers(arrays, "decoder"),
    }
    state: dict[str, Tensor] = {
        "encoder.positional_embedding": _half(arrays["encoder/position_encodings/encodings"]),
        "decoder.positional_embedding": _half(arrays["decoder/position_encodings/encodings"]),
        "decoder.token_embedding.weight": _half(arrays["decoder/embeddings/weight"]),
    }
    for conv in ("conv1", "conv2"):
        _linear(arrays, f"encoder/{conv}", state, f"encoder.{conv}")
    _norm(arrays, "encoder/layer_norm", state, "encoder.ln_post")
    _norm(arrays, "decoder/layer_norm", state, "decoder.ln")
    for side, layers in (("encoder", dims["n_audio_layer"]), ("decoder", dims["n_text_layer"])):
        for layer in range(layers):
            source, target = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            _norm(arrays, f"{source}/self_attention/layer_norm", state, f"{target}.attn_ln")
            _fused(arrays, f"{source}/self_attention/linear_0", state, f"{target}.attn", ("query", "key", "value"))
            _linear(arrays, f"{source}/self_attention/linear_1", state, f"{target}.attn.out")
            if side == "decoder":
                _norm(arrays, f"{source}/attention/layer_norm", state, f"{target}.cross_attn_ln")
                _linear(arrays, f"{source}/attention/linear_0", state, f"{target}.cross_attn.query")
                _fused(arrays, f"{source}/attention/linear_1", state, f"{target}.cross_attn", ("key", "value"))
                _linear(arrays, f"{source}/attention/linear_2", state, f"{target}.cross_attn.out")
            _norm(arrays, f"{source}/ffn/layer_norm", state, f"{target}.mlp_ln")
            _linear(arrays, f"{source}/ffn/linear_0", state, f"{target}.mlp.0")
            _linear(arrays, f"{source}/ffn/linear_1", state, f"{target}.mlp.2")
    return {"dims": dims, "model_state_dict": state}


def _layers(arrays: dict[str, np.ndarray], side: str) -> int:
    prefix = f"{side}/layer_"
    # "encoder/layer_norm/..." shares the prefix with "encoder/layer_0/...".
    numbers = {name[len(prefix) :].split("/")[0] for name in arrays if name.startswith(prefix)} - {"norm"}
    return len(numbers)


def _half(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float16))


def _norm(arrays: dict[str, np.ndarray], source: str, state: dict[str, Tensor], target: str) -> None:
    state[f"{target}.weight"] = _half(arrays[f"{source}/gamma"])
    state[f"{target}.bias"] = _half(arrays[f"{source}/beta"])


def _linear(arrays: dict[str, np.ndarray], source: str, state: dict[str, Tensor], target: str) -> None:
    state[f"{target}.weight"] = _half(arrays[f"{source}/weight"])
    state[f"{target}.bias"] = _half(arrays[f"{source}/bias"])


def _fused(
    arrays: dict[str, np.ndarray], source: str, state: dict[str, Tensor], target: str, parts: tuple[str, ...]
) -> None:
    """Split a projection of shape ``[len(parts) * D, D]`` into one matrix for each part."""
    weights = np.split(arrays[f"{source}/weight"], len(parts))
    biases = np.split(arrays[f"{source}/bias"], len(parts))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        state[f"{target}.{part}.weight"] = _half(weight)
        if part != "key":
            state[f"{target}.{part}.bias"] = _half(bias)
        elif bias.any():
            raise ValueError(f"{source}: the key bias is not zero, so this is not an openai-whisper model")


def _bytes(file: BinaryIO, size: int, path: str | Path) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{path}: the file is cut short at byte {file.tell()}; fetch it again")
    return data


def _unpack(file: BinaryIO, layout: str, path: str | Path) -> tuple[int, ...]:
    return struct.unpack(f"<{layout}", _bytes(file, struct.calcsize(f"<{layout}"), path))


def _string(file: BinaryIO, path: str | Path) -> str:
    (size,) = _unpack(file, "H", path)
    return _bytes(file, size, path).rstrip(b"\0").decode()
