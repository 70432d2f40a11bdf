"""The systems of the comparison, and everything they are asked."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from speechzoo.data import encode_batch
from speechzoo.hub import load_run
from speechzoo.llms import HFCausalLM
from speechzoo.metrics import UnitErrorRate
from speechzoo.models import Cascade, LLaMAOmni
from speechzoo.models.llama_omni import answer_states
from speechzoo.quickstart.ask import TextReader, answer_questions, read_questions
from speechzoo.quickstart.parts import fetch, human_speech
from speechzoo.quickstart.scale import Scale
from speechzoo.quickstart.stages import write_json

ASR_INSTRUCTION = "Transcribe the following speech into text."


@dataclass(frozen=True)
class System:
    """A column of the comparison."""

    key: str  # file name of its answers
    name: str
    note: str
    runs: tuple[str, ...] = ()  # training stages
    as_text: bool = False


SYSTEMS = (
    System("llasm", "LLaSM", "adaptor pretraining, then adaptor and LLM", ("llasm_pretrain", "llasm_finetune")),
    System(
        "llama_omni", "LLaMA-Omni", "adaptor and LLM, then unit decoder", ("llama_omni_stage1", "llama_omni_stage2")
    ),
    System("cascade", "Cascade", "Whisper's transcription, read by the LLM that LLaSM's stage 2 trained"),
    System("cascade_base", "Cascade, LLM as released", "Whisper's transcription, read by the LLM nobody fine-tuned"),
    System("text", "Text (upper bound)", "the true text, read by the LLM that LLaSM's stage 2 trained", as_text=True),
)


def examine(out: Path, scale: Scale, bar: Progress) -> None:
    """Write `answers/*.jsonl` of each system, `answers/asr.jsonl`, `human.json`. What is there stays."""
    corpus, folder = out / "corpus", out / "answers"
    questions = read_questions(corpus / "qa_units_test.jsonl", corpus / "pairs.jsonl")
    models: dict[str, Any] = {}

    def model(key: str) -> Any:
        if key not in models:
            if len(models) > 1:
                models.pop(next(iter(models)))  # two language models at a time fit the memory that is promised
            models[key] = _build(key, out)
        return models[key]

    for system in SYSTEMS:
        target = folder / f"{system.key}.jsonl"
        if not target.is_file():
            task = bar.add_task(system.name, total=len(questions))
            step = partial(_advance, bar, task)
            answer_questions(model(system.key), questions, corpus, target, scale.batch, system.as_text, step)
        sizes = folder / f"{system.key}.json"
        if not sizes.is_file():
            write_json(sizes, _size(model(system.key)))
    if not (target := folder / "units.json").is_file():
        write_json(target, {"unit_error_rate": _unit_error_rate(model("llama_omni"), questions, corpus, scale.batch)})
    models.clear()
    pretrained = load_run(out / "llasm_pretrain")
    if not (target := folder / "asr.jsonl").is_file():
        rows = [{**row, "answer": row["question"], "messages": []} for row in questions]
        task = bar.add_task("Copying unseen sentences", total=len(rows))
        asked = _Asked(pretrained)
        answer_questions(asked, rows, corpus, target, scale.batch, progress=partial(_advance, bar, task))
    if not (target := out / "human.json").is_file():
        write_json(target, _human(pretrained, out))


class _Asked:
    """A model that is given the recognition instruction with every clip."""

    def __init__(self, model: Any) -> None:
        self.model, self.prompt = model, _WithInstruction(model.prompt)

    def respond(self, batch: Any, **generate: Any) -> Any:
        return self.model.respond(batch, **generate)


class _WithInstruction:
    """A prompt that adds the instruction to the question."""

    def __init__(self, prompt: Any) -> None:
        self._prompt = prompt

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prompt, name)

    def encode(self, messages: list[dict[str, Any]], answer: bool = True) -> Any:
        content = [{"type": "text", "text": ASR_INSTRUCTION}, *messages[-1]["content"]]
        return self._prompt.encode([*messages[:-1], {"role": "user", "content": content}], answer)


def _advance(bar: Progress, task: Any, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _build(key: str, out: Path) -> Any:
    whisper, llm = str(fetch("whisper-tiny.en")), str(fetch("smollm2-135m-instruct"))
    if key == "llasm":
        return load_run(out / "llasm_finetune")
    if key == "llama_omni":
        return load_run(out / "llama_omni_stage2")
    tuned = load_run(out / "llasm_finetune")
    if key == "text":
        return TextReader(tuned)
    if key == "cascade":
        return Cascade(whisper, tuned.llm, tuned.prompt)
    return Cascade(whisper, partial(HFCausalLM, model=llm), tuned.prompt)


def _size(model: Any) -> dict[str, int]:
    module = model.model if isinstance(model, TextReader) else model
    if isinstance(model, TextReader):
        module = module.llm
    return {"total_parameters": sum(parameter.numel() for parameter in module.parameters())}


@torch.no_grad()
def _unit_error_rate(model: LLaMAOmni, questions: list[dict[str, Any]], corpus: Path, size: int) -> float:
    """Of the units decoded from the states of the true answers: the unit decoder alone, apart from wrong answers."""
    metric = UnitErrorRate()
    for start in range(0, len(questions), size):
        rows = questions[start : start + size]
        conversations = [_spoken(row, corpus) for row in rows]
        batch = encode_batch(model.prompt, conversations, answer=True, padding_side="right")
        with torch.autocast("cpu", torch.bfloat16):
            out = model(batch)
            states, lens = answer_states(out.hidden, out.turns, batch.unit_turns, model.unit_decoder.align)
            units = model.unit_decoder.decode(states, lens)
        metric.update([u.tolist() for u in units], [row["messages"][-1]["units"] for row in rows])
    return float(metric.compute())


def _spoken(row: dict[str, Any], corpus: Path) -> list[dict[str, Any]]:
    clip = {"type": "audio", "path": str(corpus / row["question_audio"])}
    return [{"role": "user", "content": [clip]}, row["messages"][-1]]


def _human(model: Any, out: Path) -> dict[str, Any]:
    """What LLaSM's adaptor stage and Whisper itself write down of people's recordings."""
    folder, reason = human_speech()
    if folder is None:
        return {"note": f"no human recordings: {reason}", "clips": []}
    (out / "human").mkdir(exist_ok=True)
    lines = (folder / "transcription").read_text().splitlines()
    clips = []
    whisper = Cascade(str(fetch("whisper-tiny.en")), model.llm, model.prompt)
    for line in lines:
        text, _, name = line.rpartition("(")
        path = Path(shutil.copy(folder / f"{name.rstrip(')')}.wav", out / "human"))
        words = text.replace("<s>", "").replace("</s>", "").strip()
        content = [{"type": "text", "text": ASR_INSTRUCTION}, {"type": "audio", "path": str(path)}]
        batch = encode_batch(model.prompt, [[{"role": "user", "content": content}]], answer=False)
        with torch.autocast("cpu", torch.bfloat16):
            mine = model.respond(batch, max_new_tokens=64).text[0]
        heard = whisper.transcribe(batch.audio, batch.audio_lens)[0]
        clips.append(
            {
                "id": path.stem,
                "reference": words,
                "heard": {"LLaSM, stage 1": mine, "Whisper": heard},
                "audio": f"human/{path.name}",
            }
        )
    return {
        "note": "LibriVox sentences of Debian's pocketsphinx-testdata (BSD), out of the training domain.",
        "clips": clips,
    }
