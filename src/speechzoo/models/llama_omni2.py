"""LLaMA-Omni 2: Real-time Spoken Chatbot with Autoregressive Streaming Speech Synthesis (arXiv 2505.02625)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from speechzoo.models.base import SpeechLLM
from speechzoo.models.learning import Objective
from speechzoo.models.llama_omni import LLaMAOmni
from speechzoo.types import SpeechBatch


def units_and_ends(batch: SpeechBatch) -> int:
    """Units of all answers that have some, and the end of each: the targets of a decoder that writes them in order."""
    return 0 if batch.unit_lens is None else int(batch.unit_lens.sum()) + len(batch.unit_lens)


class LLaMAOmni2(LLaMAOmni):
    """As `LLaMAOmni`, with units written by a speech LM while the text is still being generated.

    ```
    audio -> Whisper (frozen) -> concat k frames, MLP -> LLM -> text
                                                          |  last hidden states and tokens of the answer, gated
                                                          v
                                            speech LM: reads R, writes W units, ... -> vocoder
    ```
    Stage I(a) is stage 1 of `LLaMAOmni`; stage I(b) trains the speech LM on text alone (`unit_decoder.fuse: false`),
    stage II speech LM, projection and gate, all else frozen (`recipes/llama_omni2`). They differ in `freeze`,
    `loss_weights`, `init_from` and `fuse`.

    The loss `unit` is next-unit cross entropy over units and the end of each answer.
    """

    objectives: ClassVar[Mapping[str, Objective]] = {**SpeechLLM.objectives, "unit": units_and_ends}
    unit_loss: ClassVar[str | None] = "unit"
