"""The main job: a corpus, both systems trained on it, their answers, the report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from rich.console import Console

from speechzoo.quickstart.apart import run_apart
from speechzoo.quickstart.scale import Scale
from speechzoo.quickstart.screen import Screen, write_into
from speechzoo.quickstart.stages import Stages

TITLES = {
    "parts": "Pretrained parts",
    "corpus": "A spoken question and answer corpus",
    "units": "Unit targets of the spoken answers (k-means over Whisper features)",
    "llasm_pretrain": "LLaSM, stage 1: the adaptor learns to write down speech",
    "llasm_finetune": "LLaSM, stage 2: adaptor and LLM learn to answer",
    "llasm_answers": "Held-out questions, put to LLaSM, the cascade and its LLM; the cascade's answers spoken",
    "llama_omni_warmup": "LLaMA-Omni, warm-up: the adaptor learns to write down speech",
    "llama_omni_stage1": "LLaMA-Omni, stage 1: adaptor and LLM learn to answer",
    "llama_omni_stage2": "LLaMA-Omni, stage 2: the unit decoder learns to speak",
    "llama_omni_answers": "Held-out questions, put to LLaMA-Omni",
    "vocoder": "Vocoder: units to the latents of the voice, whose own generator makes the sound",
    "speech": "LLaMA-Omni's answers made audible, and written down by Whisper",
    "report": "Report",
}
METHODS = {
    "parts": ("fetch_parts",),
    "corpus": ("make_corpus",),
    "units": ("make_units",),
    "llasm_answers": ("answer", "llasm"),
    "llama_omni_answers": ("answer", "llama_omni"),
    "speech": ("make_speech",),
    "report": ("report",),
}
BEFORE, AFTER = ("parts", "corpus", "units"), ("speech", "report")


class Quickstart:
    """The stages of `speechzoo quickstart`, in their order, each once.

    Args:
        out: folder of the run.
        scale: sizes.
        seed: of corpus, training and bootstrap.
        console: where progress goes.
    """

    def __init__(self, out: Path, scale: Scale, seed: int, console: Console) -> None:
        self.out, self.scale, self.seed = out, scale, seed
        self.stages = Stages(out, scale.settings(seed), console)
        self.screen = Screen(console, out / "logs")
        self.failed = False

    def run(self, only: str | None = None) -> Path:
        """Do what is not done yet; returns the path of the HTML report.

        Args:
            only: stop after the stage of this name (`parts`, `corpus`, ...).
        """
        lanes = self.scale.lanes
        names = [*BEFORE, *(stage for lane in lanes for stage in lane), *AFTER]
        if only is not None and only not in names:
            raise ValueError(f"--only takes one of {', '.join(names)}, not {only!r}")
        self._run(names[:1])  # writes on the screen itself: licences, and pip's bars
        with self.screen.live():
            if only is not None:
                self._run(names[1 : names.index(only) + 1])
                return self.out / "report.html"
            self._run(BEFORE[1:])
            # Small models keep one thread busy, hardly two: both systems at once end sooner than one after the other.
            with ThreadPoolExecutor(len(lanes)) as pool:
                running = [pool.submit(self._run, lane, max(1, cores() // len(lanes))) for lane in lanes]
                for lane in as_completed(running):
                    lane.result()
            self._run(AFTER)
        return self.out / "report.html"

    def _run(self, names: Sequence[str], threads: int | None = None) -> None:
        """Stages one after the other, on so many threads (None: as many as torch takes); none after a failed one.

        Each has a process: what it used of the memory is free for the next one, and its peak is its own.
        """
        for name in names:
            if self.failed:
                return
            call = METHODS.get(name, ("train", name))
            log = self.screen.log(name) if name != "parts" else None
            try:
                with self.screen.shown(name, TITLES[name]):
                    self.stages.run(name, TITLES[name], self._apart(threads, log, *call))
            except BaseException:
                self.failed = True
                if log is not None and log.is_file():
                    self.screen.console.print(f"what {name} said: {log}", highlight=False, markup=False)
                raise

    def _apart(self, threads: int | None, log: Path | None, *call: str) -> Callable[[], Any]:
        return lambda: run_apart(work, self.out, self.scale, self.seed, threads, log, *call)


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(out: Path, scale: Scale, seed: int, threads: int | None, log: Path | None, method: str, *args: str) -> None:
    """One stage, in the process it was given."""
    if log is not None:
        write_into(log)
    from speechzoo.quickstart.work import Work  # not by whoever only waits: it brings torch

    getattr(Work(out, scale, seed, Console(), threads), method)(*args)
