"""LLaSM: Large Language and Speech Model (arXiv 2308.15930)."""

from __future__ import annotations

from speechzoo.models.base import SpeechLLM


class LLaSM(SpeechLLM):
    """Speech and text in, text out.

    ```
    audio -> Whisper (frozen) -> one linear map -> between <au_start> and <au_end> in the prompt -> LLM -> text
    ```
    Everything is the common speech LLM; what makes it LLaSM are its parts and its two stages (`recipes/llasm`):
    `pretrain` trains the adaptor and the two new embeddings on ASR phrased as an instruction, `finetune` adaptor and
    LLM on cross-modal instructions. The released feature is `WhisperQueries`, the paper's plain reading
    `WhisperEncoder`.
    """
