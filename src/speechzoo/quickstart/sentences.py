"""Everyday English sentences, drawn from the small LLM itself: text of its own kind, free of anybody's rights."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechzoo.system.cpu import fast_bfloat16
from speechzoo.system.files import read_jsonl, write_jsonl

STARTS = (
    "I You He She We They The A My Your This That It There When If What Where How Why Who Please Do Can Is Are One "
    "Some Many People Every In On After Before His Her Our Today Yesterday Tomorrow Tell Let Never Most Two Three"
).split()
SENTENCE = re.compile(r"[A-Z][a-zA-Z' ,]*[.?]")
WORDS = range(3, 15)
TOKENS = 22
ROWS = 128  # sentences begun together


def draw_sentences(
    file: Path, llm: Path, count: int, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> list[str]:
    """Sample sentences of 3 to 14 plain words, all different; what `file` holds already is kept.

    Two in three draws are thrown away: cut off, too short, with digits or signs. The draws differ between CPU kinds.

    Args:
        file: JSONL of `{"text"}`, written anew after each batch.
        llm: folder of the LLM.
        count: how many.
        progress: called as ``progress(done, total)``.
    """
    found = {row["text"]: None for row in read_jsonl(file)} if file.is_file() else {}
    tokenizer = AutoTokenizer.from_pretrained(llm)
    dtype = torch.bfloat16 if fast_bfloat16() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(llm, dtype=dtype).eval()
    begin = [ids for word in STARTS if len(ids := tokenizer(word).input_ids) == 1]
    while len(found) < count:
        rng = random.Random(f"{seed} {len(found)}")  # drawn anew, so that a stop between two batches changes nothing
        torch.manual_seed(rng.randrange(1 << 30))
        rows = torch.tensor([[0, *rng.choice(begin)] for _ in range(ROWS)])  # 0 begins a document
        with torch.no_grad():
            ids = model.generate(
                rows, max_new_tokens=TOKENS, do_sample=True, temperature=0.8, top_p=0.95, top_k=0, pad_token_id=2
            )
        for text in tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True):
            match = SENTENCE.match(text.strip())
            if match and len(match.group().split()) in WORDS:
                found[match.group()] = None
        write_jsonl(file, [{"text": text} for text in list(found)[:count]])
        if progress is not None:
            progress(min(count, len(found)), count)
    return list(found)[:count]
