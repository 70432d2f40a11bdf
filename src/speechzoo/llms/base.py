"""What every LLM part offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


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
    """

    dim: int

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
    ) -> LLMOutput:
        """Splice and run.

        Shape: input_ids, attention_mask, turns `[B, L]`; speech `[N, A, H]`; speech_lens `[N]`.
        """

    @abstractmethod
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor, speech: Tensor, speech_lens: Tensor, **kwargs
    ) -> list[Tensor]:
        """Token ids that continue each row, without the prompt, up to and including a stop token. `B times [M]`."""
