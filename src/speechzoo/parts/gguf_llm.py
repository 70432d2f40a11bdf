"""Rewrite a Llama-architecture GGUF file as an ordinary Hugging Face folder.

``transformers`` reads GGUF itself, but refuses to save a model so loaded ("quantized with gguf and is not
serializable"), so the folder is written here from a clean config.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL


def convert(gguf_path: str | Path, out_dir: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json, model.safetensors, the tokenizer and its chat template from one GGUF file.

    ``AutoModelForCausalLM.from_pretrained(out_dir)`` and ``AutoTokenizer.from_pretrained(out_dir)`` read the result.
    Weights are de-quantised once, so the rounding of the GGUF file stays in them; no ``quantization_config`` is kept.

    Raises:
        ValueError: the file is not of the Llama architecture, or its tokenizer is not SmolLM's byte-level BPE.
    """
    out_dir = Path(out_dir)
    reader = GGUFReader(str(gguf_path))
    fields = {key: field.contents() for key, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ValueError(f"{gguf_path}: architecture {fields['general.architecture']!r} is not 'llama'")
    if (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError(f"{gguf_path}: tokenizer {fields['tokenizer.ggml.pre']!r} is not 'smollm'")
    out_dir.mkdir(parents=True, exist_ok=True)
    weights = _weights(reader, fields, dtype)
    config = _config(fields, tied="lm_head.weight" not in weights)
    config.dtype = dtype
    config.save_pretrained(out_dir)
    generation = {key: fields[f"tokenizer.ggml.{key}"] for key in ("bos_token_id", "eos_token_id")}
    generation["pad_token_id"] = fields["tokenizer.ggml.padding_token_id"]
    (out_dir / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_file(weights, out_dir / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(fields).save_pretrained(out_dir)


def _config(fields: dict[str, Any], tied: bool) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        # GGUF keeps it as float32, where 1e-5 reads 9.99999974e-06.
        rms_norm_eps=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=tied,
    )


def _weights(reader: GGUFReader, fields: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights: dict[str, Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        parts = tensor.name.removesuffix(".weight").split(".")
        if parts[0] == "blk":
            _, layer, kind = parts
            if kind in heads:
                weight = _rotary_halves(weight, heads[kind])
            name = f"model.layers.{layer}.{_LAYER[kind]}"
        else:
            name = _TOP[parts[0]]
        weights[f"{name}.weight"] = weight.to(dtype).contiguous()
    return weights


def _rotary_halves(weight: Tensor, heads: int) -> Tensor:
    """Undo GGUF's interleaving of the rotary pairs: ``[heads * D, H]`` rows (pair, side) become (side, pair)."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> PreTrainedTokenizerFast:
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
