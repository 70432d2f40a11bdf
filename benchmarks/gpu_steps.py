"""The steps of `benchmarks/gpu.py`: training, answering, the official code beside ours, the tests that need a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile

from speechzoo.bench import latency
from speechzoo.bench.parts import write_shapes
from speechzoo.bench.sizes import SIZES, enliven, noise_question
from speechzoo.bench.stream import rerun, stream
from speechzoo.callbacks.cost import peak_memory_mb
from speechzoo.callbacks.flops import peak_flops, training_flops
from speechzoo.callbacks.free_frozen import FreeFrozen
from speechzoo.callbacks.of_trainer import set_callbacks
from speechzoo.commands.doctor import WithoutRunning, setting_of
from speechzoo.commands.training import run as command
from speechzoo.doctor.plan import Machine, plan
from speechzoo.models import LLaMAOmni
from speechzoo.names.recipes import recipe
from speechzoo.names.shapes import without_reading
from speechzoo.talk.sources import Talker
from speechzoo.vocoders import open_vocoder

ROOT = Path(__file__).resolve().parents[1]
COMPILED = "--model.init_args.compile=[encoder,llm]"

ANSWERING: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "graph": {"generation": {"cache_implementation": "static"}},
    "graph_compiled": {"generation": {"cache_implementation": "static", "compile": True}},
}
"""Ways to answer: name -> further settings: `llm` of `HFCausalLM`, `generation` of the model."""

PUBLISHED = "published algorithm re-timed with our parts: units of the whole answer anew at each token"
FREEZE_LLM = '--model.init_args.freeze=["^encoder","^llm","^unit_decoder"]'
BF16 = "--model.init_args.llm.init_args.dtype=bfloat16"
LORA = "--model.init_args.llm.init_args.lora={r: 16}"


@dataclass(frozen=True)
class Options:
    """What a step is told."""

    size: str
    out: Path
    official: Path | None
    train: list[str]
    tokens: int
    questions: int

    @property
    def device(self) -> str:
        """`tiny` runs on the CPU."""
        return "cuda" if self.size == "full" else "cpu"

    def parts(self, size: str) -> Path:
        """The folder of a size's configurations and records."""
        name = size if self.size == "full" else "tiny"
        folder = self.out / "parts" / name
        if not folder.exists():
            write_shapes(folder, SIZES[name], 64 if self.size == "full" else 12)
        return folder


class StepTimer(pl.Callback):
    """Times the steps after a warm-up, waiting for the device before the first and after the last of them only.

    Args:
        trace: file for a profile of one further step.
    """

    def __init__(self, steps: int, warm_up: int, trace: Path | None = None) -> None:
        self.steps, self.warm_up, self.trace = steps, warm_up, trace
        self.flops: Any = 0.0
        self.own: Any = 0.0  # of the encoder
        self.real: Any = 0
        self.padded = self.rows = self.longest = 0
        self.began = self.took = self.peak = 0.0
        self.losses: list[Any] = []
        self.profiler: Any = None

    @property
    def total(self) -> int:
        return self.warm_up + self.steps + (2 if self.trace else 0)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.register_forward_hook(partial(self._count, trainer))

    def _count(self, trainer: pl.Trainer, model: Any, inputs: Any, out: Any) -> None:
        if not self.warm_up <= trainer.global_step < self.warm_up + self.steps or not model.training:
            return
        batch = inputs[0]
        whole = training_flops(model, batch, out)
        if batch.clips is not None:
            heard = model.encoder.out_lens(batch.audio_lens)
            without = training_flops(model, replace(batch, audio=None, audio_lens=None, feature_lens=heard), out)
            self.own = self.own + whole - without
            whole = without
        self.flops = self.flops + whole
        self.real = self.real + out.mask.sum()
        self.padded += out.mask.numel()
        self.rows, self.longest = max(self.rows, len(batch)), max(self.longest, out.mask.shape[1])

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.warm_up:
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            self.began = self._now(trainer)
        if self.trace and batch_idx == self.total - 1:
            kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
            self.profiler = profile(activities=kinds)
            self.profiler.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach())
        if batch_idx == self.warm_up + self.steps - 1:
            self.took = self._now(trainer) - self.began
            self.peak = peak_memory_mb(trainer.strategy.root_device) * 1e6
        if self.profiler is not None and batch_idx == self.total - 1:
            self._now(trainer)
            self.profiler.__exit__(None, None, None)
            self.profiler.export_chrome_trace(str(self.trace))

    @staticmethod
    def _now(trainer: pl.Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def figures(self, device: torch.device) -> dict[str, Any]:
        """Per step and second, and against the device's peak in bfloat16."""
        peak = peak_flops(device, torch.bfloat16)
        flops, own, real = float(self.flops), float(self.own), int(self.real)
        found: dict[str, Any] = {
            "seconds_a_step": self.took / self.steps,
            "tokens_per_second": real / self.took,
            "padding": 1 - real / max(1, self.padded),
            "tflops_per_second": flops / self.took / 1e12,
            "encoder_tflops_per_second": own / self.took / 1e12,
            "mfu": flops / self.took / peak if peak else None,
            "mfu_with_encoder": (flops + own) / self.took / peak if peak else None,
            "peak_memory_gb": self.peak / 1e9,
            "first_loss": float(self.losses[0]),
            "last_loss": float(self.losses[-1]),
        }
        if self.profiler is not None:
            key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
            rows = sorted(self.profiler.key_averages(), key=lambda row: -getattr(row, key))[:12]
            found["profile"] = {row.key[:60]: round(getattr(row, key) / 1e3, 2) for row in rows}
            found["trace"] = str(self.trace)
        return found


def train(
    options: Options, stage: str, size: str, *changes: str, cached: bool = False, trace: str = ""
) -> dict[str, Any]:
    """Steps of a recipe with random parts: the recipe's own Trainer, loader and precision."""
    full = options.size == "full"
    timer = StepTimer(20 if full else 3, 5 if full else 2, options.out / trace if trace else None)
    folder = options.parts(size)
    args = ["fit", f"--config={recipe(f'llama_omni/{stage}.yaml')}", f"--config={folder / 'overlay.yaml'}", *changes]
    args += [f"--trainer.max_steps={timer.total}", "--trainer.max_epochs=-1", "--trainer.enable_checkpointing=false"]
    args += ["--trainer.logger=false", "--trainer.callbacks=[]", "--trainer.enable_progress_bar=false"]
    args += [f"--trainer.accelerator={'gpu' if full else 'cpu'}", "--trainer.enable_model_summary=false"]
    args += ["--doctor.enabled=false", "--preflight.enabled=false"]
    args += [f"--trainer.default_root_dir={options.out / 'runs'}"]
    args += [f"--data.init_args.state_cache={options.out / 'states'}" if cached else "--data.init_args.num_workers=4"]
    if not full:
        args += ["--data.init_args.num_workers=0", "--data.init_args.batch_size=2"]
    with without_reading():
        cli = command([*args, *options.train], WithoutRunning)
        set_callbacks(cli.trainer, [timer, *([FreeFrozen()] if cached else [])])
        machine = Machine("here", 1, 0)
        start = time.perf_counter()
        setting = setting_of({**cli.config_init["fit"]["trainer"], "callbacks": [FreeFrozen()] if cached else []})
        model, data = cli.model, cli.datamodule
        unbuilt = type(model)(**{**model.hparams, **model.specs})
        cli.trainer.fit(model, data)
        spent = time.perf_counter() - start
        answer = max(1, timer.longest - 362)
        planned = plan(unbuilt, setting, data, [machine], max(timer.longest, 400), answer)[0] if timer.longest else None
    found = timer.figures(cli.trainer.strategy.root_device)
    return {**found, "planned_peak_gb": planned.peak / 1e9 if planned else None, "fit_seconds": spent}


def answer_times(options: Options, way: str) -> dict[str, Any]:
    """First text and sound at Omega 10, 20, 40 and offline; a token's time over what reading the weights takes."""
    changes = ANSWERING[way]
    latency.OMEGAS = (10, 20, 40, 0)
    start = time.perf_counter()
    model = random_omni(options, "8b", **changes)
    built = time.perf_counter() - start
    vocoder = open_vocoder(options.parts("8b") / "vocoder").to(options.device)
    asked = latency.spoken_questions(options.parts("8b") / "train.jsonl", options.questions)
    found = latency.report(Talker(way, model, {"vocoder": vocoder}), asked, options.tokens)
    rows = found["omegas"]
    roof = found["roofline"]
    sounds = {omega: 1000 * row["first_audio"]["median"] for omega, row in rows.items() if "first_audio" in row}
    return {
        "build_seconds": built,
        "first_sound_ms": sounds,
        "first_text_ms": 1000 * rows["offline"]["first_text"]["median"],
        "ms_a_token": 1000 * roof["measured_seconds"],
        "least_ms_a_token": 1000 * roof["least_seconds"],
        "of_bandwidth": 1 / roof["measured_over_least"],
        "peak_memory_gb": peak_memory_mb(torch.device(options.device)) / 1e3,
        "report": found,
    }


def random_omni(options: Options, size: str, llm: Any = None, generation: Any = None) -> LLaMAOmni:
    """The model of a recipe with random numbers, drawn on the device, in eval mode."""
    folder = options.parts(size)
    args = ["fit", f"--config={recipe('llama_omni/stage2.yaml')}", f"--config={folder / 'overlay.yaml'}"]
    args += ["--trainer.logger=false", "--trainer.callbacks=[]", "--trainer.accelerator=cpu"]
    args += [f"--model.init_args.llm.init_args.{key}={json.dumps(value)}" for key, value in (llm or {}).items()]
    if generation:
        args.append(f"--model.init_args.generation={json.dumps(generation)}")
    with without_reading(), torch.device(options.device):
        model: Any = command(args, WithoutRunning).model
        model.configure_model()
    model = model.to(options.device).eval()
    enliven(model)
    return model


def official(options: Options) -> dict[str, Any]:
    """The official code beside ours: `FOLDER/time_generate.py`, or its published algorithm timed with our parts.

    The script gets `--tokens N` and prints one line of JSON at its end.
    """
    if options.official is not None:
        script = options.official / "time_generate.py"
        asked = [sys.executable, str(script), "--tokens", str(options.tokens)]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=options.official)
        if done.returncode:
            raise RuntimeError("\n".join(done.stderr.splitlines()[-8:]))
        return {"of": "official code", **json.loads(done.stdout.splitlines()[-1])}
    size = "8b" if options.size == "full" else "tiny"
    model = random_omni(options, "8b")
    batch = noise_question(SIZES[size].llm["vocab_size"]).to(options.device)
    found: dict[str, Any] = {"of": PUBLISHED}
    for name, arm in (("ours", stream), ("published", rerun)):
        arm(model, batch, 4)
        start = time.perf_counter()
        arm(model, batch, options.tokens)
        found[f"{name}_ms_a_token"] = 1000 * (time.perf_counter() - start) / options.tokens
    return found


def gpu_tests(options: Options) -> dict[str, Any]:
    """`pytest -m gpu`; with `tiny` the same bodies on the CPU."""
    full, tests = options.size == "full", ROOT / "tests"
    marked = [str(file) for file in sorted(tests.rglob("test_*.py")) if "mark.gpu" in file.read_text(encoding="utf-8")]
    chosen = [*marked, "-m", "gpu"] if full else [str(tests / "test_devices.py"), "-k", "cpu and ctc"]
    start = time.perf_counter()
    asked = [sys.executable, "-m", "pytest", "-q", *chosen]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, cwd=ROOT)
    lines = done.stdout.splitlines()
    found: dict[str, Any] = {"seconds": time.perf_counter() - start, "exit_code": done.returncode}
    found["summary"] = lines[-1] if lines else ""
    if done.returncode:
        found["failed_tests"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        found["last"] = lines[-60:]
    return found


def steps(options: Options) -> dict[str, tuple[float, Callable[[], dict[str, Any]]]]:
    """Name -> (most seconds, what runs), the most valuable first."""
    # Under the overlay's `strategy: auto`: one device.
    found: dict[str, tuple[float, Callable[[], dict[str, Any]]]] = {"gpu_tests": (150, partial(gpu_tests, options))}
    found["train_1b_full"] = 120, partial(train, options, "stage1", "1b")
    found["train_8b_lora"] = 150, partial(train, options, "stage1", "8b", BF16, LORA)
    found["train_8b_adaptor"] = 120, partial(train, options, "stage1", "8b", BF16, FREEZE_LLM)
    found["train_8b_stage2"] = 150, partial(train, options, "stage2", "8b", cached=True)
    for way in ANSWERING:
        found[f"answer_8b_{way}"] = 150, partial(answer_times, options, way)
    found["train_1b_full_compiled"] = 180, partial(train, options, "stage1", "1b", COMPILED)
    found["train_8b_lora_compiled"] = 180, partial(train, options, "stage1", "8b", BF16, LORA, COMPILED)
    found["official"] = 120, partial(official, options)
    found["profile"] = 150, partial(train, options, "stage1", "8b", BF16, LORA, trace="trace.json.gz")
    return found
