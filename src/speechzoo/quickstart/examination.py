"""The systems of the comparison, and everything they are asked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import Progress
from torch import nn

from speechzoo.data import encode_batch
from speechzoo.interop.hub import load_run
from speechzoo.metrics import UnitErrorRate
from speechzoo.models import Cascade, LLaMAOmni, SpeechLLM
from speechzoo.names.published import published
from speechzoo.parts.registry import fetch, human_speech
from speechzoo.quickstart.ask import answer_questions, own_precision, read_questions
from speechzoo.quickstart.copying import ASR_INSTRUCTION, copy_speech, everyday, people, questions_of
from speechzoo.quickstart.scale import PUBLISHED, Scale
from speechzoo.system.files import write_json


@dataclass(frozen=True)
class System:
    """A column of the comparison."""

    key: str  # file name of its answers
    name: str
    note: str
    runs: tuple[str, ...] = ()  # training stages
    as_text: bool = False


OMNI = ("llama_omni_warmup", "llama_omni_stage1", "llama_omni_stage2")

SYSTEMS = (
    System("llasm", "LLaSM", "adaptor pretraining, then adaptor and LLM", ("llasm_pretrain", "llasm_finetune")),
    System("llama_omni", "LLaMA-Omni", "adaptor, then adaptor and LLM, then unit decoder", OMNI),
    System(
        "cascade", "Cascade", "Whisper's transcription, read by LLaSM's LLM, which is tuned on written questions too"
    ),
    System("text", "Text (upper bound)", "the true text, read by LLaSM's LLM: perfect hearing", as_text=True),
)


def ask_llasm(out: Path, scale: Scale, bar: Progress) -> None:
    """Write `answers/*.jsonl` of LLaSM, the cascade and its LLM, `answers/copy_llasm_pretrain_*.jsonl`, `human.json`.
    What is there stays."""
    run = _runs(out, scale)
    questions = _ask(out, scale, bar, run, ("llasm", "cascade", "text"))
    _copy(out, scale, bar, run, questions, "llasm_pretrain")
    if not (target := out / "human.json").is_file():
        write_json(target, _human(run("llasm_pretrain"), out))


def ask_llama_omni(out: Path, scale: Scale, bar: Progress) -> None:
    """Write its `answers/llama_omni.jsonl`, `answers/units.json` (of the true answers), and what its first stage copies
    if it was trained on the larger corpus. What is there stays."""
    run = _runs(out, scale)
    questions = _ask(out, scale, bar, run, ("llama_omni",))
    if not (target := out / "answers" / "units.json").is_file():
        decoded = _decode_units(cast(LLaMAOmni, run("llama_omni_stage2")), questions, out / "corpus", scale.batch)
        true = [row["messages"][-1]["units"] for row in questions]
        rate = float(UnitErrorRate()(decoded, true))
        write_json(target, {"unit_error_rate": rate, "true": true, "decoded": decoded})
    if scale.sentences:
        _copy(out, scale, bar, run, questions, "llama_omni_warmup")


def _runs(out: Path, scale: Scale) -> Callable[[str], SpeechLLM]:
    """The model of a stage; one at a time, for the memory that is promised."""
    return lru_cache(maxsize=1)(lambda name: load_run(source(out, scale, name)))


def _ask(
    out: Path, scale: Scale, bar: Progress, run: Callable[[str], SpeechLLM], keys: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Put the held-out questions to these systems; returns the questions."""
    corpus, folder = out / "corpus", out / "answers"
    questions = read_questions(corpus / "qa_units_test.jsonl", corpus / "pairs.jsonl")
    folder.mkdir(exist_ok=True)
    for system in (system for system in SYSTEMS if system.key in keys):
        target, sizes = folder / f"{system.key}.jsonl", folder / f"{system.key}.json"
        if target.is_file() and sizes.is_file():
            continue
        model = _build(system.key, run)
        write_json(sizes, {"total_parameters": _size(model.llm if system.as_text else model)})
        if not target.is_file():
            task = bar.add_task(system.name, total=len(questions))
            step = partial(_advance, bar, task)
            answer_questions(model, questions, corpus, target, scale.batch, system.as_text, progress=step)
    return questions


def _copy(
    out: Path, scale: Scale, bar: Progress, run: Callable[[str], SpeechLLM], questions: list[dict[str, Any]], stage: str
) -> None:
    """What a stage writes down of speech it has not heard."""
    clips = {"questions": questions_of(questions)}
    if scale.sentences:
        clips |= {"everyday": list(everyday(out / "corpus")), "human": list(people())}
    task = bar.add_task("Copying unseen sentences", total=None)
    copy_speech(run, clips, [stage], out / "corpus", out / "answers", scale.batch)
    bar.update(task, total=1, completed=1)


def source(out: Path, scale: Scale, stage: str) -> Path:
    """Folder of a stage's result: its run, or the zoo's."""
    return published(PUBLISHED[stage]) if stage in PUBLISHED and not scale.from_scratch else out / stage


def _advance(bar: Progress, task: Any, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _build(key: str, run: Callable[[str], SpeechLLM]) -> Any:
    if key == "llama_omni":
        return run("llama_omni_stage2")
    tuned = run("llasm_finetune")
    return Cascade(str(fetch("whisper-tiny.en")), tuned.llm, tuned.prompt) if key == "cascade" else tuned


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _decode_units(model: LLaMAOmni, questions: list[dict[str, Any]], corpus: Path, size: int) -> list[list[int]]:
    """Units decoded from the states of the true answers: the unit decoder alone, apart from wrong answers."""
    decoded: list[list[int]] = []
    for start in range(0, len(questions), size):
        rows = questions[start : start + size]
        conversations = [_spoken(row, corpus) for row in rows]
        batch = encode_batch(model.prompt, conversations, answer=True, padding_side="right")
        with own_precision(model):
            decoded += [units.tolist() for units in model.units_of_answers(batch)]
    return decoded


def _spoken(row: dict[str, Any], corpus: Path) -> list[dict[str, Any]]:
    clip = {"type": "audio", "path": str(corpus / row["question_audio"])}
    return [{"role": "user", "content": [clip]}, row["messages"][-1]]


def _human(model: Any, out: Path) -> dict[str, Any]:
    """What LLaSM's adaptor stage and Whisper itself write down of people's recordings."""
    rows = list(people())
    if not rows:
        return {"note": f"no human recordings: {human_speech()[1]}", "clips": []}
    (out / "human").mkdir(exist_ok=True)
    clips = []
    whisper = Cascade(str(fetch("whisper-tiny.en")), model.llm, model.prompt)
    for row in rows:
        path = Path(shutil.copy(row["question_audio"], out / "human"))
        content = [{"type": "text", "text": ASR_INSTRUCTION}, {"type": "audio", "path": str(path)}]
        batch = encode_batch(model.prompt, [[{"role": "user", "content": content}]], answer=False)
        with own_precision(model):
            mine = model.respond(batch, max_new_tokens=64).text[0]
        heard = {"LLaSM, stage 1": mine, "Whisper": whisper.transcribe(*(batch.clips or ()))[0]}
        clips.append({"id": row["id"], "reference": row["answer"], "heard": heard, "audio": f"human/{path.name}"})
    return {
        "note": "LibriVox sentences of Debian's pocketsphinx-testdata (BSD), out of the training domain.",
        "clips": clips,
    }
