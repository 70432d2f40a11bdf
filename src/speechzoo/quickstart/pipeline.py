"""The main job: a corpus, both systems trained on it, their answers, the report."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speechzoo.models.checkpoint import find
from speechzoo.quickstart.scale import STAGES, Scale
from speechzoo.quickstart.stages import Stages
from speechzoo.recipes import recipe

TITLES = {
    "llasm_pretrain": "LLaSM, stage 1: the adaptor learns to write down speech",
    "llasm_finetune": "LLaSM, stage 2: adaptor and LLM learn to answer",
    "llama_omni_warmup": "LLaMA-Omni, warm-up: the adaptor learns to write down speech",
    "llama_omni_stage1": "LLaMA-Omni, stage 1: adaptor and LLM learn to answer",
    "llama_omni_stage2": "LLaMA-Omni, stage 2: the unit decoder learns to speak",
}


class Quickstart:
    """Everything `speechzoo quickstart` does, one method a stage.

    Args:
        out: folder of the run; corpus, features, checkpoints, answers and report go there.
        scale: sizes.
        seed: of corpus, training and bootstrap.
        console: where progress goes.
    """

    def __init__(self, out: Path, scale: Scale, seed: int, console: Console) -> None:
        self.out, self.scale, self.seed, self.console = out, scale, seed, console
        self.corpus, self.features = out / "corpus", out / "features"
        self.stages = Stages(out, {"seed": seed, **asdict(scale)}, console)

    def run(self, only: str | None = None) -> Path:
        """Do what is not done yet; returns the path of the HTML report.

        Args:
            only: stop after the stage of this name (`parts`, `corpus`, ...).
        """
        work: list[tuple[str, str, Callable[[], None]]] = [
            ("parts", "Pretrained parts", self.fetch_parts),
            ("corpus", "A spoken question and answer corpus", self.make_corpus),
            ("units", "Unit targets of the spoken answers (k-means over Whisper features)", self.make_units),
        ]
        work += [(name, TITLES[name], lambda name=name: self.train(name)) for name in STAGES]
        work += [("answers", "Held-out questions, put to all systems", self.answer), ("report", "Report", self.report)]
        if only is not None and only not in (names := [name for name, _, _ in work]):
            raise ValueError(f"--only takes one of {', '.join(names)}, not {only!r}")
        for name, title, step in work:
            self.stages.run(name, title, step)
            if name == only:
                break
        return self.out / "report.html"

    def fetch_parts(self) -> None:
        """Download what is missing, showing each licence first."""
        from speechzoo.quickstart import parts

        for name, package, licence, what in parts.licences():
            self.console.print(f"  {name}: {what} [dim]({package}, {licence})[/]")
        for name in parts.PARTS:
            parts.fetch(name)
        folder, reason = parts.human_speech()
        self.console.print("  human speech: " + ("pocketsphinx-testdata (BSD)" if folder else f"left out, {reason}"))

    def make_corpus(self) -> None:
        """Speak the questions and answers, write the manifests."""
        from speechzoo.quickstart.corpus import build_corpus, write_manifests
        from speechzoo.quickstart.questions import make_pairs

        with self.progress() as bar:
            task = bar.add_task("speaking", total=None)
            build_corpus(
                self.corpus,
                self.voice(),
                make_pairs(self.scale.train_pairs, self.scale.test_pairs, self.seed),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        write_manifests(self.corpus, self.seed)

    def make_units(self) -> None:
        """k-means units of the spoken answers."""
        from speechzoo.quickstart.parts import fetch
        from speechzoo.quickstart.units import make_units

        make_units(self.corpus, self.features, str(fetch("whisper-tiny.en")), self.scale.num_units, self.seed)

    def train(self, name: str) -> None:
        """One stage through `speechzoo fit`, continued from its last checkpoint if there is one."""
        import wandb

        from speechzoo.cli import run

        quiet()
        arguments = ["fit", f"--config={recipe(f'quickstart/{name}.yaml')}", f"--vars.out={self.out}"]
        arguments += [f"--seed_everything={self.seed}", f"--data.init_args.seed={self.seed}"]
        arguments += self.scale.overrides.get(name, [])
        if (self.out / name / "last.ckpt").is_file():
            arguments.append(f"--ckpt_path={find(self.out / name)}")
        run(arguments)
        wandb.finish()  # else the next stage of this process would be logged into this one's run
        gc.collect()  # Trainer and model refer to each other; the next stage wants their memory

    def answer(self) -> None:
        """Answers of all systems to the held-out questions, and what they hear in human recordings."""
        from speechzoo.quickstart.examination import examine

        quiet()
        with self.progress() as bar:
            examine(self.out, self.scale, bar)

    def report(self) -> None:
        """`report.html` and `report.md`; the comparison also goes to W&B."""
        from speechzoo.quickstart.write_up import write_up

        write_up(self.out, self.scale, self.seed, self.stages)

    def voice(self) -> Any:
        """The Piper voice."""
        from speechzoo.quickstart.parts import fetch
        from speechzoo.quickstart.voice import PiperVoice

        folder = fetch("piper-joe")
        return PiperVoice(folder / "voice.onnx", folder / "voice.onnx.json", fetch("english-lexicon"))

    def progress(self) -> Progress:
        """A bar with counts and remaining time."""
        columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        return Progress(*columns, console=self.console)


def quiet() -> None:
    """Leave progress and results on the screen, not the libraries' advice about them."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    torch.set_warn_always(False)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
