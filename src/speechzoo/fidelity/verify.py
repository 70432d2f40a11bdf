"""`speechzoo verify`: our numbers beside those the official code computed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import PreTrainedModel

from speechzoo.fidelity import omni_answers, omni_training
from speechzoo.fidelity.checks import Checks, Golden
from speechzoo.fidelity.llasm_case import LlasmCase
from speechzoo.fidelity.omni_case import OmniCase
from speechzoo.interop.llama_omni import MODEL_TYPE as OMNI
from speechzoo.interop.llama_omni import import_llama_omni
from speechzoo.interop.llasm import MODEL_TYPE as LLASM
from speechzoo.interop.llasm import import_llasm
from speechzoo.interop.saved import load_saved
from speechzoo.models import SpeechLLM
from speechzoo.system.files import read_json
from speechzoo.vocoders import UnitHiFiGAN

TEMPLATES = {"Chinese_llama2": "cllama2", "baichuan": "baichuan"}


def find_checkpoint(folder: Path) -> tuple[str, Path]:
    """The system a golden folder belongs to, and its checkpoint.

    Raises:
        FileNotFoundError, ValueError: if there is none of a known kind.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for name in ("ckpt", "checkpoint", "checkpoint_safetensors"):
        if (folder / name / "config.json").is_file():
            kind = read_json(folder / name / "config.json").get("model_type")
            if kind == OMNI:
                return "llama-omni", folder / name
            if kind == LLASM:
                return "llasm", folder / name
            raise ValueError(f"{folder / name}: model_type {kind!r} is neither {OMNI} nor {LLASM}")
    raise FileNotFoundError(f"{folder}: holds no ckpt or checkpoint folder with a config.json")


def verify(folder: str | Path, dtype: str = "float32", attention: str | None = None) -> tuple[str, Checks]:
    """Import the checkpoint of a golden folder and recompute everything that is held for it, on the CPU.

    Runs on one thread, as the held values were made: the order of sums depends on the number of threads, and Adam's
    first steps, which are as long for a gradient of rounding noise as for any other, enlarge that.

    Args:
        dtype: of weights and arithmetic. The tolerances are those of float32: what another one moves is not an error.
        attention: `eager` or `sdpa`, in LLM and unit decoder; default: as the model is built.

    Raises:
        FileNotFoundError, ValueError: if the folder or its checkpoint cannot be read.
    """
    folder = Path(folder).expanduser()
    system, checkpoint = find_checkpoint(folder)
    golden = Golden(folder)
    checks = Checks(golden)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as work:
            if system == "llama-omni":
                _llama_omni(golden, checks, checkpoint, Path(work) / "model", dtype, attention)
            else:
                _llasm(golden, checks, checkpoint, Path(work) / "model", dtype, attention)
    finally:
        torch.set_num_threads(threads)
    checks.close_book()
    return system, checks


def _llama_omni(golden: Golden, checks: Checks, checkpoint: Path, out: Path, dtype: str, attention: str | None) -> None:
    folder = golden.folder
    encoder = folder / str(read_json(checkpoint / "config.json").get("speech_encoder", ""))
    own = any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    tokenizer = None if own else str(folder / "tokenizer")
    vocoder = folder / "vocoder"
    import_llama_omni(checkpoint, encoder, out, tokenizer, vocoder if vocoder.is_dir() else None)
    model = _load(out, dtype, attention)
    case = OmniCase(model, golden, checks)
    case.front_end()
    case.prompts()
    case.merges()
    case.logits()
    omni_training.stage_1(case)
    omni_training.stage_2(case)
    omni_training.optimizer_steps(case)
    omni_training.joint(case)
    omni_answers.answers(case)
    if golden.names("voc."):
        with checks.step("vocoder"):
            omni_answers.sound(case, UnitHiFiGAN(str(out / "vocoder")))


def _llasm(golden: Golden, checks: Checks, checkpoint: Path, out: Path, dtype: str, attention: str | None) -> None:
    folder = golden.folder
    template = TEMPLATES.get(golden.meta.get("llm_type", ""))
    own = (checkpoint / "tokenizer.model").is_file()
    tokenizer = None if own else str(folder / "checkpoint")
    encoder = folder / "whisper"
    import_llasm(checkpoint, encoder, out, tokenizer, template)
    model = _load(out, dtype, attention)
    case = LlasmCase(model, golden, checks)
    case.front_end()
    case.prompts()
    case.forward()
    case.batches()
    case.gradients()


def _load(out: Path, dtype: str, attention: str | None) -> SpeechLLM:
    model = load_saved(out, dtype=dtype).to(getattr(torch, dtype))
    if attention is not None:
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.set_attn_implementation(attention)
    return model


def report(system: str, checks: Checks, console: Console, dtype: str = "float32") -> None:
    """Print the table and the verdict."""
    table = Table(title=escape(f"{system}: {checks.golden.folder}"), title_justify="left")
    for name in ("quantity", "shape"):
        table.add_column(name, overflow="fold")
    for name in ("max abs", "relative"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("tolerance")
    table.add_column("ok")
    table.add_column("note", overflow="fold")
    for row in checks.rows:
        shape = "" if row.shape is None else "x".join(map(str, row.shape)) or "scalar"
        numbers = ["" if value is None else f"{value:.1e}" for value in (row.max_abs, row.relative)]
        verdict = "[green]ok[/]" if row.ok else "[red]NO[/]"
        table.add_row(row.quantity, shape, *numbers, row.tolerance, verdict, escape(row.note))
    console.print(table)
    held = sum(row.ok for row in checks.rows)
    console.print(f"{held} of {len(checks.rows)} quantities hold (torch {torch.__version__}, {dtype}, CPU)")
