"""How soon an answer is read and heard: first text, first unit, first sound at each chunk size, beside the paper's."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechzoo.bench.latency_picture import picture
from speechzoo.data import read_manifest
from speechzoo.system.files import without_nan, write_atomically, write_json
from speechzoo.system.terminal import quiet, tell_error
from speechzoo.talk.questions import question
from speechzoo.talk.sources import Talker, open_talker
from speechzoo.text import Message
from speechzoo.types import AudioChunk, StreamEnd, TextDelta, UnitDelta

OMEGAS = (10, 20, 40, 60, 80, 100, 0)
OFFLINE = 10**9  # units: more than any answer has, so all sound comes at the end

PAPER = {
    10: (206.03, 30.15, 236.18),
    20: (236.18, 45.23, 281.41),
    40: (301.51, 45.23, 346.73),
    60: (361.81, 50.25, 412.06),
    80: (432.16, 55.28, 487.44),
    100: (497.49, 65.33, 562.81),
    0: (1542.71, 211.06, 1753.77),
}
"""LLM, vocoder and both in ms by Omega, 0 for offline (arXiv 2409.06666v2, Table 4; one NVIDIA L40)."""

GPT4O = {"least": 232, "mean": 320}
"""ms until GPT-4o answers with sound, as OpenAI states them."""


def spoken_questions(manifest: str | Path, limit: int) -> list[list[Message]]:
    """The first question of the first `limit` records in which it holds a clip: that clip and the question's text.

    Raises:
        FileNotFoundError, ValueError: see `read_manifest` and `question`; also if no record holds one.
    """
    found: list[list[Message]] = []
    for record in read_manifest(manifest):
        message = next((m for m in record.messages if m["role"] == "user"), None)
        clips = [] if message is None or isinstance(message["content"], str) else message["content"]
        paths = [part["path"] for part in clips if part["type"] == "audio"]
        if paths and len(found) < limit:
            words = " ".join(part["text"] for part in clips if part["type"] == "text")
            found.append([question(paths[0], words)])
    if not found:
        raise ValueError(f"{manifest}: holds no spoken question")
    return found


def ask(talker: Talker, messages: list[Message], omega: int, tokens: int, **generate: Any) -> dict[str, float]:
    """One answer: wall and CPU seconds (of all threads of this process) until each first thing came.

    `llm` is the time until the last units before the first sound, `vocoder` what the sound took after that.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    took: dict[str, float] = {}

    def note(name: str, again: bool = False) -> None:
        if again or name not in took:
            took[name], took[f"{name}_cpu"] = time.perf_counter() - wall, time.process_time() - cpu

    for event in talker.stream(messages, chunk_units=omega or OFFLINE, max_new_tokens=tokens, **generate):
        if isinstance(event, TextDelta | UnitDelta):
            note("first_text" if isinstance(event, TextDelta) else "first_unit")
            note("last_word", again=True)
            if "first_audio" not in took and (isinstance(event, UnitDelta) or talker.sound.get("voice")):
                note("llm", again=True)
        elif isinstance(event, AudioChunk):
            note("first_audio")
        elif isinstance(event, StreamEnd):
            note("total")
            end = event
    took["tokens"], took["audio"] = len(end.ids), end.audio_seconds
    if "first_audio" in took:
        for kind in ("", "_cpu"):
            took[f"vocoder{kind}"] = took[f"first_audio{kind}"] - took[f"llm{kind}"]
    # from the first token to the last token or unit: what reading the prompt costs is in first_text, and offline, where
    # the figure is taken from, all sound comes later
    for kind in ("", "_cpu"):
        spent = took.get(f"last_word{kind}", 0.0) - took.get(f"first_text{kind}", 0.0)
        if len(end.ids) > 1 and spent > 0:
            took[f"token{kind}"] = spent / (len(end.ids) - 1)
    if end.audio_seconds:
        took["real_time_factor"] = took["total"] / end.audio_seconds
        took["real_time_factor_cpu"] = took["total_cpu"] / end.audio_seconds
    return took


def measure(talker: Talker, questions: list[list[Message]], tokens: int, **generate: Any) -> dict[str, Any]:
    """Medians and 95th percentiles over the questions, by Omega; each question is asked at all of them in turn."""
    omegas = OMEGAS if "vocoder" in talker.sound else (0,)
    ask(talker, questions[0], omegas[0], tokens, **generate)  # warms up
    runs: dict[int, list[dict[str, float]]] = {omega: [] for omega in omegas}
    for messages in questions:
        for omega in omegas:
            runs[omega].append(ask(talker, messages, omega, tokens, **generate))
    return {"offline" if omega == 0 else str(omega): summary(found) for omega, found in runs.items()}


def summary(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """`{quantity: {median, p95}}`; seconds, and what is none by its name."""
    names = sorted({name for run in runs for name in run})
    values = {name: [run[name] for run in runs if name in run] for name in names}
    return {
        name: {"median": float(np.median(found)), "p95": float(np.percentile(found, 95))}
        for name, found in values.items()
    }


def weight_bytes(model: Any) -> int:
    """Bytes of weights that writing one token reads: the LLM without its input table (one row is read, unless the head
    is the same table), and the unit decoder."""
    llm, table = model.llm, None
    if hasattr(llm, "lm"):
        table = llm.lm.get_input_embeddings().weight
        if llm.head.weight is table:
            table = None
    parts = [llm, *([model.answer_decoder] if getattr(model, "answer_decoder", None) is not None else [])]
    weights = {id(weight): weight for part in parts for weight in part.parameters() if weight is not table}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())


@torch.no_grad()
def bandwidth(device: torch.device, megabytes: int = 256, repeats: int = 8) -> float:
    """Bytes a second that a matrix-vector product, the work of writing a token, reads; the best of some."""
    rows = megabytes * 2**20 // (4 * 4096)
    matrix, vector = torch.ones(rows, 4096, device=device), torch.ones(4096, device=device)

    def sync() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    times = []
    for _ in range(repeats + 1):
        start = sync()
        torch.mv(matrix, vector)
        times.append(sync() - start)
    return matrix.numel() * 4 / min(times[1:])


def table(result: dict[str, Any]) -> str:
    """The figures as lines of text, the paper's beside them."""
    lines = [
        f"{'':>8} | {'ours: first':^24} | {'LLM + vocoder = sound':^26} | {'p95':>7} | {'CPU s':>6} | "
        f"{'paper (L40): LLM + vocoder = sound':^34}",
        f"{'Omega':>8} | {'text':>7} {'unit':>7} {'sound':>8} | {'':26} | {'sound':>7} | {'sound':>6} |",
    ]

    def ms(row: dict[str, Any], name: str, kind: str = "median") -> str:
        return f"{1000 * row[name][kind]:.0f}" if name in row else "-"

    for name, row in result["omegas"].items():
        theirs = PAPER[0 if name == "offline" else int(name)]
        sums = f"{ms(row, 'llm')} + {ms(row, 'vocoder')} = {ms(row, 'first_audio')}"
        cpu = f"{row['first_audio_cpu']['median']:.2f}" if "first_audio_cpu" in row else "-"
        firsts = f"{ms(row, 'first_text'):>7} {ms(row, 'first_unit'):>7} {ms(row, 'first_audio'):>8}"
        paper = f"{theirs[0]:.0f} + {theirs[1]:.0f} = {theirs[2]:.0f}"
        lines.append(f"{name:>8} | {firsts} | {sums:^26} | {ms(row, 'first_audio', 'p95'):>7} | {cpu:>6} | {paper:^34}")
    lines.append(
        f"ms, medians over {result['questions']} questions. GPT-4o: {GPT4O['least']} at least, {GPT4O['mean']} mean."
    )
    roof = result["roofline"]
    lines.append(
        f"{result['tokens_per_second']:.1f} tokens/s, {1000 * roof['measured_seconds']:.1f} ms a token; "
        f"{roof['bytes_per_token'] / 1e6:.0f} MB of weights at {roof['bytes_per_second'] / 1e9:.1f} GB/s allow "
        f"{1000 * roof['least_seconds']:.1f} ms: {roof['measured_over_least']:.2f} x the limit"
    )
    if result["real_time_factor"] is not None:
        lines.append(f"real-time factor {result['real_time_factor']:.2f} (time ÷ length of the sound)")
    return "\n".join(lines)


def report(talker: Talker, questions: list[list[Message]], tokens: int, **generate: Any) -> dict[str, Any]:
    """All figures of one model."""
    device = next(talker.model.parameters()).device
    omegas = measure(talker, questions, tokens, **generate)
    offline = omegas["offline"]
    size, rate = weight_bytes(talker.model), bandwidth(device)
    token = offline["token"]["median"] if "token" in offline else float("nan")
    return {
        "model": talker.name,
        "questions": len(questions),
        "max_new_tokens": tokens,
        "generation": generate,
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} CPUs",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "omegas": omegas,
        "tokens_per_second": 1 / token,
        "real_time_factor": offline["real_time_factor"]["median"] if "real_time_factor" in offline else None,
        "roofline": {
            "bytes_per_token": size,
            "bytes_per_second": rate,
            "least_seconds": size / rate,
            "measured_seconds": token,
            "measured_over_least": token * rate / size,
        },
        "paper_ms": {"offline" if omega == 0 else str(omega): values for omega, values in PAPER.items()},
        "gpt4o_ms": GPT4O,
    }


def main(args: argparse.Namespace) -> int:
    """`speechzoo bench latency`; returns the exit code."""
    quiet(results_only=True)
    try:
        if args.png and find_spec("matplotlib") is None:  # before the measurement, which would be lost
            raise ValueError("--png needs matplotlib: pip install matplotlib")
        questions = spoken_questions(args.questions, args.limit)
        talker = open_talker(args.model, args.vocoder, args.device, args.trust_code)
        if not talker.sounds:
            print(f"no sound is measured: {talker.missing_sound()}", file=sys.stderr)
        static = {"cache_implementation": "static", "compile": args.compile} if args.static or args.compile else {}
        result = report(talker, questions, args.max_new_tokens, **static)
    except (ValueError, FileNotFoundError) as error:
        return tell_error(error, "speechzoo bench latency")
    print(table(result))
    if args.json:
        write_json(args.json, without_nan(result))
    if args.png:
        write_atomically(args.png, picture(result))
    return 0
