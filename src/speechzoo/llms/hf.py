"""Any Hugging Face causal LM as the language part: embedding, splice, loss over answers, generation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import Cache

from speechzoo.generation.cache import GrowingLayer, growing_cache
from speechzoo.generation.refill import slot_steps
from speechzoo.generation.sampling import Decoding
from speechzoo.generation.slots import Slots
from speechzoo.generation.tokens import Question, Steps, token_steps
from speechzoo.llms.base import LLM, LLMOutput
from speechzoo.llms.length import check_length, longest_text
from speechzoo.llms.loading import pretrained_lm
from speechzoo.llms.logits import finish
from speechzoo.llms.lora import add_lora, merged
from speechzoo.llms.splice import Spliced, splice
from speechzoo.names.renamed import cache_argument, recompute_layers
from speechzoo.names.spec import at_least
from speechzoo.system.ranks import any_rank, in_pieces, is_sharded
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
        self.longest = longest_text(lm)
        self._cache_argument = cache_argument(self.backbone)
        kinds = {type(layer).__name__ for layer in growing_cache(lm.config).layers}
        self._recurrent = kinds == {"LinearAttentionLayer"}  # Mamba and its kin
        self._slots: Slots | None = None
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

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings `[..., H]` of ids `[...]`; placeholders get those of id 0, to be overwritten."""
        embeds = self.lm.get_input_embeddings()(ids.clamp(min=0))
        if self.new_tokens:
            hit = ids[..., None] == self.new_ids
            chosen = hit.to(self.new_embeddings.dtype) @ self.new_embeddings
            embeds = torch.where(hit.any(-1, keepdim=True), chosen.to(embeds.dtype), embeds)
        return embeds

    def unembed(self, states: Tensor) -> Tensor:
        """Logits `[..., V]` of states `[..., H]`, for losses of chosen positions."""
        return self._logits(states)

    def _logits(self, states: Tensor) -> Tensor:
        return finish(self.head(states), self.lm.config.get_text_config())

    def splice(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        turns: Tensor,
        speech: Tensor,
        speech_lens: Tensor,
        padding_side: str = "right",
        width: int | None = None,
    ) -> Spliced:
        """Text embeddings with the clips in their places; see `speechzoo.llms.splice`."""
        text = self.embed(input_ids)
        return splice(text, input_ids, attention_mask, turns, speech, speech_lens, padding_side, width)

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

    @property
    def backbone(self) -> nn.Module:
        """The decoder without its vocabulary head (LoRA layers are inside it)."""
        return self.lm.base_model if not hasattr(self.lm, "peft_config") else self.lm.base_model.model.base_model

    @property
    def head(self) -> nn.Module:
        """The vocabulary head: `[..., H] -> [..., V]`, logits but for what `finish` does to them."""
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

        Sampling settings that a checkpoint's generation_config brings do not apply. An LLM that is cut over processes
        keeps to the dynamic cache.

        Raises:
            ValueError: if a question and `max_new_tokens` are more than an LLM can read that looks its positions up.
        """
        decoding = self._decoding(options)
        if decoding.cache_implementation == "static" and not is_sharded(self):
            question = input_ids, attention_mask, speech, speech_lens
            return self._in_slots([question], len(input_ids), decoding, read_last, len(input_ids))
        with torch.no_grad():
            turns = torch.zeros_like(input_ids)
            row = self.splice(input_ids, attention_mask, turns, speech, speech_lens, padding_side="left")
        check_length(self.longest, row.embeds.shape[1], decoding.max_new_tokens - 1 + read_last)
        cache = growing_cache(self.lm.config)
        alone = not in_pieces(self)
        read = self._read if alone else self._read_together
        steps = token_steps(read, self._logits, self.embed, cache, row, decoding, read_last)
        return steps if alone else self._in_step(steps, input_ids.device)

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

    def refilled(self, questions: Iterable[Question], read_last: bool = False, **options: Any) -> Steps:
        """See `LLM.refilled`; 8 slots where `options` name no number. An LLM that is cut over processes answers batch
        after batch."""
        if is_sharded(self):
            return super().refilled(questions, read_last, **options)
        decoding = self._decoding(options)
        return self._in_slots(questions, decoding.slots or 8, decoding, read_last)

    def _decoding(self, options: dict[str, Any]) -> Decoding:
        return Decoding.of(**Decoding.merged(self.lm.generation_config.eos_token_id, {}, options))

    def _in_slots(
        self,
        questions: Iterable[Question],
        number: int,
        decoding: Decoding,
        read_last: bool,
        rows: int | None = None,
    ) -> Steps:
        """Steps of answers in a static cache. What was compiled or captured is kept, with the cache, for the next.

        Raises:
            ValueError: if the LLM has layers that need another cache, or an attention that takes no mask or goes by the
                number of keys (GPT-Neo's local one).
        """
        attention = self.lm.config._attn_implementation
        others = {type(layer).__name__ for layer in growing_cache(self.lm.config).layers} - {GrowingLayer.__name__}
        if not self.lm._can_compile_fullgraph:  # by which transformers knows it
            others.add(type(self.backbone).__name__)
        if self.lm.config.model_type == "bloom" or getattr(self.lm.config, "alibi", False):
            others.add("ALiBi")  # which is made of the mask of each row
        if others or attention not in ("eager", "sdpa"):
            raise ValueError(
                "a static cache (generation.cache_implementation, generation.slots) is for LLMs whose layers all see "
                "the whole text, with attn_implementation eager or sdpa; this one has "
                f"{', '.join(sorted(others)) or attention}: leave these settings out"
            )
        weights = [*self.parameters(), *self.buffers()]
        device = weights[0].device
        half = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        # A graph reads weights where they lay when it was captured; what inference mode made cannot change outside it.
        modes = decoding.compile, self.training, half, torch.is_inference_mode_enabled()
        key = number, modes, tuple(weight.data_ptr() for weight in weights)
        slots, self._slots = self._slots, None  # a second stream meanwhile makes slots of its own
        if slots is None or slots.key != key:
            empty = partial(growing_cache, self.lm.config)
            slots = Slots(
                self._read, self._logits, self.embed, empty, number, device, decoding.compile, key, self.longest
            )
        try:
            prompts = self._prompts(questions, decoding.max_new_tokens - 1 + read_last)
            yield from slot_steps(slots, prompts, decoding, rows, read_last)
        finally:
            if slots.costly:
                self._slots = slots

    def _prompts(self, questions: Iterable[Question], more: int) -> Iterator[Tensor]:
        """Embeddings of each question, without padding, after which so many positions are read. `[S, H]` each."""
        for ids, mask, speech, lens in questions:
            row = self.splice(ids, mask, torch.zeros_like(ids), speech, lens)
            check_length(self.longest, row.embeds.shape[1], more)
            for embeds, size in zip(row.embeds, row.mask.sum(dim=1).tolist(), strict=True):
                yield embeds[:size]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_slots": None}  # a captured graph cannot be copied

    def _in_step(self, steps: Steps, device: torch.device) -> Steps:
        """The same steps; a process that is done goes on calling the LLM while others are not, as they need it."""
        yield from steps
        embeds = torch.zeros(1, 1, self.dim, device=device, dtype=self.lm.get_input_embeddings().weight.dtype)
        while any_rank(False, device):
            self.backbone(inputs_embeds=embeds, use_cache=False)

    def _read(self, embeds: Tensor, mask: Tensor | None, position_ids: Tensor, cache: Cache) -> Tensor:
        """States `[b, n, H]` of new positions; see `token_steps`."""
        if self._recurrent and embeds.shape[1] == 1:
            mask = None  # no padding is in the state; a mask of all positions would be taken for the token's own
        return self.backbone(
            inputs_embeds=embeds,
            attention_mask=mask if mask is None or mask.dim() == 4 else mask.long(),
            position_ids=position_ids,
            use_cache=True,
            **{self._cache_argument: cache},
        ).last_hidden_state

    def _read_together(self, embeds: Tensor, *rest: Any) -> Tensor:
        """As `_read`, of weights that all processes gather for it; see `_in_step`."""
        any_rank(True, embeds.device)
        return self._read(embeds, *rest)
