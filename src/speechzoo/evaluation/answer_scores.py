"""The scores of a run's own answers: what `speechzoo predict` and `speechzoo test` write and print."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from speechzoo.callbacks.samples import take_questions
from speechzoo.data.record import Record, clip_paths
from speechzoo.evaluation.answers import MEASURES, Answer, cut_answers, normalisers, save_answers, score
from speechzoo.evaluation.tables import percent
from speechzoo.system.ranks import gather_rows
from speechzoo.types import SpeechBatch, SpeechReply


class AnswerScores(Callback):
    """Scores answers against the last assistant message of their records, in `predict` and in `test`.

    All processes' answers go to `answers.jsonl` in `trainer.default_root_dir`, which `speechzoo compare` reads, and
    their word and character error rates, exact match, ROUGE-L and, where records hold units and the model speaks them,
    unit error rate to the screen, and to the loggers of a Trainer of your own (`predict/wer` ...). Questions without a
    reference are left out; without any nothing is written. It also says how many answers were cut off at
    `max_new_tokens`.

    `test` asks the questions after each batch of losses; give `limit_test_batches` for fewer.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._rows: list[tuple[int, Answer]] = []
        self._cut: list[tuple[int, bool]] = []  # of all answers, also those without a reference
        self._records: dict[tuple[str, str], tuple[Any, dict[str, int]]] = {}
        self._start, self._batches = 0.0, 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start = time.perf_counter()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if isinstance(outputs, SpeechReply) and isinstance(batch, SpeechBatch):
            self._take(trainer, "predict", "predict", outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        names = getattr(getattr(trainer, "datamodule", None), "test_names", [])
        if not isinstance(batch, SpeechBatch) or not hasattr(pl_module, "respond") or not names:
            return
        # All processes ask, also those with fillers only: a sharded model needs them all.
        questions = trainer.strategy.batch_to_device(take_questions(batch.to("cpu"), len(batch)).batch)
        self._start = time.perf_counter()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            reply = pl_module.respond(questions)
        self._take(trainer, "test", names[dataloader_idx], reply, batch)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "predict")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer, pl_module, "test")

    def _take(self, trainer: Trainer, split: str, name: str, reply: SpeechReply, batch: SpeechBatch) -> None:
        seconds = (time.perf_counter() - self._start) / len(batch)
        for row, identity in enumerate(batch.ids):
            if not identity:  # a filler row, there so that all ranks have as many batches
                continue
            stopped = None if reply.stopped is None else reply.stopped[row]
            if stopped is not None:
                self._cut.append((self._batches, not stopped))
            record = self._record(trainer, split, name, identity)
            if record is None or not (reference := _text(record.messages[-1:], "assistant")):
                continue
            units = None if reply.units is None else reply.units[row].tolist()
            clips = clip_paths(record.messages)
            answer = Answer(
                id=identity,
                kind=record.file.stem if split == "predict" else name,
                # Sound is told by its file: the words beside it may be the same instruction for all.
                question="" if clips else _text(record.messages, "user"),
                reference=reference,
                text=reply.text[row],
                heard=None,
                units=units,
                reference_units=None if units is None else record.messages[-1].get("units"),
                seconds=seconds,
                audio=" ".join(clips) or None,
                stopped=stopped,
            )
            self._rows.append((self._batches, answer))
        self._batches += 1

    def _record(self, trainer: Trainer, split: str, name: str, identity: str) -> Record | None:
        """The record of an id, with its answer, which questions come without."""
        if (split, name) not in self._records:
            records = getattr(getattr(trainer, "datamodule", None), "records", {}).get(split, {}).get(name, [])
            numbers = {record.id: number for number, record in enumerate(records)}
            self._records[split, name] = records, numbers
        records, numbers = self._records[split, name]
        return records[numbers[identity]] if identity in numbers else None

    def _finish(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        answers, cut = gather_rows(self._rows), gather_rows(self._cut)
        if not trainer.is_global_zero:
            return
        if any(cut):
            limit = getattr(pl_module, "generation", {}).get("max_new_tokens", 256)
            rank_zero_warn(
                f"{sum(cut)} of {len(cut)} answers were cut off at {limit} tokens: raise "
                "model.init_args.generation.max_new_tokens, or see whether the model learned to stop"
            )
        if not answers:
            return
        if len({answer.id for answer in answers}) < len(answers):  # several test sets
            answers = [replace(answer, id=f"{answer.kind}/{answer.id}") for answer in answers]
        path = Path(trainer.default_root_dir) / "answers.jsonl"
        save_answers(path, answers)
        scores = score(answers)
        lines = [f"{path}: {len(answers)} answers, {cut_answers(answers) or 0} cut off"]
        for measure in MEASURES:
            if measure.key in scores:
                value, low, high = scores[measure.key]
                lines.append(f"  {measure.name:<16} {percent(value):>8}  [{percent(low)}, {percent(high)}]")
        print("\n".join([*lines, f"  {normalisers(answers)}"]), flush=True)
        numbers = {f"{stage}/{m.key}": scores[m.key].value for m in MEASURES if m.key in scores}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)
            logger.save()


def _text(messages: list[dict[str, Any]], role: str) -> str:
    """The words of messages of a role."""
    contents = [message["content"] for message in messages if message["role"] == role]
    texts = [
        content
        if isinstance(content, str)
        else " ".join(part["text"] for part in content if part.get("type") == "text")
        for content in contents
    ]
    return "\n".join(texts).strip()
