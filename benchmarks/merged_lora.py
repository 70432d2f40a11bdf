"""What merging LoRA does to answers: a model's, merged and not, beside those of the same weights in float32.

    python benchmarks/merged_lora.py llama-omni-tiny --questions checkpoints/zoo/corpus/qa_test.jsonl --limit 100

prints, for each way of holding the LLM, how many answers, and how many rows of units, are the very ones of float32.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch

import speechzoo
from speechzoo.bench.latency import spoken_questions
from speechzoo.data import encode_batch
from speechzoo.llms import HFCausalLM

BATCH = 25
Told = tuple[list[str], list[list[int]]]


@torch.inference_mode()
def answers(model: Any, questions: list[Any], tokens: int) -> Told:
    """Texts and units of the greedy answers."""
    texts: list[str] = []
    units: list[list[int]] = []
    for start in range(0, len(questions), BATCH):
        batch = encode_batch(model.prompt, questions[start : start + BATCH], answer=False, padding_side="left")
        reply = model.respond(batch, max_new_tokens=tokens)
        texts += reply.text
        units += [row.tolist() for row in reply.units or ()]
    return texts, units


def merged(model: Any, dtype: torch.dtype) -> Any:
    """A copy of the model whose LLM has LoRA in its weights."""
    other = copy.deepcopy(model)
    other.llm.merge(dtype)
    return other


def same(ours: list[Any], theirs: list[Any]) -> str:
    """`99 of 100`."""
    return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(theirs)}"


def main() -> None:
    """Ask four times, compare with the answers in float32."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="whatever speechzoo.load reads, its LLM with LoRA")
    parser.add_argument("--questions", type=Path, required=True, help="records with spoken questions")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    args = parser.parse_args()
    questions = spoken_questions(args.questions, args.limit)
    model: Any = speechzoo.load(args.model)
    if not isinstance(model.llm, HFCausalLM):
        parser.error(f"{args.model} has no LLM of transformers")
    ways = {
        "LoRA apart, as saved": lambda: model,
        "merged in bfloat16": lambda: merged(model, torch.bfloat16),
        "merged in float32": lambda: merged(model, torch.float32),
    }
    texts, units = answers(copy.deepcopy(model).float(), questions, args.max_new_tokens)
    for name, build in ways.items():
        told, spoken = answers(build(), questions, args.max_new_tokens)
        said = f", units of {same(spoken, units)}" if units else ""
        print(f"{name}: the answers of float32 in {same(told, texts)}{said}", flush=True)


if __name__ == "__main__":
    main()
