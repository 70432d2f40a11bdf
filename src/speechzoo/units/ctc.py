"""LLaMA-Omni's speech decoder: upsampled LLM states through causal layers, trained by CTC over discrete units."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig

from speechzoo.generation.cache import GrowingLayer
from speechzoo.generation.units import CTCUnitStream
from speechzoo.names.renamed import recompute_layers
from speechzoo.names.spec import at_least
from speechzoo.types import IGNORE, present
from speechzoo.units.base import UnitDecoder, UnitOutput, check_heads
from speechzoo.units.layers import RepeatingLlama


class CTCUnitDecoder(UnitDecoder):
    """Non-autoregressive decoder of LLaMA-Omni (paper section 3.4; official speech_generator.py).

    ```
    states [Q, M, H] -> input_proj -> each repeated `upsample` times -> causal Llama layers -> K + 1 logits (blank = K)
    ```
    The blank is the last index, there is no norm after the last layer, and the mask is causal (the official code gets
    causality only from flash attention's kernel). The input projection and the first layer's norm, queries, keys and
    values are computed before repeating, which gives the values of the official order for 1/upsample of the work.

    Args:
        num_units: K; 1000 in the paper.
        upsample: positions per state, 25 in the paper.
        dim, num_layers, num_heads, num_kv_heads, ffn_dim: of the Llama layers; "(2,4096,32,11008)" in the release.
        rope_theta, rope_scaling, rms_norm_eps: taken over from Llama-3.1's config in the release.
        initializer_range: standard deviation of the layers' first weights. transformers' 0.02 suits a width of 4096; a
            small decoder learns late with it, or hardly (see recipes/quickstart/README.md).
        align: see `UnitDecoder`.
        answer_align: the states answers are spoken from, where they are not those of training: the released code
            trains with `label` and answers with `predict`. Default: as `align`.
        gradient_checkpointing: recompute layers in the backward pass: less memory, about a third more time.
    """

    def __init__(
        self,
        in_dim: int,
        num_units: int = 1000,
        upsample: int = 25,
        dim: int = 4096,
        num_layers: int = 2,
        num_heads: int = 32,
        num_kv_heads: int | None = None,
        ffn_dim: int = 11008,
        rope_theta: float = 500_000.0,
        rope_scaling: dict[str, Any] | None = None,
        rms_norm_eps: float = 1e-5,
        initializer_range: float = 0.02,
        align: Literal["predict", "label"] = "predict",
        answer_align: Literal["predict", "label"] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "ffn_dim": ffn_dim}
        at_least(1, "CTCUnitDecoder", num_units=num_units, upsample=upsample, num_kv_heads=num_kv_heads, **sizes)
        check_heads("CTCUnitDecoder", dim, num_heads, num_kv_heads)
        for name, value in (("align", align), ("answer_align", answer_align or align)):
            if value not in ("predict", "label"):
                raise ValueError(f"CTCUnitDecoder.{name} is predict or label, not {value!r}")
        self.num_units, self.upsample = num_units, upsample
        self.align, self.answer_align = align, answer_align or align
        self.input_proj = nn.Linear(in_dim, dim)
        rope = {"rope_type": "default", **(rope_scaling or {}), "rope_theta": rope_theta}
        config = LlamaConfig(
            vocab_size=1,
            hidden_size=dim,
            intermediate_size=ffn_dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            num_key_value_heads=num_kv_heads or num_heads,
            rms_norm_eps=rms_norm_eps,
            initializer_range=initializer_range,
            rope_parameters=rope,
            max_position_embeddings=131_072,
            bos_token_id=None,
            eos_token_id=None,
        )
        self.transformer = RepeatingLlama(config)
        if gradient_checkpointing:
            recompute_layers(self.transformer)
        self.output_proj = nn.Linear(dim, num_units + 1)

    @property
    def blank(self) -> int:
        """Index of the CTC blank: the last one."""
        return self.num_units

    def up_lens(self, lens: Tensor, units: Tensor | None = None, unit_lens: Tensor | None = None) -> Tensor:
        """Positions of each row: `upsample` a state, more where the targets need more.

        CTC needs one position per unit and one blank between equal neighbours, so every target is feasible by
        construction. For de-duplicated targets this is the official `max(upsample * M, U)`. Shape: `[Q] -> [Q]`.
        """
        positions = lens * self.upsample
        if units is None:
            return positions
        needed = positions_needed(units, present(unit_lens, "unit_lens"))
        return torch.maximum(positions, torch.where(lens > 0, needed, 0))

    def unspoken(self, lens: Tensor, units: Tensor, unit_lens: Tensor) -> Tensor:
        """Those that training stretches so that the loss exists; when the model answers nothing stretches them."""
        return positions_needed(units, unit_lens) > lens * self.upsample

    @property
    def unspoken_reason(self) -> tuple[str, str]:
        """See `UnitDecoder.unspoken_reason`."""
        advice = "raise unit_decoder.upsample: stretched for training, they cannot be spoken whole in an answer"
        return f"have more units than {self.upsample} positions a token hold", advice

    def logits(self, states: Tensor, lens: Tensor, up_lens: Tensor) -> Tensor:
        """Logits; what stands past a row's `up_lens` means nothing.

        Shape: `[Q, M, H], [Q], [Q] -> [Q, R, K + 1]`, R the longest of `up_lens`.
        """
        x = self.input_proj(states.to(self.input_proj.weight.dtype))
        if bool((up_lens == lens * self.upsample).all()):
            size = int(up_lens.max())
            return self.output_proj(self.transformer(x[:, : size // self.upsample], self.upsample))
        source = self.assignment(lens, up_lens).clamp(max=states.shape[1] - 1)
        return self.output_proj(self.transformer(x, source.to(x.device, non_blocking=True)))

    @staticmethod
    def assignment(lens: Tensor, up_lens: Tensor) -> Tensor:
        """Which state each position repeats: floor(t / (R / M)), in fp32 as in the official code, because that decides
        ties where the ratio is no integer. Shape: `[Q], [Q] -> [Q, R]`."""
        steps = torch.arange(int(up_lens.max()), device=lens.device)
        ratio = up_lens.float() / lens.clamp(min=1).float()
        return (steps.float() / ratio.clamp(min=1e-6)[:, None]).long()

    def forward(
        self, states: Tensor, lens: Tensor, units: Tensor | None = None, unit_lens: Tensor | None = None
    ) -> UnitOutput:
        """Logits and the CTC loss summed over target units.

        Targets outside 0 ... K - 1, or that no alignment can produce, are flagged in `infeasible` and left out of the
        sum; they are never turned into a silent zero. Lengths and units may lie on the host while states are on a GPU:
        nothing then waits for it but torch's CTC kernel, which copies the lengths.

        Shape: states `[Q, M, H]`, lens `[Q]`, units `[Q, U]` (padded with -100), unit_lens `[Q]`; lens and infeasible
        come out where they went in.
        """
        up_lens = self.up_lens(lens, units, unit_lens)
        logits = self.logits(states, lens, up_lens)
        if units is None:
            return UnitOutput(logits, up_lens)
        unit_lens = present(unit_lens, "unit_lens")
        real = torch.arange(units.shape[1], device=units.device) < unit_lens[:, None]
        wrong = ((units < 0) | (units >= self.num_units)) & real
        targets = torch.where(real & ~wrong, units, 0)
        # In float32 torch's alphas and betas lose digits with the length: gradients came out 0.9 % off at 553 units.
        exact = torch.float32 if logits.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
        log_probs = F.log_softmax(logits.float(), dim=-1).transpose(0, 1).to(exact)
        infeasible = wrong.any(dim=1) | (positions_needed(units, unit_lens) > up_lens)
        # zero_infinity only keeps NaN out of the gradient of rows that are reported as infeasible anyway.
        targets, left_out = (part.to(logits.device, non_blocking=True) for part in (targets, infeasible))
        losses = F.ctc_loss(
            log_probs, targets, up_lens, unit_lens, blank=self.blank, reduction="none", zero_infinity=True
        )
        return UnitOutput(logits, up_lens, torch.where(left_out, 0.0, losses).sum().float(), infeasible)

    def decode(self, states: Tensor, lens: Tensor) -> list[Tensor]:
        """Best path, repeats merged, blanks dropped. Shape: `[Q, M, H], [Q] -> Q times [U]`."""
        longest = int(lens.max()) if len(lens) else 0
        return self.stream(len(lens)).push(states[:, :longest], lens)

    def stream(self, rows: int) -> CTCUnitStream:
        """See `UnitDecoder.stream`."""
        return CTCUnitStream(self._best, len(self.transformer.layers), self.upsample, self.blank, rows)

    def _best(self, states: Tensor, past: list[GrowingLayer]) -> Tensor:
        x = self.transformer(self.input_proj(states.to(self.input_proj.weight.dtype)), self.upsample, past)
        return self.output_proj(x).argmax(dim=-1)


def positions_needed(units: Tensor, unit_lens: Tensor) -> Tensor:
    """Shortest input CTC can align: one position a unit, one more between equal neighbours. `[Q, U], [Q] -> [Q]`."""
    repeats = (units[:, 1:] == units[:, :-1]) & (units[:, 1:] != IGNORE)
    return unit_lens + repeats.sum(dim=1)


def collapse(path: Tensor, blank: int) -> Tensor:
    """CTC's map from a path to its units: merge repeats, drop blanks. Shape: `[R] -> [U]`."""
    path = torch.unique_consecutive(path)
    return path[path != blank]
