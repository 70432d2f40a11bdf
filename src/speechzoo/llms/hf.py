"""Any Hugging Face causal LM as the language part: embedding, splice, loss over answers, generation."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM, Cache, LlamaConfig, PreTrainedModel

from speechzoo.generation.cache import growing_cache
from speechzoo.generation.sampling import Decoding
from speechzoo.generation.tokens import Steps, token_steps
from speechzoo.llms.base import LLM, LLMOutput
from speechzoo.llms.lora import add_lora
from speechzoo.llms.splice import Spliced, splice
from speechzoo.names.hugging_face import hub_options
from speechzoo.names.renamed import cache_argument, recompute_layers
from speechzoo.names.shapes import LLAMAS, unread
from speechzoo.system.ranks import any_rank, in_pieces
from speechzoo.types import AUDIO, IGNORE


class HFCausalLM(LLM):
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
    ) -> None:
        super().__init__()
        lm = _pretrained(model, getattr(torch, dtype), attn_implementation)
        table: Any = lm.get_input_embeddings()  # transformers calls it any module
        self.dim = int(table.weight.shape[1])
        self.new_tokens = new_tokens
        if new_tokens:
            self._grow(lm, max(new_tokens) + 1)
            rows = table.weight[new_tokens].detach().float().clone()
            # A table of their own, so that they learn also where the LLM is frozen (LLaSM stage 1).
            self.new_embeddings = nn.Parameter(rows)
            self.register_buffer("new_ids", torch.tensor(new_tokens), persistent=False)
        self.lm = lm if lora is None else add_lora(lm, lora)
        self._cache_argument = cache_argument(self.backbone)
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
            layer.weight[old:] = layer.weight[:old].float().mean(dim=0).to(layer.weight.dtype)

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings `[..., H]` of ids `[...]`; placeholders get those of id 0, to be overwritten."""
        embeds = self.lm.get_input_embeddings()(ids.clamp(min=0))
        if self.new_tokens:
            hit = ids[..., None] == self.new_ids
            chosen = hit.to(self.new_embeddings.dtype) @ self.new_embeddings
            embeds = torch.where(hit.any(-1, keepdim=True), chosen.to(embeds.dtype), embeds)
        return embeds

    def splice(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        turns: Tensor,
        speech: Tensor,
        speech_lens: Tensor,
        padding_side: str = "right",
    ) -> Spliced:
        """Text embeddings with the clips in their places; see `speechzoo.llms.splice`."""
        text = self.embed(input_ids)
        return splice(text, input_ids, attention_mask, turns, speech, speech_lens, padding_side)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        turns: Tensor,
        speech: Tensor,
        speech_lens: Tensor,
        loss: bool = True,
        logits: bool = False,
    ) -> LLMOutput:
        """See `LLM.forward`. The vocabulary head runs on the positions that predict a supervised token only, unless
        `logits` asks for all of them: with a vocabulary of 128k it would else be the largest tensor of the step."""
        row = self.splice(input_ids, attention_mask, turns, speech, speech_lens)
        hidden = self.backbone(
            inputs_embeds=row.embeds, attention_mask=row.mask.long(), position_ids=row.position_ids, use_cache=False
        ).last_hidden_state
        labels = torch.where((row.turns > 0) & (row.ids != AUDIO), row.ids, IGNORE)
        out = LLMOutput(hidden, row.mask, row.turns, labels)
        if logits:
            out.logits = self.head(hidden)
        if loss:
            targets = labels[:, 1:]
            at = targets != IGNORE
            picked = self.head(hidden[:, :-1][at]) if out.logits is None else out.logits[:, :-1][at]
            out.loss_sum = F.cross_entropy(picked.float(), targets[at], reduction="sum")
        return out

    @property
    def backbone(self) -> nn.Module:
        """The decoder without its vocabulary head (LoRA layers are inside it)."""
        return self.lm.base_model if not hasattr(self.lm, "peft_config") else self.lm.base_model.model.base_model

    @property
    def head(self) -> nn.Module:
        """The vocabulary head: `[..., H] -> [..., V]`."""
        return self.lm.get_output_embeddings()

    def steps(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        speech: Tensor,
        speech_lens: Tensor,
        read_last: bool = False,
        **options: Any,
    ) -> Steps:
        """See `LLM.steps`; answers end at the checkpoint's own end-of-sequence tokens unless `eos_token_id` is given.

        Sampling settings that a checkpoint's generation_config brings do not apply.
        """
        decoding = Decoding.of(**{"eos_token_id": self.lm.generation_config.eos_token_id, **options})
        with torch.no_grad():
            turns = torch.zeros_like(input_ids)
            row = self.splice(input_ids, attention_mask, turns, speech, speech_lens, padding_side="left")
        cache = growing_cache(self.lm.config)
        alone = not in_pieces(self)
        read = self._read if alone else self._read_together
        steps = token_steps(read, self.head, self.embed, cache, row, decoding, read_last)
        return steps if alone else self._in_step(steps, input_ids.device)

    def _in_step(self, steps: Steps, device: torch.device) -> Steps:
        """The same steps; a process that is done goes on calling the LLM while others are not, as they need it."""
        yield from steps
        embeds = torch.zeros(1, 1, self.dim, device=device, dtype=self.lm.get_input_embeddings().weight.dtype)
        while any_rank(False, device):
            self.backbone(inputs_embeds=embeds, use_cache=False)

    def _read(self, embeds: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache) -> Tensor:
        """States `[b, n, H]` of new positions; see `token_steps`."""
        return self.backbone(
            inputs_embeds=embeds,
            attention_mask=None if mask is None else mask.long(),
            position_ids=position_ids,
            use_cache=True,
            **{self._cache_argument: cache},
        ).last_hidden_state

    def _read_together(self, embeds: Tensor, *rest: Any) -> Tensor:
        """As `_read`, of weights that all processes gather for it; see `_in_step`."""
        any_rank(True, embeds.device)
        return self._read(embeds, *rest)


def _pretrained(model: str, dtype: torch.dtype, attn_implementation: str | None) -> PreTrainedModel:
    """A pretrained LM; inside `names.shapes.without_reading` one of its configuration, with random numbers."""
    # None would ask on the terminal whether to run a model's own code, and do so after a y.
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if not unread():
        lm: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, **hub_options(model), **options)
        return lm
    try:
        config: Any = AutoConfig.from_pretrained(model, trust_remote_code=False, **hub_options(model))
    except FileNotFoundError:
        if model not in LLAMAS:
            raise
        config = LlamaConfig(**LLAMAS[model], bos_token_id=None, eos_token_id=None)
    return AutoModelForCausalLM.from_config(config, **options)
