"""A random LLaMA-Omni of middle size, for measurements of cost: what the values are does not matter there."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from whisper.model import ModelDimensions, Whisper

from speechzoo.adaptors import ConcatMLP
from speechzoo.audio import SAMPLE_RATE
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO, SpeechBatch
from speechzoo.units import CTCUnitDecoder

VOCAB = 32_000
PROMPT = 62  # ids of LLaMA-Omni's prompt, one of which stands for the clip's 300 positions


def midsize_model(folder: Path, seed: int = 0) -> LLaMAOmni:
    """Whisper-base's size (512 x 6, 128 mels), Llama 512 x 8 (8 heads, 4 for keys, ffn 1792, 32000 tokens), unit
    decoder 512 x 2 (ffn 1376, 1000 units, 25 positions a state).

    Args:
        folder: where the random parts are written, to be loaded as real ones are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dims = ModelDimensions(128, 1500, 512, 8, 6, 64, 8, 512, 8, 1)
        torch.save({"dims": asdict(dims), "model_state_dict": Whisper(dims).state_dict()}, folder / "whisper.pt")
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=512,
            intermediate_size=1792,
            num_hidden_layers=8,
            num_attention_heads=8,
            num_key_value_heads=4,
            bos_token_id=None,
            eos_token_id=None,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        _tokenizer().save_pretrained(folder)
        model = LLaMAOmni(
            encoder=partial(WhisperEncoder, model=str(folder / "whisper.pt")),
            adaptor=partial(ConcatMLP, stack=5, hidden_dim=2048),
            llm=partial(HFCausalLM, model=str(folder)),
            prompt=partial(ChatPrompt, tokenizer=str(folder)),
            unit_decoder=partial(CTCUnitDecoder, dim=512, num_heads=8, ffn_dim=1376),
        )
        model.configure_model()
        with torch.no_grad():  # the best path of untrained layers hardly changes; so it does, every few positions
            for layer in model.unit_decoder.transformer.layers:
                layer.self_attn.q_proj.weight *= 16
                layer.self_attn.k_proj.weight *= 16
                layer.self_attn.o_proj.weight *= 8
    return model.eval()


def midsize_question(model: LLaMAOmni, seconds: float = 3.0) -> SpeechBatch:
    """A clip of noise in a prompt as long as LLaMA-Omni's.

    Args:
        seconds: length of the clip.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(256, VOCAB, (1, PROMPT), generator=generator)
    ids[0, 45] = AUDIO
    audio = 0.1 * torch.randn(1, int(SAMPLE_RATE * seconds), generator=generator)
    batch = SpeechBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids), audio=audio)
    batch.audio_lens = torch.tensor([audio.shape[1]])
    return batch


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, with a word for every id that bytes do not need."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = alphabet + ["<|end|>"] + [f"Ġw{number}" for number in range(VOCAB - len(alphabet) - 1)]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", chat_template=template)
