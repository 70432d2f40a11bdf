"""What every LLM part offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from speechzoo.generation.tokens import Generated, Question, Steps, collect_ids, collect_states


@dataclass
class LLMOutput:
    """States of a spliced row, and its loss over the supervised tokens."""

    hidden: Tensor  # [B, S, H] after the final norm
    mask: Tensor  # [B, S]
    turns: Tensor  # [B, S]
    labels: Tensor  # [B, S]
    loss_sum: Tensor | None = None  # scalar: next-token cross entropy summed over supervised tokens
    logits: Tensor | None = None  # [B, S, V]


class LLM(nn.Module, ABC):
    """A causal language model that owns its embedding and the splice of speech into text.

    The first argument of a subclass's constructor is `new_tokens`, the ids its pretrained weights have never seen;
    the model fills it in.

    Attributes:
        dim: width H of its states.
        vocab_size: V, its tokens are 0 ... V - 1; only unit decoders that read the answer's tokens ask for it.
    """

    dim: int
    vocab_size: int

    @property
    def settings(self) -> str:
        """What besides the weights decides the states: together with them it says whether cached states still hold."""
        return repr(self)

    @abstractmethod
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
        """Splice and run.

        Args:
            width, targets: S and the number of supervised tokens, where they are known without asking the device.

        Shape: input_ids, attention_mask, turns `[B, L]`; speech `[N, A, H]`; speech_lens `[N]`.
        """

    @abstractmethod
    def steps(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        speech: Tensor,
        speech_lens: Tensor,
        read_last: bool = False,
        **options: Any,
    ) -> Steps:
        """Answer each row, a token at a time; greedy unless `options` (see `Decoding`) say otherwise.

        Args:
            read_last: also read each row's last token, see `token_steps`.
        """

    def refilled(self, questions: Iterable[Question], read_last: bool = False, **options: Any) -> Steps:
        """As `steps` for any number of batches, whose rows are numbered on from one to the next.

        Args:
            questions: taken as they are needed.
            options: see `Decoding`. An LLM that can put a question where an answer ended writes `slots` answers at a
                time; here batch follows upon batch.
        """
        first = 0
        for question in questions:
            for step in self.steps(*question, read_last, **options):
                yield replace(step, rows=[first + row for row in step.rows])
            first += len(question[0])

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, speech: Tensor, speech_lens: Tensor, **options: Any
    ) -> list[Tensor]:
        """Token ids that continue each row, without the prompt, up to and including a stop token. `B times [M]`."""
        steps = self.steps(input_ids, attention_mask, speech, speech_lens, **options)
        return collect_ids(steps, len(input_ids), input_ids.device)

    @torch.no_grad()
    def generate_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        speech: Tensor,
        speech_lens: Tensor,
        read_last: bool = False,
        **options: Any,
    ) -> Generated:
        """As `generate`, with the state that predicts each token, or with `read_last` the one that has read it."""
        steps = self.steps(input_ids, attention_mask, speech, speech_lens, read_last, **options)
        return collect_states(steps, read_last)
