"""Models by their sizes alone: known ones by name, and parts that are built without reading their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_UNREAD = ContextVar("unread", default=False)


@contextmanager
def without_reading() -> Iterator[None]:
    """Inside, parts are built as their configurations (or known sizes) say, and no weight is read.

    Their numbers are random; under `torch.device("meta")` there are none.
    """
    token = _UNREAD.set(True)
    try:
        yield
    finally:
        _UNREAD.reset(token)


def unread() -> bool:
    """Whether parts are to be built without their weights."""
    return _UNREAD.get()


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama(dim: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    """Settings of `LlamaConfig`."""
    return {
        "hidden_size": dim,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": 131_072,
        **more,
    }


LLAMAS: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.1-8B-Instruct": llama(4096, 14_336, 32, 32, 8, 128_256, rope_parameters=_LLAMA3),
    "meta-llama/Llama-3.2-1B-Instruct": llama(
        2048, 8192, 16, 32, 8, 128_256, head_dim=64, rope_parameters=_LLAMA3, tie_word_embeddings=True
    ),
    # Of Qwen2 the shapes; its biases of queries, keys and values are left out, a few thousand numbers a layer.
    "Qwen/Qwen2.5-7B-Instruct": llama(3584, 18_944, 28, 28, 4, 152_064, max_position_embeddings=32_768),
    "Qwen/Qwen2.5-0.5B": llama(896, 4864, 24, 14, 2, 151_936, max_position_embeddings=32_768, tie_word_embeddings=True),
    "LinkSoul/Chinese-Llama-2-7b": llama(4096, 11_008, 32, 32, 32, 32_000, max_position_embeddings=4096),
}
"""Settings of `LlamaConfig` by Hugging Face name."""


def lm_config(model: str) -> Any:
    """Configuration of a causal LM by name or folder, of which no weight is read; known sizes where it is not there.

    Raises:
        FileNotFoundError: if it is neither there nor known.
    """
    from transformers import AutoConfig, LlamaConfig

    from speechzoo.names.hugging_face import hub_options

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False, **hub_options(model))
    except FileNotFoundError:
        if model not in LLAMAS:
            raise
        return LlamaConfig(**LLAMAS[model], bos_token_id=None, eos_token_id=None)


_WHISPERS = {"tiny": (384, 6, 4), "base": (512, 8, 6), "small": (768, 12, 12), "medium": (1024, 16, 24)}
_LARGE = (1280, 20, 32)


def whisper_dims(name: str) -> dict[str, int] | None:
    """Settings of openai-whisper's `ModelDimensions` by its name of a model (`large-v3`); None for other names."""
    english = name.endswith(".en")
    large = name.startswith("large") or name == "turbo"
    dim, heads, layers = _LARGE if large else _WHISPERS.get(name.removesuffix(".en"), (0, 0, 0))
    if not dim:
        return None
    newest = name in ("large", "large-v3", "large-v3-turbo", "turbo")
    return {
        "n_mels": 128 if newest else 80,
        "n_vocab": 51_864 if english else 51_866 if newest else 51_865,
        "n_audio_ctx": 1500,
        "n_audio_state": dim,
        "n_audio_head": heads,
        "n_audio_layer": layers,
        "n_text_ctx": 448,
        "n_text_state": dim,
        "n_text_head": heads,
        "n_text_layer": 4 if name.endswith("turbo") else layers,
    }
