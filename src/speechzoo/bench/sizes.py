"""Random LLaMA-Omnis of several sizes, for measurements of cost: what the values are does not matter there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from whisper.model import ModelDimensions, Whisper

from speechzoo.adaptors import ConcatMLP
from speechzoo.audio import SAMPLE_RATE
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni
from speechzoo.names.shapes import LLAMAS, llama
from speechzoo.system.files import write_json
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO, SpeechBatch
from speechzoo.units import CTCUnitDecoder
from speechzoo.vocoders.unit_hifigan import networks

END = "<|eot_id|>"
SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", END, "<|finetune_right_pad_id|>")


@dataclass(frozen=True)
class Size:
    """The numbers of a LLaMA-Omni.

    Args:
        whisper: `n_mels, n_audio_state, n_audio_head, n_audio_layer`.
        llm: of `LlamaConfig`.
        decoder: of `CTCUnitDecoder`.
        vocoder_channels: of the unit HiFi-GAN's first layer.
        dtype: of encoder and LLM.
        units: vocabulary of decoder and vocoder.
        adaptor_dim: width inside the adaptor.
    """

    whisper: tuple[int, int, int, int]
    llm: dict[str, Any]
    decoder: dict[str, Any]
    vocoder_channels: int = 512
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    units: int = 1000
    adaptor_dim: int = 2048


SIZES = {
    # Whisper-large-v3 and Llama-3.1-8B with the released unit decoder (2, 4096, 32, 11008)
    "8b": Size(
        (128, 1280, 20, 32),
        LLAMAS["meta-llama/Llama-3.1-8B-Instruct"],
        {"dim": 4096, "num_heads": 32, "ffn_dim": 11_008},
    ),
    # the same around Llama-3.2-1B
    "1b": Size(
        (128, 1280, 20, 32),
        LLAMAS["meta-llama/Llama-3.2-1B-Instruct"],
        {"dim": 4096, "num_heads": 32, "ffn_dim": 11_008},
    ),
    # what the official code's CPU seconds were taken with, Whisper-base's size
    "mid": Size(
        (128, 512, 8, 6),
        llama(512, 1792, 8, 8, 4, 32_000),
        {"dim": 512, "num_heads": 8, "ffn_dim": 1376},
        vocoder_channels=64,
        dtype="float32",
    ),
    # to try a command on anything
    "tiny": Size(
        (80, 32, 4, 2),
        llama(32, 64, 2, 4, 2, 400),
        {"dim": 32, "num_heads": 2, "ffn_dim": 64},
        vocoder_channels=32,
        dtype="float32",
        adaptor_dim=24,
    ),
}


def random_model(folder: Path, size: Size, seed: int = 0, device: str = "cpu") -> LLaMAOmni:
    """A LLaMA-Omni with random weights, in eval mode on the CPU.

    Args:
        folder: where the random parts are written, to be loaded as real ones are.
        device: where they are drawn.
    """
    devices = [torch.device(device)] if device != "cpu" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        mels, dim, heads, layers = size.whisper
        dims = ModelDimensions(mels, 1500, dim, heads, layers, 64, 8, dim, heads, 1)
        with torch.device(device):
            whisper = Whisper(dims)
        kind = getattr(torch, size.dtype)
        state = {name: value.to("cpu", kind) for name, value in whisper.state_dict().items()}
        torch.save({"dims": asdict(dims), "model_state_dict": state}, folder / "whisper.pt")
        del whisper, state
        config = LlamaConfig(**size.llm, bos_token_id=None, eos_token_id=None, dtype=size.dtype)
        with torch.device(device):
            llm = LlamaForCausalLM(config).to(kind)
        llm.save_pretrained(folder)
        del llm
        tokenizer(size.llm["vocab_size"]).save_pretrained(folder)
        model = LLaMAOmni(
            encoder=partial(WhisperEncoder, model=str(folder / "whisper.pt"), dtype=size.dtype),
            adaptor=partial(ConcatMLP, stack=5, hidden_dim=size.adaptor_dim),
            llm=partial(HFCausalLM, model=str(folder), dtype=size.dtype),
            prompt=partial(ChatPrompt, tokenizer=str(folder)),
            unit_decoder=partial(CTCUnitDecoder, num_units=size.units, **size.decoder),
        )
        model.configure_model()
        enliven(model)
    return model.eval()


@torch.no_grad()
def enliven(model: LLaMAOmni) -> None:
    """Make the best path of an untrained unit decoder change every few positions; else it hardly does."""
    for layer in cast(Any, model.unit_decoder).transformer.layers:
        layer.self_attn.q_proj.weight *= 16
        layer.self_attn.k_proj.weight *= 16
        layer.self_attn.o_proj.weight *= 8


def noise_question(vocab: int, prompt: int = 62, seconds: float = 3.0) -> SpeechBatch:
    """A clip of noise in a prompt of so many ids, one of which stands for the clip; as many as LLaMA-Omni's has.

    Args:
        vocab: of the LLM.
        seconds: length of the clip.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(256, vocab, (1, prompt), generator=generator)
    ids[0, 45] = AUDIO
    audio = 0.1 * torch.randn(1, int(SAMPLE_RATE * seconds), generator=generator)
    batch = SpeechBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids), audio=audio)
    batch.audio_lens = torch.tensor([audio.shape[1]])
    return batch


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Byte-level, with Llama 3's special tokens and a word for every other id that bytes do not need."""
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL]
    words += [f"Ġw{number}" for number in range(vocab - len(words))]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['content'] }}" + END + "{% endfor %}"
    specials = {"additional_special_tokens": list(SPECIAL)}
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, chat_template=template, **specials)


def random_vocoder(folder: Path, size: Size, seed: int = 0) -> None:
    """The paper's unit HiFi-GAN with random weights, in fairseq's layout."""
    config = {
        "resblock": "1",
        "upsample_rates": [5, 4, 4, 2, 2],
        "upsample_kernel_sizes": [11, 8, 8, 4, 4],
        "upsample_initial_channel": size.vocoder_channels,
        "resblock_kernel_sizes": [3, 7, 11],
        "resblock_dilation_sizes": [[1, 3, 5]] * 3,
        "num_embeddings": size.units,
        "embedding_dim": 128,
        "model_in_dim": 128,
        "code_hop_size": 320,
        "dur_predictor_params": {"encoder_embed_dim": 128, "var_pred_hidden_dim": 128, "var_pred_kernel_size": 3},
        "sampling_rate": 16_000,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = networks(config)
    with torch.no_grad():  # 2 frames a unit, about what speech without repeats has
        parts["durations"].proj.weight.zero_()
        parts["durations"].proj.bias.fill_(torch.tensor(3.0).log())
    names = {"embedding": "dict.", "durations": "dur_predictor.", "generator": ""}
    state = {
        names[part] + name.replace("upsampler.", "ups.", 1): value
        for part, network in parts.items()
        for name, value in network.state_dict().items()
        if name not in ("mean", "scale")
    }
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    torch.save({"generator": state}, folder / "g_00000000")
