"""The pieces of work that the quickstart is made of, one method each; each runs in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from speechzoo.models.checkpoint import find
from speechzoo.names.published import published
from speechzoo.names.recipes import recipe
from speechzoo.quickstart.scale import PUBLISHED, STARTS, Scale
from speechzoo.quickstart.screen import Counter
from speechzoo.quickstart.stages import Stages
from speechzoo.system.cpu import fast_bfloat16
from speechzoo.system.terminal import quiet


class Work:
    """What `speechzoo quickstart` does, one method a stage.

    Args:
        out: folder of the run; corpus, features, checkpoints, answers and report go there.
        scale: sizes.
        seed: of corpus, training and bootstrap.
        console: where progress goes.
        threads: torch's, in this process; None leaves them as they are.
    """

    def __init__(self, out: Path, scale: Scale, seed: int, console: Console, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self.out, self.scale, self.seed, self.console = out, scale, seed, console
        self.corpus, self.features = out / "corpus", out / "features"

    def fetch_parts(self) -> None:
        """Download what is missing, showing each licence first."""
        from speechzoo.parts import registry as parts

        for name, package, licence, what in parts.licences():
            self.console.print(f"  {name}: {what} [dim]({package}, {licence})[/]")
        for name in parts.PARTS:
            parts.fetch(name)
        folder, reason = parts.human_speech()
        speech = "pocketsphinx-testdata (BSD)" if folder else f"left out, {reason}"
        self.console.print(f"  human speech: {speech}", markup=False)
        if not fast_bfloat16():
            self.console.print("  no AVX-512 here: training computes in float32 and takes about three times as long")

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
            if self.scale.sentences:
                self._hearing(bar)
        write_manifests(self.corpus, self.seed)

    def _hearing(self, bar: Progress) -> None:
        """The larger corpus, from which the zoo's models learn to hear."""
        from speechzoo.parts.registry import fetch
        from speechzoo.quickstart.corpus import speak_names
        from speechzoo.quickstart.hearing import build_hearing
        from speechzoo.quickstart.sentences import draw_sentences

        names = ("speaking other names", "writing sentences", "speaking them")
        tasks = {name: bar.add_task(name, total=None) for name in names}
        told = {
            name: lambda done, total, task=task: bar.update(task, completed=done, total=total)
            for name, task in tasks.items()
        }
        speak_names(self.corpus, self.voice(), self.scale.names, self.seed, told["speaking other names"])
        file, llm = self.corpus / "sentences.jsonl", fetch("smollm2-135m-instruct")
        texts = draw_sentences(file, llm, self.scale.sentences, self.seed, told["writing sentences"])
        build_hearing(self.corpus, self.voice(), texts, self.seed, progress=told["speaking them"])

    def make_units(self) -> None:
        """k-means units of the spoken answers, and encoder states of the questions."""
        from speechzoo.parts.registry import fetch
        from speechzoo.quickstart.units import encode_questions, make_units
        from speechzoo.quickstart.vocoder import write_vocoder_manifests

        whisper = str(fetch("whisper-tiny.en"))
        units = None if self.scale.from_scratch else published(PUBLISHED["vocoder"]) / "kmeans.safetensors"
        make_units(self.corpus, self.features, whisper, self.scale.num_units, self.seed, units)
        write_vocoder_manifests(self.corpus, self.features, whisper)
        encode_questions(self.corpus, self.features, whisper)

    def train(self, name: str) -> None:
        """One stage through `speechzoo fit`, continued from its last checkpoint if there is one."""
        import wandb

        from speechzoo.commands.training import run

        quiet(results_only=True)
        out = f"./{self.out}" if len(self.out.parts) == 1 else self.out  # a bare 1e3 would be read as a number
        arguments = ["fit", f"--config={recipe(f'quickstart/{name}.yaml')}", f"--vars.out={out}"]
        arguments += [f"--seed_everything={self.seed}", f"--data.init_args.seed={self.seed}"]
        if not self.scale.from_scratch and name in STARTS:
            arguments.append(f"--model.init_args.init_from=[{PUBLISHED[STARTS[name]]}]")
        arguments += self.scale.overrides.get(name, [])
        if (self.out / name / "last.ckpt").is_file():
            arguments.append(f"--ckpt_path={find(self.out / name)}")
        run(arguments)
        wandb.finish()

    def answer(self, system: str) -> None:
        """Held-out questions, put to `llasm` (with the cascade and the text, which its LLM reads) or `llama_omni`.

        The cascade's answers are made audible at once, LLaMA-Omni's by `make_speech`: its lane is the longer one.
        """
        from speechzoo.quickstart.examination import ask_llama_omni, ask_llasm
        from speechzoo.quickstart.listening import listen_to_cascade

        quiet(results_only=True)
        with self.progress() as bar:
            if system == "llama_omni":
                ask_llama_omni(self.out, self.scale, bar)
            else:
                ask_llasm(self.out, self.scale, bar)
                listen_to_cascade(self.out, self.scale, self.voice, bar)

    def make_speech(self) -> None:
        """LLaMA-Omni's answers as sound files, and what is heard of them."""
        from speechzoo.quickstart.listening import listen_to_all

        quiet(results_only=True)
        with self.progress() as bar:
            listen_to_all(self.out, self.scale, self.voice, bar)

    def report(self) -> None:
        """`report.html` and `report.md`; the comparison also goes to W&B."""
        from speechzoo.quickstart.write_up import write_up

        write_up(self.out, self.scale, self.seed, Stages(self.out, self.scale.settings(self.seed), self.console))

    def voice(self) -> Any:
        """The Piper voice."""
        from speechzoo.quickstart.voice import PiperVoice

        return PiperVoice.joe()

    def progress(self) -> Progress:
        """Counts with the remaining time."""
        return Counter(self.console)
