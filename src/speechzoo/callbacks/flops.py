"""Arithmetic that a training step needs, counted from the parts' weights: what utilisation is measured against."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import Tensor, nn

from speechzoo.encoders import Encoder, WhisperEncoder
from speechzoo.llms import LLM, HFCausalLM
from speechzoo.models.base import SpeechLLM
from speechzoo.types import SpeechBatch, SpeechOutput
from speechzoo.units import CTCUnitDecoder, UnitDecoder


def training_flops(model: SpeechLLM, batch: SpeechBatch, out: SpeechOutput) -> Tensor:
    """Floating-point operations of matrix products in forward and backward of a batch, an addition counting as one.

    Padding does not count, nor does what gradient checkpointing computes again, as is usual for model FLOPs
    utilisation (PaLM, arXiv 2204.02311, appendix B); causal attention counts half. A part that learns costs three
    forward passes, one that gradients only pass through two, one that they do not reach a single one. The vocabulary
    head counts for supervised tokens, where it runs. Attention is that of Whisper, Hugging Face LLMs and the CTC
    decoder; other parts count by their weights, one that writes units without the positions that it reads.

    Args:
        out: of `model(batch)`. With cached `features` the encoder counts nothing, with `answer_states` all before the
            unit decoder.

    Returns:
        A scalar on the batch's device; nothing waits for it.
    """
    total = torch.zeros((), dtype=torch.float64, device=batch.input_ids.device)
    below = False  # whether anything before a part learns, so that gradients pass through it

    def add(part: nn.Module, weights: Tensor | float, attention: Tensor | float = 0.0) -> None:
        nonlocal total, below
        share = _learning_share(part)
        below = below or share > 0
        total = total + weights * (1 + below + share) + attention * (1 + 2 * below)

    if batch.answer_states is None:
        if (clips := batch.clips) is not None:
            frames: Tensor | None = (heard := model.encoder.out_lens(clips[1]))
            add(model.encoder, *_encoder(model.encoder, heard))
        else:
            frames = batch.feature_lens
        if frames is not None and len(frames):
            add(model.adaptor, 2 * model.adaptor.out_lens(frames).sum() * matmul_weights(model.adaptor))
        add(model.llm, *_llm(model.llm, out.mask.sum(dim=1), model.num_targets(batch)["lm"] if "lm" in out.sums else 0))
    if out.unit_logit_lens is not None:
        decoder = cast(UnitDecoder, model.unit_decoder)
        add(decoder, *_unit_decoder(decoder, out.unit_logit_lens))
    return total


DENSE = {"H200": 989.4e12, "H100 NVL": 835.5e12, "L40S": 362.05e12, "L40": 181.05e12}
"""Peak rates in bfloat16 and float16 without sparsity (NVIDIA's data sheets) where Lightning 2.6 has those with it, or
takes the card for another one; in the order in which names are looked for."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations a second that a device could do in matrix products of a type; None if that is not known."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for card, rate in DENSE.items():
            if card in name:
                return rate
    return get_available_flops(device, dtype)


def _encoder(encoder: Encoder, frames: Tensor) -> tuple[Tensor, Tensor | float]:
    """Forward FLOPs of weights and of attention. Shape: frames `[N]`, of each clip."""
    weights = matmul_weights(encoder)
    if type(encoder) is not WhisperEncoder:
        return 2 * frames.sum() * weights, 0.0
    weights += encoder.net.conv1.weight.numel()  # runs on mel frames, twice as many
    return 2 * frames.sum() * weights, 4 * _squares(frames) * encoder.out_dim * len(encoder.net.blocks)


def _llm(llm: LLM, rows: Tensor, targets: int) -> tuple[Tensor, Tensor | float]:
    """Forward FLOPs of weights and of attention. Shape: rows `[B]`, positions of each."""
    head = matmul_weights(llm.head) if isinstance(llm, HFCausalLM) else 0
    weights = 2 * rows.sum() * (matmul_weights(llm) - head) + 2 * targets * head
    config = llm.lm.config if isinstance(llm, HFCausalLM) else None
    if config is None or not hasattr(config, "num_attention_heads"):
        return weights, 0.0
    width = getattr(config, "head_dim", None) or llm.dim // config.num_attention_heads
    return weights, 2 * _squares(rows) * config.num_attention_heads * width * config.num_hidden_layers


def _unit_decoder(decoder: UnitDecoder, lens: Tensor) -> tuple[Tensor, Tensor | float]:
    """Forward FLOPs of weights and of attention. Shape: lens `[Q]`, positions of each."""
    weights = 2 * lens.sum() * matmul_weights(decoder)
    if not isinstance(decoder, CTCUnitDecoder):
        return weights, 0.0
    attention: Any = decoder.transformer.layers[0].self_attn
    # Computed once per state instead of once per position.
    early = (decoder.input_proj, attention.q_proj, attention.k_proj, attention.v_proj)
    weights = weights - 2 * lens.sum() * (1 - 1 / decoder.upsample) * sum(map(matmul_weights, early))
    return weights, 2 * _squares(lens) * attention.q_proj.out_features * len(decoder.transformer.layers)


def _squares(lens: Tensor) -> Tensor:
    return lens.double().square().sum()


def matmul_weights(part: nn.Module) -> int:
    """Weights that each position is multiplied by: matrices and convolutions, but not tables of embeddings."""
    return sum(
        weight.numel()
        for module in part.modules()
        if not isinstance(module, nn.Embedding)
        for weight in module._parameters.values()
        if weight is not None and weight.dim() > 1
    )


def _learning_share(part: nn.Module) -> float:
    """Share of the matrices that get a gradient of their own."""
    matrices = [p for p in part.parameters() if p.dim() > 1]
    return sum(p.numel() for p in matrices if p.requires_grad) / max(1, sum(p.numel() for p in matrices))
