"""What streaming costs: one answer offline, streamed, and streamed as the released code does it, side by side."""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from speechzoo.bench.sizes import SIZES, noise_question, random_model
from speechzoo.models import LLaMAOmni
from speechzoo.system.files import write_json
from speechzoo.types import SpeechBatch, UnitDelta

ARMS = ("offline", "stream", "by_token", "rerun")


def offline(model: LLaMAOmni, batch: SpeechBatch, tokens: int) -> list[int]:
    """The whole text, then all units at once."""
    (units,) = model.respond(batch, max_new_tokens=tokens, eos_token_id=[]).units or []
    return units.tolist()


def stream(model: LLaMAOmni, batch: SpeechBatch, tokens: int, **options: Any) -> list[int]:
    """`model.stream` as it is: after every token until the first chunk is out, then several tokens together."""
    events = model.stream(batch, max_new_tokens=tokens, eos_token_id=[], **options)
    return [unit for event in events if isinstance(event, UnitDelta) for unit in event.units.tolist()]


def by_token(model: LLaMAOmni, batch: SpeechBatch, tokens: int) -> list[int]:
    """Units after every token to the end, from the cache."""
    return stream(model, batch, tokens, unit_tokens=1)


@torch.no_grad()
def rerun(model: LLaMAOmni, batch: SpeechBatch, tokens: int) -> list[int]:
    """Units after every token, by decoding the whole answer so far again (the released generation.py:550-552)."""
    states: list[Tensor] = []
    units = torch.zeros(0)
    options: dict[str, Any] = {"max_new_tokens": tokens, "eos_token_id": []}
    for step in model.llm.steps(batch.input_ids, batch.attention_mask, *model.encode(batch), **options):
        states.append(step.states)
        lens = torch.tensor([len(states)], device=step.states.device)
        units = model.unit_decoder.decode(torch.stack(states, dim=1), lens)[0]
    return units.tolist()


@torch.no_grad()
def decoder_arms(model: LLaMAOmni, states: Tensor) -> dict[str, Callable[[], list[int]]]:
    """The same ways for the unit decoder alone. Shape: states `[1, M, H]`."""
    decoder = model.unit_decoder
    prefixes = range(1, states.shape[1] + 1)

    def at_once() -> list[int]:
        return decoder.decode(states, torch.tensor([states.shape[1]]))[0].tolist()

    def pushed(size: int) -> list[int]:
        units = decoder.stream(1)
        return [unit for part in states.split(size, dim=1) for unit in units.push(part)[0].tolist()]

    def again() -> list[int]:
        return [decoder.decode(states[:, :n], torch.tensor([n]))[0].tolist() for n in prefixes][-1]

    return {"offline": at_once, "stream": lambda: pushed(4), "by_token": lambda: pushed(1), "rerun": again}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads of this process, and what the work returned."""
    start = time.process_time()
    units = work()
    return time.process_time() - start, units


def measure(model: LLaMAOmni, tokens: int, repeats: int, rerun_repeats: int) -> dict[str, Any]:
    """All arms in turn, `repeats` times; the expensive `rerun` `rerun_repeats` times.

    Ratios are medians over repeats of arms that ran one after the other.

    Raises:
        RuntimeError: if the arms do not speak the same units.
    """
    question = noise_question(SIZES["mid"].llm["vocab_size"])
    encoder, (features, lens) = timed(lambda: model.encoder(question.audio, question.audio_lens))
    batch = replace(question, audio=None, audio_lens=None, features=features, feature_lens=lens)
    speech = model.encode(batch)
    answer = model.llm.generate_states(
        batch.input_ids, batch.attention_mask, *speech, max_new_tokens=tokens, eos_token_id=[]
    )
    whole = {
        name: lambda arm=arm: arm(model, batch, tokens)
        for name, arm in zip(ARMS, (offline, stream, by_token, rerun), strict=True)
    }
    result: dict[str, Any] = {"tokens": tokens, "encoder_cpu_seconds": encoder}
    for part, arms in (("", whole), ("decoder_", decoder_arms(model, answer.states))):
        seconds: dict[str, list[float]] = {name: [] for name in ARMS}
        spoken: list[list[int]] = []
        for turn in range(repeats + 1):
            for name in ARMS:
                if name == "rerun" and not 1 <= turn <= rerun_repeats:
                    continue
                spent, units = timed(arms[name])
                spoken.append(units)
                if turn:  # the first turn warms up
                    seconds[name].append(spent)
        if any(units != spoken[0] for units in spoken):
            raise RuntimeError(f"{part or 'whole '}arms speak different units at {tokens} tokens")
        result["units"] = len(spoken[0])
        result[f"{part}cpu_seconds"] = {name: median(values) for name, values in seconds.items() if values}
        result[f"{part}all_cpu_seconds"] = seconds
        for name in ARMS[1:]:
            pairs = list(zip(seconds[name], seconds["offline"], strict=False))
            if pairs:
                result[f"{part}{name}_over_offline"] = median(one / other for one, other in pairs)
    with_encoder = {name: encoder + value for name, value in result["cpu_seconds"].items()}
    for name in ARMS[1:]:
        if name in with_encoder:
            result[f"{name}_over_offline_with_encoder"] = with_encoder[name] / with_encoder["offline"]
    return result


def main(args: argparse.Namespace) -> int:
    """`speechzoo bench stream`; returns the exit code."""
    machine = {
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} CPUs",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": "cpu float32",
    }
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model = random_model(Path(folder), SIZES["mid"])
        machine["parameters"] = sum(p.numel() for p in model.parameters())
        results = []
        for tokens in args.tokens:
            results.append(measure(model, tokens, args.repeats, args.rerun_repeats))
            print(_line(results[-1]), flush=True)
            report = {**machine, **results[0], "results": results}
            if args.json:
                write_json(args.json, report)
    return 0


def _line(result: dict[str, Any]) -> str:
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in result["cpu_seconds"].items())
    ratios = [
        f"{name} / offline {result[f'{name}_over_offline']:.3f}" for name in ARMS[1:] if name in result["cpu_seconds"]
    ]
    return f"{result['tokens']} tokens, {result['units']} units: CPU s {seconds}; " + ", ".join(ratios)
