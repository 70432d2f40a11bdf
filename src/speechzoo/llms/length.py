"""How long a text may be for an LLM that looks up what its positions are."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

TABLES = {"wpe", "embed_positions", "position_embeddings", "positions_embed"}


def longest_text(lm: PreTrainedModel) -> int | None:
    """Positions of an LLM that looks them up in a table (GPT-2, OPT, GPT-J, MPT); None where it computes them."""
    config: Any = lm.config
    if config.model_type == "mpt":
        return int(config.max_seq_len)
    names = [name for name, module in lm.named_modules() if isinstance(module, nn.Embedding)]
    names += [name for name, _ in lm.named_buffers()]
    looks_up = any(name.rpartition(".")[2] in TABLES for name in names)
    return int(config.max_position_embeddings) if looks_up else None


def check_length(longest: int | None, positions: int, answer: int = 0) -> None:
    """Refuse too long a text in one line: the table would tell by an index, on a GPU by a crash.

    Args:
        longest: see `longest_text`.
        positions: of the question, or of the whole conversation.
        answer: positions that are to be read after these.

    Raises:
        ValueError: if it is too long.
    """
    if longest is not None and positions + answer > longest:
        more, remedy = "", f"set prompt.max_length to at most {longest}"
        if answer:
            more, remedy = f" and {answer} of an answer", "ask less, or set a smaller generation.max_new_tokens"
        raise ValueError(
            f"{positions} positions of speech and text{more} are more than the {longest} that this LLM knows: {remedy}"
        )
