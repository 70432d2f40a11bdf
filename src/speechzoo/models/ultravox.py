"""Ultravox (fixie-ai/ultravox, versions 0.4 to 0.6): a frozen LLM is to answer speech as it answers its transcript."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speechzoo.llms import HFCausalLM
from speechzoo.models.base import SpeechLLM
from speechzoo.models.fingerprint import fingerprint, refuse_learning
from speechzoo.models.learning import Objective, answers, supervised_tokens
from speechzoo.names.spec import at_least
from speechzoo.types import SpeechBatch, SpeechOutput, Written, present


class Ultravox(SpeechLLM):
    """Speech and text in, text out; the adaptor learns by distillation.

    ```
    audio      -> Whisper -> stack 8, SwiGLU -> LLM -> its distribution at each answer token   (student)
    transcript ------------------------------> LLM -> the same                                 (teacher, no gradient)
    ```
    The loss is the KL divergence from teacher to student, both at a temperature, over the positions that predict an
    answer token (`kl`, per token), and once more over those that predict the end of an answer (`kl_end`, per answer):
    `_compute_kl_loss` and `_get_prediction_mask` of the released code, which takes the end of the last answer of a row;
    here that of every answer. Answers should be the LLM's own, given the transcript. Next-token cross entropy is there
    too, as for every architecture: `loss_weights: {lm: 0}` for the released training. With `data.teacher_cache` the
    teacher reads each transcript once, and a step runs the student alone.

    There is no paper. The recipe in `recipes/ultravox` tells what the released configurations say.

    Args:
        temperature: of both distributions, 2 in the released code. The loss is not multiplied by its square there.
    """

    objectives: ClassVar[Mapping[str, Objective]] = {
        **SpeechLLM.objectives,
        "kl": supervised_tokens,
        "kl_end": answers,
    }
    reads: ClassVar[bool] = True

    def __init__(self, *args: Any, temperature: float = 2.0, **kwargs: Any) -> None:
        super().__init__(*args, temperature=temperature, **kwargs)
        at_least(1e-3, "Ultravox", temperature=temperature)

    def add_losses(self, batch: SpeechBatch, result: SpeechOutput) -> None:
        """Divergence from what the LLM says to the written conversation."""
        if not self._wants("kl") and not self._wants("kl_end"):
            return
        llm = cast(HFCausalLM, self.llm)
        written, number = present(batch.written, "written"), self.num_targets(batch)["kl"]
        with torch.no_grad():
            states = self._read(written, number) if written.states is None else written.states
            teacher = llm.unembed(states) / self.specs["temperature"]
        where = predicting(result.turns, number)
        student = llm.unembed(at(where, present(result.hidden, "hidden states"))) / self.specs["temperature"]
        wanted, given = F.log_softmax(teacher.float(), dim=-1), F.log_softmax(student.float(), dim=-1)
        divergence = F.kl_div(given, wanted, log_target=True, reduction="none").sum(dim=-1)
        result.sums["kl"] = divergence.sum()
        result.sums["kl_end"] = (divergence * at(where, ends(result.turns))).sum()

    def _read(self, written: Written, number: int) -> Tensor:
        """States of the LLM that predict the supervised tokens, so many, of what it reads. `[P, H]`."""
        none = torch.zeros(0, 1, self.llm.dim, device=self.device), torch.zeros(0, dtype=torch.long, device=self.device)
        width = written.input_ids.shape[1]  # no clip is spliced in; the mask would be asked of the device
        read = self.llm(written.input_ids, written.attention_mask, written.turns, *none, loss=False, width=width)
        return at(predicting(read.turns, number), read.hidden)

    def teacher_fingerprint(self, settings: str) -> str:
        """A hash (64 hex digits) of all that decides the teacher's states, conversations aside.

        Every byte of the LLM counts, and neither encoder nor adaptor, which the teacher does without.

        Args:
            settings: how they are computed: precision.

        Raises:
            ValueError: if the LLM learns, or neither loss that has a teacher is wanted.
        """
        llm: dict[str, nn.Module] = {"llm": self.llm}
        refuse_learning(llm, "data.teacher_cache")
        if not self.loss_weights["kl"] and not self.loss_weights["kl_end"]:
            raise ValueError(
                "data.teacher_cache is for the losses kl and kl_end: give one a weight in model.loss_weights, or leave "
                "it out"
            )
        return fingerprint((settings, "teacher"), llm, self.llm)

    @torch.no_grad()
    def teacher_states(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """The states that predict each row's supervised tokens, to be cached and given as `batch.written.states`.

        Args:
            batch: conversations of text alone, transcripts in the place of clips.

        Shape: `-> [B, M, H], [B]`, M supervised tokens of the row that has most, 0 past each length.
        """
        read = self._read(Written(batch.input_ids, batch.attention_mask, batch.turns), self.num_targets(batch)["kl"])
        lens = (batch.turns > 0).sum(dim=1)
        return pad_sequence(read.split(lens.tolist()), batch_first=True), lens


def predicting(turns: Tensor, number: int) -> Tensor:
    """Positions that predict a supervised token, row by row: so many. Shape: `[B, S] -> [number]`."""
    others = F.pad(turns[:, 1:] <= 0, (0, 1), value=True).flatten()
    return others.byte().argsort(stable=True)[:number]  # a boolean index would wait for the device


def ends(turns: Tensor) -> Tensor:
    """Which positions predict the last token of an answer. Shape: `[B, S] -> [B, S]`, bool."""
    following, later = F.pad(turns[:, 1:], (0, 1)), F.pad(turns[:, 2:], (0, 2))
    return (following > 0) & (later != following)


def at(positions: Tensor, values: Tensor) -> Tensor:
    """Values at positions of the flattened batch. Shape: `[P], [B, S, ...] -> [P, ...]`."""
    return values.flatten(0, 1).index_select(0, positions)
