"""LLaMA-Omni: Seamless Speech Interaction with Large Language Models (arXiv 2409.06666)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speechzoo.generation.units import spoken
from speechzoo.models.base import SpeechLLM
from speechzoo.models.fingerprint import fingerprint, refuse_learning
from speechzoo.models.learning import Objective, target_units
from speechzoo.names.spec import resolve, to_factory
from speechzoo.types import HostSide, SpeechBatch, SpeechOutput, present
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

    objectives: ClassVar[Mapping[str, Objective]] = {**SpeechLLM.objectives, "ctc": target_units}
    unit_loss: ClassVar[str | None] = "ctc"

    def __init__(self, *args: Any, unit_decoder: Callable[[int], UnitDecoder], **kwargs: Any) -> None:
        super().__init__(*args, unit_decoder=unit_decoder, **kwargs)
        self.freed = False

    def build(self) -> None:
        super().build()
        make = to_factory(self.specs["unit_decoder"])
        vocabulary = {}
        if getattr(resolve(self.specs["unit_decoder"]["class_path"]), "reads_ids", False):
            if not hasattr(self.llm, "vocab_size"):
                raise ValueError(f"the unit decoder reads tokens: {type(self.llm).__name__} has to have a vocab_size")
            vocabulary["vocab_size"] = self.llm.vocab_size
        self.unit_decoder: UnitDecoder = make(self.llm.dim, **vocabulary)
        if self.unit_decoder.objective != self.unit_loss:
            raise ValueError(
                f"{type(self.unit_decoder).__name__} learns by the loss {self.unit_decoder.objective!r}, whose targets "
                f"{type(self).__name__} does not count: LLaMAOmni takes ctc, LLaMAOmni2 unit"
            )

    @property
    def num_units(self) -> int:
        if hasattr(self, "unit_decoder"):
            return self.unit_decoder.num_units
        spec = self.specs["unit_decoder"]
        default = signature(resolve(spec["class_path"])).parameters["num_units"].default
        return int(spec["init_args"].get("num_units", default))

    def forward(self, batch: SpeechBatch, logits: bool = False) -> SpeechOutput:
        """As `SpeechLLM.forward`. With `batch.answer_states` the encoder, adaptor and LLM do not run: there is the unit
        decoder's loss alone, and no hidden states and logits.

        Raises:
            ValueError: if `logits` are asked of such a batch.
        """
        if batch.answer_states is None:
            return super().forward(batch, logits)
        if logits:
            raise ValueError("logits need the LLM, which a batch with answer_states leaves out")
        positions = present(batch.positions, "positions")
        width = int(positions.max()) if batch.host is None else batch.host.width
        mask = torch.arange(width, device=self.device) < positions[:, None]
        result = SpeechOutput({}, {}, None, mask, batch.turns, batch.labels)
        return self._with_losses(batch, result)

    def add_losses(self, batch: SpeechBatch, result: SpeechOutput) -> None:
        """The unit decoder's loss over the target units of each assistant turn that has them."""
        name = present(self.unit_loss, "unit loss")
        if not self._wants(name):
            return
        if batch.units is None or not len(batch.units):
            # Every process reports the same losses, or their sums over processes wait for each other for ever.
            # One state stands in: a part cut over processes has to be run by all, and its gradients go the same way.
            states = torch.zeros(1, 1, self.llm.dim, device=batch.input_ids.device)
            if result.hidden is not None:
                states = result.hidden[:1, :1]
            tokens = {"ids": batch.input_ids.new_zeros(1, 1)} if self.unit_decoder.reads_ids else {}
            out = self.unit_decoder(states, batch.input_ids.new_ones(1), **tokens)
            result.sums[name] = 0.0 * out.logits.sum()
            result.counters["infeasible_units"] = 0
            return
        host = batch.host
        known = None if host is None else host.answer_lens
        longest = None if known is None else int(known.max())
        where = present(batch.unit_turns, "unit_turns")
        if batch.answer_states is not None:
            states, lens = batch.answer_states, present(batch.answer_state_lens, "answer_state_lens")
        else:
            align = self.unit_decoder.align
            states, lens = answer_states(present(result.hidden, "hidden states"), result.turns, where, align, longest)
        tokens = {"ids": answer_tokens(batch, longest)} if self.unit_decoder.reads_ids else {}
        if host is None or known is None:
            out = self.unit_decoder(states, lens, batch.units, batch.unit_lens, **tokens)
        else:
            out = self.unit_decoder(states, known, host.units, host.unit_lens, **tokens)
        result.sums[name] = out.loss_sum
        result.unit_logits, result.unit_logit_lens = out.logits, out.lens.to(out.logits.device, non_blocking=True)
        result.counters["infeasible_units"] = int(out.infeasible.sum())

    def host_side(self, batch: SpeechBatch) -> HostSide:
        """See `SpeechLLM.host_side`; here also what the unit decoder needs to know: lengths of answers, and units."""
        host = super().host_side(batch)
        if batch.units is not None and len(batch.units):
            where = present(batch.unit_turns, "unit_turns")
            spoken = (batch.turns[where[:, 0]] == where[:, 1:]).sum(dim=1)
            host.answer_lens = spoken if batch.answer_state_lens is None else batch.answer_state_lens
            host.units, host.unit_lens = batch.units, batch.unit_lens
        return host

    def states_fingerprint(self, settings: str) -> str:
        """A hash (64 hex digits) of all that decides the states the unit decoder learns from, conversations aside.

        Every byte of encoder, adaptor and LLM counts, so a stage 1 trained one step further gives another one.

        Args:
            settings: how they are computed: precision, where the encoder's states come from.

        Raises:
            ValueError: if one of these parts learns, or the LLM's loss is wanted, which cached states cannot give.
        """
        parts: dict[str, nn.Module] = {"encoder": self.encoder, "adaptor": self.adaptor, "llm": self.llm}
        refuse_learning(parts, "data.state_cache")
        if self.loss_weights["lm"]:
            raise ValueError("data.state_cache holds no LM loss: set model.loss_weights.lm to 0, or leave it out")
        known = settings, self.encoder.fingerprint, self.specs["adaptor"], self.unit_decoder.align
        return fingerprint(known, parts, self.llm)

    def free_frozen(self) -> int:
        """Give the memory of encoder, adaptor and LLM back; batches then have to bring `answer_states`.

        Names and shapes stay, each weight being one number seen many times, so optimizer and checkpoints are as ever.
        Returns the bytes freed.
        """
        freed = 0
        for part in (self.encoder, self.adaptor, self.llm):
            for weight in part.parameters():
                freed += weight.numel() * weight.element_size()
                weight.data = weight.data.new_full((1,), float("nan")).expand(weight.shape)
        self.freed = True
        return freed

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """See `SpeechLLM.encode`.

        Raises:
            RuntimeError: after `free_frozen`.
        """
        if self.freed:
            raise RuntimeError(
                "encoder and LLM were freed (FreeFrozen): this model only learns from cached states. To answer, leave "
                "that callback out (and SampleTable out where it stays), or load the finished run"
            )
        return super().encode(batch)

    @torch.no_grad()
    def frozen_states(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """The LLM states of `batch.unit_turns`, to be cached and given as `batch.answer_states`. `[Q, M, H], [Q]`."""
        speech, lens = self.encode(batch)
        out = self.llm(batch.input_ids, batch.attention_mask, batch.turns, speech, lens, loss=False)
        where = present(batch.unit_turns, "unit_turns")
        return answer_states(out.hidden, out.turns, where, self.unit_decoder.align)

    @torch.no_grad()
    def units_of_answers(self, batch: SpeechBatch) -> list[Tensor]:
        """What the unit decoder makes of the answers in a batch: it alone, apart from wrong answers. `Q times [U]`."""
        states, lens = self.frozen_states(batch)
        ids = answer_tokens(batch, states.shape[1])
        return spoken(self.unit_decoder, states, lens, [row[:n] for row, n in zip(ids, lens.tolist(), strict=True)])

    @property
    def answer_decoder(self) -> UnitDecoder:
        """See `SpeechLLM.answer_decoder`."""
        return self.unit_decoder


def answer_states(
    hidden: Tensor, turns: Tensor, where: Tensor, align: str, longest: int | None = None
) -> tuple[Tensor, Tensor]:
    """The states that stand for the tokens of some assistant turns.

    Args:
        hidden, turns: `[B, S, H]`, `[B, S]`.
        where: `[Q, 2]`, (row, turn) of each answer.
        align: `predict` takes, for each token, the state that predicts it; `label` the state that has read it.
        longest: M, where it is known without asking the device.

    Shape: `-> [Q, M, H], [Q]`, 0 past each length.
    """
    at = turns[where[:, 0]] == where[:, 1:]
    lens = at.sum(dim=1)
    first = at.int().argmax(dim=1) - (1 if align == "predict" else 0)
    steps = torch.arange(int(lens.max()) if longest is None else longest, device=hidden.device)
    inside = steps < lens[:, None]
    positions = torch.where(inside, first[:, None] + steps, 0)
    return hidden[where[:, :1], positions] * inside[..., None], lens


def answer_tokens(batch: SpeechBatch, longest: int | None = None) -> Tensor:
    """The tokens of the answers with units, from their spans, never from a padding id. `[Q, M]`, 0 past each length.

    Args:
        longest: M, where it is known without asking the device.
    """
    where = present(batch.unit_turns, "unit_turns")
    return answer_states(batch.input_ids[..., None], batch.turns, where, "label", longest)[0][..., 0]
