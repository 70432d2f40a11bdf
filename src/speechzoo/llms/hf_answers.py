"""How a causal LM of transformers reads speech between text, and answers: by a cache that grows, or in slots."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from speechzoo.generation.cache import GrowingLayer, growing_cache
from speechzoo.generation.refill import slot_steps
from speechzoo.generation.sampling import Decoding
from speechzoo.generation.slots import Slots
from speechzoo.generation.tokens import Question, Steps, token_steps
from speechzoo.llms.base import LLM
from speechzoo.llms.length import check_length, longest_text
from speechzoo.llms.logits import finish
from speechzoo.llms.splice import Spliced, splice
from speechzoo.names.renamed import cache_argument
from speechzoo.system.ranks import any_rank, in_pieces, is_sharded


class HFAnswers(LLM):
    """The part of `HFCausalLM` that reads and answers."""

    lm: Any  # a PreTrainedModel, or peft's around one
    new_tokens: list[int]
    new_ids: Tensor
    new_embeddings: nn.Parameter

    def prepare_answers(self) -> None:
        """Note what answering needs to know of the LLM, once it is there."""
        config = self.lm.config
        self.longest = longest_text(self.lm)
        self._cache_argument = cache_argument(self.backbone)
        kinds = {type(layer).__name__ for layer in growing_cache(config).layers}
        self._recurrent = kinds == {"LinearAttentionLayer"}  # Mamba and its kin
        self._slots: Slots | None = None

    @property
    def backbone(self) -> nn.Module:
        """The decoder without its vocabulary head (LoRA layers are inside it)."""
        return self.lm.base_model if not hasattr(self.lm, "peft_config") else self.lm.base_model.model.base_model

    @property
    def head(self) -> nn.Module:
        """The vocabulary head: `[..., H] -> [..., V]`, logits but for what `finish` does to them."""
        return self.lm.get_output_embeddings()

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings `[..., H]` of ids `[...]`; placeholders get those of id 0, to be overwritten."""
        embeds = self.lm.get_input_embeddings()(ids.clamp(min=0))
        if self.new_tokens:
            hit = ids[..., None] == self.new_ids
            chosen = hit.to(self.new_embeddings.dtype) @ self.new_embeddings
            embeds = torch.where(hit.any(-1, keepdim=True), chosen.to(embeds.dtype), embeds)
        return embeds

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
