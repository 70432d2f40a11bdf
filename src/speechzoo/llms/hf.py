"""Any Hugging Face causal LM as the language part: embedding, splice, loss over answers, generation."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from speechzoo.llms.base import LLMOutput
from speechzoo.llms.hf_answers import HFAnswers
from speechzoo.llms.length import check_length
from speechzoo.llms.loading import pretrained_lm
from speechzoo.llms.lora import add_lora, merged
from speechzoo.names.renamed import recompute_layers
from speechzoo.names.spec import at_least
from speechzoo.types import AUDIO, IGNORE


class HFCausalLM(HFAnswers):
    """A causal LM of transformers, by name or folder.

    Args:
        model: name or folder for `AutoModelForCausalLM`.
        dtype: of the pretrained weights. Trainable weights want float32 (with `precision: bf16-mixed` the arithmetic
            is bf16 all the same); frozen ones, and the base under LoRA, do well in bfloat16. float16 overflows in
            training and is meant for inference on old GPUs.
        lora: settings for `peft.LoraConfig` (r, lora_alpha, target_modules, ...); None trains or freezes the weights
            themselves, as the model's `freeze` says.
        attn_implementation: eager, sdpa, flash_attention_2 ...; default: the library's choice.
        gradient_checkpointing: recompute layers in the backward pass: less memory, about a third more time.
        loss_chunk: most positions whose logits are held at once while learning; they are computed again in the backward
            pass. With 128k tokens a position takes about 2 MB without. None for all at once.

    Raises:
        ValueError: if `loss_chunk` is below 1, or the LLM is of a kind that cannot answer here, see `pretrained_lm`.
    """

    lm: Any  # a PreTrainedModel, or peft's around one
    new_ids: Tensor

    def __init__(
        self,
        new_tokens: list[int],
        model: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        lora: dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        loss_chunk: int | None = None,
    ) -> None:
        super().__init__()
        if loss_chunk is not None:
            at_least(1, "HFCausalLM", loss_chunk=loss_chunk)
        self.loss_chunk = loss_chunk
        lm = pretrained_lm(model, getattr(torch, dtype), attn_implementation)
        table: Any = lm.get_input_embeddings()  # transformers calls it any module
        self.dim = int(table.weight.shape[1])
        self.new_tokens = new_tokens
        if new_tokens:
            self._grow(lm, max(new_tokens) + 1)
            rows = table(torch.tensor(new_tokens)).detach().float()  # of some LLMs (Gemma's) the table's rows, scaled
            # A table of their own, so that they learn also where the LLM is frozen (LLaSM stage 1).
            self.new_embeddings = nn.Parameter(rows)
            self.register_buffer("new_ids", torch.tensor(new_tokens), persistent=False)
        self.vocab_size = int(table.weight.shape[0])
        self.lm = lm if lora is None else add_lora(lm, lora)
        self.prepare_answers()
        if gradient_checkpointing:  # after LoRA, which would add hooks that only reentrant checkpoints need
            recompute_layers(lm)
        # A frozen LLM that gradients only pass through saves memory too; transformers recomputes in training mode.
        self.recomputes = gradient_checkpointing

    @property
    def settings(self) -> str:
        """The configuration of transformers, the attention in use and LoRA's settings, without names of folders."""
        names = ("_name_or_path", "base_model_name_or_path", "revision", "transformers_version", "peft_version")
        configs = [self.lm.config, *getattr(self.lm, "peft_config", {}).values()]
        held = [{key: value for key, value in c.to_dict().items() if key not in names} for c in configs]
        # peft keeps module names in sets, whose order differs from one process to the next.
        plain = partial(json.dumps, sort_keys=True, default=lambda v: sorted(v) if isinstance(v, set) else str(v))
        return plain([held, self.lm.config._attn_implementation, self.new_tokens])

    @staticmethod
    @torch.no_grad()
    def _grow(lm: Any, size: int) -> None:
        """Extend the vocabulary with rows at the mean of the old ones (official llasm.py:260-270)."""
        old = lm.get_input_embeddings().weight.shape[0]
        if size <= old:
            return
        lm.resize_token_embeddings(size, mean_resizing=False)
        for layer in {lm.get_input_embeddings(), lm.get_output_embeddings()}:
            # In float64: the order of a float32 sum differs between CPUs, and frozen weights are known by a hash.
            total = torch.stack([rows.double().sum(dim=0) for rows in layer.weight[:old].split(8192)]).sum(dim=0)
            layer.weight[old:] = (total / old).to(layer.weight.dtype)

    def unembed(self, states: Tensor) -> Tensor:
        """Logits `[..., V]` of states `[..., H]`, for losses of chosen positions."""
        return self._logits(states)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        turns: Tensor,
        speech: Tensor,
        speech_lens: Tensor,
        loss: bool = True,
        logits: bool = False,
        width: int | None = None,
        targets: int | None = None,
    ) -> LLMOutput:
        """See `LLM.forward`. The vocabulary head runs on the positions that predict a supervised token only, unless
        `logits` asks for all of them: with a vocabulary of 128k it would else be the largest tensor of the step.

        Raises:
            ValueError: if a row is longer than an LLM can read that looks its positions up.
        """
        row = self.splice(input_ids, attention_mask, turns, speech, speech_lens, width=width)
        check_length(self.longest, row.embeds.shape[1])
        # Padding stands on the right, where no real position looks: a mask would only keep SDPA off its fast kernels.
        hidden = self.backbone(inputs_embeds=row.embeds, use_cache=False).last_hidden_state
        labels = torch.where((row.turns > 0) & (row.ids != AUDIO), row.ids, IGNORE)
        out = LLMOutput(hidden, row.mask, row.turns, labels)
        if logits:
            out.logits = self._logits(hidden)
        if loss:
            following = F.pad(labels[:, 1:], (0, 1), value=IGNORE).flatten()
            ignored = following == IGNORE
            number = int((~ignored).sum()) if targets is None else targets
            at = ignored.byte().argsort(stable=True)[:number]  # supervised positions, in their order
            source = hidden if out.logits is None else out.logits
            out.loss_sum = self._loss(
                source.flatten(0, 1).index_select(0, at), following[at], run_head=out.logits is None
            )
        return out

    def _loss(self, states: Tensor, targets: Tensor, run_head: bool) -> Tensor:
        """Cross entropy summed over targets. Shape: states `[n, H]`, or `[n, V]` without `run_head`; targets `[n]`."""

        def summed(states: Tensor, targets: Tensor) -> Tensor:
            logits = self._logits(states) if run_head else states
            return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="sum")

        if self.loss_chunk is None or len(targets) <= self.loss_chunk:
            return summed(states, targets)
        # torch's own linear_cross_entropy rounds the loss to bfloat16 and takes a bare weight, so no LoRA on the head.
        pieces = zip(states.split(self.loss_chunk), targets.split(self.loss_chunk), strict=True)
        return torch.stack([checkpoint(summed, *piece, use_reentrant=False) for piece in pieces]).sum()

    def merge(self, dtype: torch.dtype) -> None:
        """Put LoRA into the weights, hold all in one type and attend by one kernel, for answers alone.

        In float32 the numbers are the same. In bfloat16 the sum is rounded once more, as activations are at each layer.
        On a CPU a token then takes about a quarter less time (measured, see benchmarks).
        """
        self.lm = merged(self.lm) if isinstance(self.lm, PeftModel) else self.lm
        self.lm.to(dtype=dtype)
        if self.lm.config._attn_implementation == "eager" and self.lm._supports_sdpa:
            self.lm.set_attn_implementation("sdpa")
        if self.new_tokens:
            self.new_embeddings.data = self.new_embeddings.data.to(dtype)
