"""What a training step of LLaMA-Omni costs on a CPU, with and without caches, beside what the official code took."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from speechzoo.audio import SAMPLE_RATE
from speechzoo.bench.sizes import SIZES, random_model
from speechzoo.callbacks.cost import peak_memory_mb, reset_peak
from speechzoo.models import LLaMAOmni
from speechzoo.system.files import write_json
from speechzoo.training.compiled import compile_layers
from speechzoo.training.freeze import freeze
from speechzoo.types import AUDIO, SpeechBatch, present

OFFICIAL = {"stage1": 7.46, "stage2": 7.10}
"""CPU seconds of a step of the official code (forward and backward, two conversations) with a model of this size in
float32, best of 3, flash attention stood in by SDPA. Taken on a shared machine with two cores, which need not be this
one: `calibration` says how fast this one is."""

FREEZE = {"stage1": ["^encoder\\.", "^unit_decoder\\."], "stage2": ["^encoder\\.", "^adaptor\\.", "^llm\\."]}
ARMS = {
    "stage1_no_cache": "padded window, no cache",
    "stage1": "padded window, encoder states cached",
    "stage1_bf16": "the same, arithmetic in bfloat16 as the recipes have it",
    "stage1_trimmed_no_cache": "clip at its real length, no cache",
    "stage1_trimmed": "clip at its real length, encoder states cached",
    "stage1_pieces": "the same as stage1, logits of 32 positions at a time",
    "stage1_compiled": "the same as stage1, layers compiled",
    "stage2_no_cache": "padded window, no cache",
    "stage2_features": "padded window, encoder states cached",
    "stage2": "LLM states cached",
    "stage2_bf16": "the same, arithmetic in bfloat16 as the recipes have it",
    "stage2_compiled": "LLM states cached, layers compiled",
    "stage2_freed": "LLM states cached, encoder and LLM freed",
    "stage1_official_work": "our code made to do what the official does: also logits of all positions",
    "stage2_official_work": "the same, with the LLM's loss",
}
STATES = ("stage2", "stage2_bf16", "stage2_compiled", "stage2_freed")
"""Arms whose batches bring the LLM's states."""

VOCAB = SIZES["mid"].llm["vocab_size"]
PROMPT = 63  # ids, one of which stands for the clip: with its 300 positions 362
ANSWER, UNITS = 52, 553


def conversations(seconds: float = 3.0, rows: int = 2) -> SpeechBatch:
    """Spoken questions of noise with answers of random tokens and units, as long as those the official code was given.

    Args:
        seconds: length of each clip.
        rows: number of conversations.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(256, VOCAB, (rows, PROMPT + ANSWER), generator=generator)
    ids[:, 45] = AUDIO
    turns = torch.zeros_like(ids)
    turns[:, PROMPT:] = 1
    # Neighbouring units differ, as in targets without repeats.
    units = torch.randint(1, 1000, (rows, UNITS), generator=generator).cumsum(1) % 1000
    audio = 0.1 * torch.randn(rows, int(SAMPLE_RATE * seconds), generator=generator)
    return SpeechBatch(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        turns,
        audio=audio,
        audio_lens=torch.full((rows,), audio.shape[1]),
        units=units,
        unit_lens=torch.full((rows,), UNITS),
        unit_turns=torch.tensor([(row, 1) for row in range(rows)]),
    )


@torch.no_grad()
def cached(model: LLaMAOmni, batch: SpeechBatch, arm: str) -> SpeechBatch:
    """The batch as the data module gives it with the caches of an arm."""
    if arm.endswith(("no_cache", "official_work")):
        return batch
    positions = (batch.attention_mask.sum(dim=1) - 1) + model.audio_positions(present(batch.audio_lens, "audio_lens"))
    if arm in STATES:
        states, lens = model.frozen_states(batch)
        given: dict[str, Any] = {"answer_states": states, "answer_state_lens": lens, "positions": positions}
    else:
        states, lens = model.encoder(batch.audio, batch.audio_lens)
        given = {"features": states, "feature_lens": lens}
    return replace(batch, audio=None, audio_lens=None, **given)


def stage(model: LLaMAOmni, arm: str) -> None:
    """Freeze and weigh losses as the recipe of the arm's stage does."""
    name = arm.partition("_")[0]
    model.requires_grad_(True)
    freeze(model, FREEZE[name])
    model.loss_weights.update({"stage1": {"lm": 1.0, "ctc": 0.0}, "stage2": {"lm": 0.0, "ctc": 1.0}}[name])
    cast(Any, model.encoder).window = "trimmed" if "trimmed" in arm else "padded"
    cast(Any, model.llm).loss_chunk = 32 if arm.endswith("pieces") else None
    if arm.endswith("compiled"):
        compile_layers(model, {"stage1": ["encoder", "llm"], "stage2": ["unit_decoder"]}[name])
    if arm == "stage2_official_work":
        model.loss_weights["lm"] = 1.0
    model.train()


def step(model: LLaMAOmni, batch: SpeechBatch, arm: str) -> float:
    """Forward and backward; returns the loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=arm.endswith("bf16")):
        out = model(batch, logits=arm.endswith("official_work"))
        loss: Tensor = sum(model.loss_weights[name] * value for name, value in out.losses.items())
    loss.backward()
    model.zero_grad()
    return loss.item()


def cpu_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Least CPU time of all threads that one of several runs took; one run before them is not counted."""
    run()
    took = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        took.append(time.process_time() - start)
    return min(took)


def measure(arm: str, repeats: int, threads: int) -> dict[str, float]:
    """One arm in this process, which should be a fresh one: `cpu_seconds`, `loss`, `peak_memory_mb`."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder), SIZES["mid"])
        stage(model, arm)
        batch = cached(model, conversations(), arm)
        if arm == "stage2_freed":
            model.free_frozen()
        reset_peak(torch.device("cpu"))  # it is then that of the steps, not of loading
        loss = step(model, batch, arm)
        seconds = cpu_seconds(lambda: step(model, batch, arm), repeats)
        return {"cpu_seconds": seconds, "loss": loss, "peak_memory_mb": peak_memory_mb(torch.device("cpu"))}


def calibration(threads: int) -> float:
    """Billions of float32 operations a CPU second in matrix products of 1024 x 1024, the best of 10."""
    torch.set_num_threads(threads)
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / cpu_seconds(lambda: a @ a, 10) / 1e9


def main(args: argparse.Namespace) -> int:
    """`speechzoo bench train`; returns the exit code."""
    args.arms, args.threads = args.arms or list(ARMS), args.threads or torch.get_num_threads()
    if unknown := set(args.arms) - set(ARMS):
        print(f"speechzoo bench train: no arm {sorted(unknown)[0]!r}; there are {', '.join(ARMS)}", file=sys.stderr)
        return 2
    rate = calibration(args.threads)
    figures: dict[str, Any] = {
        "threads": args.threads,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "calibration_gflop_per_cpu_second": round(rate, 1),
    }
    print(f"float32 products: {rate:.1f} GFLOP per CPU second, {args.threads} threads")
    losses: dict[str, float] = {}
    for arm in args.arms:
        # A process of its own for each, so that its peak memory is its own.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            found = pool.submit(measure, arm, args.repeats, args.threads).result()
        name = arm.partition("_")[0]
        ratio = found["cpu_seconds"] / OFFICIAL[name]
        losses[arm] = found["loss"]
        figures[f"{arm}_cpu_seconds"] = round(found["cpu_seconds"], 3)
        figures[f"{arm}_over_official"] = round(ratio, 3)
        figures[f"{arm}_peak_memory_mb"] = round(found["peak_memory_mb"])
        print(
            f"{arm:<24}{found['cpu_seconds']:8.2f} CPU s a step {ratio:8.3f} x official ({OFFICIAL[name]})"
            f"{found['peak_memory_mb']:8.0f} MB   {ARMS[arm]}",
            flush=True,
        )
    for name in OFFICIAL:
        if {name, f"{name}_no_cache"} <= set(losses):
            figures[f"{name}_loss_change_by_cache"] = abs(losses[name] / losses[f"{name}_no_cache"] - 1)
        for way in ("pieces", "compiled"):
            if {name, f"{name}_{way}"} <= set(losses):
                figures[f"{name}_loss_change_{way}"] = abs(losses[f"{name}_{way}"] / losses[name] - 1)
        work = figures.get(f"{name}_official_work_cpu_seconds")
        if name in losses and work:
            figures[f"{name}_over_official_work"] = round(figures[f"{name}_cpu_seconds"] / work, 3)
    print(
        "official: taken with the official code on a shared machine with two cores, whose speed is not known: these "
        "ratios hold as far as this one is like it. The arms of official_work were measured here."
    )
    if args.json:
        write_json(args.json, figures)
    return 0
