"""LLaMA-Omni: Seamless Speech Interaction with Large Language Models (arXiv 2409.06666)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from speechzoo.models.base import SpeechLLM
from speechzoo.spec import resolve, to_factory
from speechzoo.types import SpeechBatch, SpeechOutput, SpeechReply
from speechzoo.units import UnitDecoder


class LLaMAOmni(SpeechLLM):
    """Speech in, text and discrete speech units out.

    ```
    audio -> Whisper (frozen) -> concat k frames, MLP -> LLM -> text
                                                          |  last hidden states of the answer
                                                          v
                                                  unit decoder (CTC) -> units -> vocoder
    ```
    Stage 1 trains adaptor and LLM on text answers, stage 2 the unit decoder alone (`recipes/llama_omni`); the two
    differ in `freeze`, `loss_weights` and `init_from` only. Nothing is detached: with both losses on, CTC gradients
    reach the LLM, as in the official joint mode.

    Args:
        unit_decoder: makes the unit decoder from the LLM's width.
    """

    def __init__(self, *args: Any, unit_decoder: Callable[[int], UnitDecoder], **kwargs: Any) -> None:
        super().__init__(*args, unit_decoder=unit_decoder, **kwargs)

    def build(self) -> None:
        super().build()
        self.unit_decoder: UnitDecoder = to_factory(self.specs["unit_decoder"])(self.llm.dim)

    @property
    def num_units(self) -> int:
        if hasattr(self, "unit_decoder"):
            return self.unit_decoder.num_units
        spec = self.specs["unit_decoder"]
        default = signature(resolve(spec["class_path"])).parameters["num_units"].default
        return spec["init_args"].get("num_units", default)

    def add_losses(self, batch: SpeechBatch, result: SpeechOutput) -> None:
        """CTC over the target units of each assistant turn that has them."""
        if not self._wants("ctc"):
            return
        if batch.units is None or not len(batch.units):
            # Every process reports the same losses, or their sums over processes wait for each other for ever.
            result.sums["ctc"] = result.hidden.new_zeros(())
            if self.training:
                states = result.hidden.new_zeros(1, 1, result.hidden.shape[-1])
                result.sums["ctc"] = 0.0 * self.unit_decoder(states, batch.input_ids.new_ones(1)).logits.sum()
            return
        states, lens = answer_states(result.hidden, result.turns, batch.unit_turns, self.unit_decoder.align)
        out = self.unit_decoder(states, lens, batch.units, batch.unit_lens)
        result.sums["ctc"] = out.loss_sum
        result.unit_logits, result.unit_logit_lens = out.logits, out.lens
        result.counters["infeasible_units"] = int(out.infeasible.sum())

    @torch.no_grad()
    def respond(self, batch: SpeechBatch, **generate: Any) -> SpeechReply:
        """Text and units of each answer. The states are those of one pass over question and answer together."""
        speech, speech_lens = self.encode(batch)
        answers = self.answer_ids(batch, speech, speech_lens, **generate)
        lens = torch.tensor([len(ids) for ids in answers], device=batch.input_ids.device)
        width = int(lens.max())
        ids = torch.stack([torch.nn.functional.pad(a, (0, width - len(a)), value=self.prompt.pad_id) for a in answers])
        inside = torch.arange(width, device=ids.device) < lens[:, None]
        new = int(batch.turns.max()) + 1
        whole = replace(
            batch,
            input_ids=torch.cat([batch.input_ids, ids], dim=1),
            attention_mask=torch.cat([batch.attention_mask, inside], dim=1),
            turns=torch.cat([batch.turns, inside * new], dim=1),
            counts=None,
        )
        out = self.llm(whole.input_ids, whole.attention_mask, whole.turns, speech, speech_lens, loss=False)
        rows = torch.arange(len(ids), device=ids.device)
        where = torch.stack([rows, torch.full_like(rows, new)], dim=1)
        align = getattr(self.unit_decoder, "answer_align", self.unit_decoder.align)
        states, lens = answer_states(out.hidden, out.turns, where, align)
        units = self.unit_decoder.decode(states, lens)
        return SpeechReply([self.prompt.decode(a) for a in answers], units=units)


def answer_states(hidden: Tensor, turns: Tensor, where: Tensor, align: str) -> tuple[Tensor, Tensor]:
    """The states that stand for the tokens of some assistant turns.

    Args:
        hidden, turns: `[B, S, H]`, `[B, S]`.
        where: `[Q, 2]`, (row, turn) of each answer.
        align: `predict` takes, for each token, the state that predicts it; `label` the state that has read it.

    Shape: `-> [Q, M, H], [Q]`, 0 past each length.
    """
    at = turns[where[:, 0]] == where[:, 1:]
    lens = at.sum(dim=1)
    first = at.int().argmax(dim=1) - (1 if align == "predict" else 0)
    steps = torch.arange(int(lens.max()), device=hidden.device)
    inside = steps < lens[:, None]
    positions = torch.where(inside, first[:, None] + steps, 0)
    return hidden[where[:, :1], positions] * inside[..., None], lens
