"""LLaSM: Large Language and Speech Model (arXiv 2308.15930)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from speechzoo.llms import HFCausalLM
from speechzoo.models.base import SpeechLLM
from speechzoo.types import AUDIO, SpeechBatch


class LLaSM(SpeechLLM):
    """Speech and text in, text out.

    ```
    audio -> Whisper (frozen) -> one linear map -> between <au_start> and <au_end> in the prompt -> LLM -> text
    ```
    Everything is the common speech LLM; what makes it LLaSM are its parts and its two stages (`recipes/llasm`):
    `pretrain` trains the adaptor and the two new embeddings on ASR phrased as an instruction, `finetune` adaptor and
    LLM on cross-modal instructions. The released feature is `WhisperQueries`, the paper's plain reading
    `WhisperEncoder`.

    Args:
        last_clip_only: id of the release's placeholder token `<au_patch>`: of several clips in a row only the last is
            heard, the others are that token's embedding over and over, as the released code does (llasm.py:125-143)
            without meaning to. Default: every clip is heard at its place.
    """

    def __init__(self, *args: Any, last_clip_only: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, last_clip_only=last_clip_only, **kwargs)

    def encode(self, batch: SpeechBatch) -> tuple[Tensor, Tensor]:
        """See `SpeechLLM.encode`."""
        speech, lens = super().encode(batch)
        patch = self.specs["last_clip_only"]
        if patch is None:
            return speech, lens
        rows = torch.where((batch.input_ids == AUDIO) & batch.attention_mask)[0]
        lost = rows[:-1] == rows[1:]  # clips come row by row: one that another of its row follows
        lost = torch.cat([lost, lost.new_zeros(1)])[: len(speech)]
        patches = cast(HFCausalLM, self.llm).embed(torch.full((1,), patch, device=rows.device)).to(speech.dtype)
        return torch.where(lost[:, None, None], patches, speech), lens
