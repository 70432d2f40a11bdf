"""Tiny random checkpoints in the two released layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
    "rope_type": "llama3",
}


def layer(prefix: str, dim: int, kv: int, ffn: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one Llama layer."""
    return {
        f"{prefix}self_attn.q_proj.weight": (dim, dim),
        f"{prefix}self_attn.k_proj.weight": (kv, dim),
        f"{prefix}self_attn.v_proj.weight": (kv, dim),
        f"{prefix}self_attn.o_proj.weight": (dim, dim),
        f"{prefix}mlp.gate_proj.weight": (ffn, dim),
        f"{prefix}mlp.up_proj.weight": (ffn, dim),
        f"{prefix}mlp.down_proj.weight": (dim, ffn),
        f"{prefix}input_layernorm.weight": (dim,),
        f"{prefix}post_attention_layernorm.weight": (dim,),
    }


def llama(vocab: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tiny LLM."""
    dim = LLAMA["hidden_size"]
    shapes = {"model.embed_tokens.weight": (vocab, dim), "model.norm.weight": (dim,), "lm_head.weight": (vocab, dim)}
    for i in range(LLAMA["num_hidden_layers"]):
        shapes |= layer(f"model.layers.{i}.", dim, dim // 2, LLAMA["intermediate_size"])
    return shapes


def draw(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (0.1 * torch.randn(shape, generator=generator)).to(dtype) for name, shape in shapes.items()}


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor], kind: str, shards: int) -> Path:
    """config.json and weights, as `kind` (safetensors or bin) in so many shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    stem, index = ("model" if kind == "safetensors" else "pytorch_model"), {}
    names = sorted(state)
    for number in range(shards):
        part = {name: state[name] for name in names[number::shards]}
        file = f"{stem}.{kind}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{kind}"
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    if shards > 1:
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def omni_tokenizer(folder: Path, adds_bos: bool = False) -> int:
    """A byte-level tokenizer with Llama 3's special tokens; returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["You are a helpful language and speech assistant."], trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token="<|eot_id|>", pad_token="<|pad|>"
    )
    fast.save_pretrained(folder)
    return len(fast)


def omni(
    folder: Path, whisper: Path, kind: str = "safetensors", shards: int = 1, dtype: torch.dtype = torch.float32, **more
) -> dict[str, Tensor]:
    """A LLaMA-Omni checkpoint with the encoder inside, decoder narrower than the LLM and scaled rope; its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = omni_tokenizer(folder)
    dim, width, ffn, k, units = LLAMA["hidden_size"], 16, 24, 4, 20
    shapes = llama(vocab) | {
        "model.speech_projector.linear1.weight": (2048, 32 * k),
        "model.speech_projector.linear1.bias": (2048,),
        "model.speech_projector.linear2.weight": (dim, 2048),
        "model.speech_projector.linear2.bias": (dim,),
        "speech_generator.input_proj.weight": (width, dim),
        "speech_generator.input_proj.bias": (width,),
        "speech_generator.output_proj.weight": (units + 1, width),
        "speech_generator.output_proj.bias": (units + 1,),
    }
    shapes |= layer("speech_generator.layers.0.", width, width, ffn)
    config = {
        **LLAMA,
        "model_type": "omni_speech2s_llama",
        "architectures": ["OmniSpeech2SLlamaForCausalLM"],
        "vocab_size": vocab,
        "bos_token_id": 0,
        "eos_token_id": [3],
        "rope_theta": 500_000.0,
        "rope_scaling": LLAMA3_ROPE,
        "ctc_decoder_config": f"(1,{width},2,{ffn})",
        "ctc_loss_weight": 0.5,
        "ctc_upsample_factor": 3,
        "unit_vocab_size": units,
        "speech_encoder": "models/speech_encoder/tiny.pt",
        "speech_encoder_ds_rate": k,
        "speech_encoder_hidden_size": 32,
        "speech_projector_type": "linear",
        "speech_generator_type": "ctc",
        "tokenizer_model_max_length": 256,
        **more,
    }
    state = draw(shapes, dtype)
    encoder = torch.load(whisper, weights_only=True)["model_state_dict"]
    for name, tensor in encoder.items():
        if name.startswith("encoder."):
            state[f"model.speech_{name}"] = tensor.to(dtype)
    write(folder, config, state, kind, shards)
    return state


def llasm_tokenizer(folder: Path) -> int:
    """A SentencePiece model with LLaSM's three tokens; returns the vocabulary's size."""
    import sentencepiece

    text = folder / "text.txt"
    text.write_text("You are a helpful language and speech assistant.\nWhat is the capital of France?\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    size = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model")).get_piece_size()
    added = {"<au_patch>": size, "<au_start>": size + 1, "<au_end>": size + 2}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    text.unlink()
    (folder / "tokenizer.vocab").unlink()
    return size + 3


def llasm(
    folder: Path, kind: str = "bin", shards: int = 1, dtype: torch.dtype = torch.float32, **more
) -> dict[str, Tensor]:
    """A LLaSM checkpoint with the rotary tables of old transformers in it; its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab = llasm_tokenizer(folder)
    shapes = llama(vocab) | {"model.mm_projector.weight": (32, 32), "model.mm_projector.bias": (32,)}
    for i in range(LLAMA["num_hidden_layers"]):
        shapes[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = (4,)
    config = {
        **LLAMA,
        "model_type": "llaaa",
        "architectures": ["LlaaaLlamaForCausalLM"],
        "vocab_size": vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "audio_token_len": 8,
        "mm_hidden_size": 32,
        "mm_audio_tower": "openai/whisper-tiny",
        "use_cache": False,
        **more,
    }
    state = draw(shapes, dtype)
    write(folder, config, state, kind, shards)
    return state
