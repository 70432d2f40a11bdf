"""Answers to the same few validation questions after each validation, as a table in the loggers and as JSONL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from speechzoo.audio import SAMPLE_RATE
from speechzoo.system.files import write_jsonl
from speechzoo.types import AUDIO, SpeechBatch, SpeechReply
from speechzoo.vocoders import Vocoder, open_vocoder

COLUMNS = ["id", "prompt", "reference", "answer", "heard", "audio", "answer_audio"]


@dataclass
class Questions:
    """The prompts of a batch without their answers, and the token ids of both for showing them."""

    batch: SpeechBatch
    prompts: list[list[int]]
    references: list[list[int]]


class SampleTable(Callback):
    """Answers the first validation questions after each validation and shows them beside their references.

    The questions come from `trainer.datamodule.predict_batch(num)` if there is such a method, else from the first
    rows that validation sees; they are kept, so every table shows the same ones. Every rank answers them (a sharded
    model needs all of them to generate), rank 0 writes: a table with sound to `WandbLogger`, without sound to other
    loggers that have `log_table`, and `samples/<step>.jsonl` in `trainer.default_root_dir`.

    The module must have `respond(batch, max_new_tokens=...) -> SpeechReply` and `prompt` (a `ChatPrompt`, or anything
    with `decode(ids) -> str`). Where encoder features are cached and the batch has no sound, the question is heard
    from `trainer.datamodule.clips(record_id) -> list of [T] at 16 kHz`, if there is such a method.

    Args:
        num: questions to answer.
        every_n_val: answer after every n-th validation.
        max_new_tokens: longest answer, in tokens; default: the model's own setting, 64 if it has none.
        key: name of the table in the loggers.
        vocoder: folder of a vocoder (see `open_vocoder`) for the units of a model that speaks: the answers are then
            heard in W&B as well. It runs on the CPU, in rank 0.

    Raises:
        ValueError: at the start of training, if the vocoder is for other units than the model's, or it speaks none.
    """

    def __init__(
        self,
        num: int = 8,
        every_n_val: int = 1,
        max_new_tokens: int | None = None,
        key: str = "val/samples",
        vocoder: str | None = None,
    ) -> None:
        if num < 1 or every_n_val < 1 or (max_new_tokens is not None and max_new_tokens < 1):
            given = f"{num}, {every_n_val} and {max_new_tokens}"
            raise ValueError(f"num, every_n_val and max_new_tokens must be at least 1, got {given}")
        self.num, self.every_n_val, self.max_new_tokens, self.key = num, every_n_val, max_new_tokens, key
        self._validations = 0
        self._questions: list[Questions] = []
        self._complete = False
        self._asked = False  # the sound of the questions is logged once
        self._vocoder_folder = vocoder
        self._vocoder: Vocoder | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage != "fit" or self._vocoder_folder is None or self._vocoder is not None:
            return
        units, vocoder = getattr(pl_module, "num_units", None), open_vocoder(self._vocoder_folder)
        if vocoder.num_units != units:
            speaks = f"speaks {units} units" if units else "speaks no units"
            raise ValueError(
                f"SampleTable.vocoder {self._vocoder_folder}: knows {vocoder.num_units} units, this "
                f"{type(pl_module).__name__} {speaks}: take the vocoder of its units, or leave it out"
            )
        self._vocoder = vocoder

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: SpeechBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.sanity_checking or self._complete or _has(_datamodule(trainer), "predict_batch"):
            return
        missing = self.num - sum(len(q.prompts) for q in self._questions)
        if missing > 0:
            self._questions.append(take_questions(batch.to("cpu"), missing))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        self._complete_questions(trainer)
        self._validations += 1
        if self._validations % self.every_n_val or not self._questions:
            return
        rows = []
        for questions in self._questions:
            batch = trainer.strategy.batch_to_device(questions.batch)
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                own = getattr(pl_module, "generation", {}).get("max_new_tokens", 64)
                reply = pl_module.respond(batch, max_new_tokens=self.max_new_tokens or own)
            if trainer.is_global_zero:
                if self._vocoder is not None and reply.audio is None and reply.units is not None:
                    reply.audio = self._vocoder([units.cpu() for units in reply.units])
                    reply.sample_rate = self._vocoder.sample_rate
                rows += _rows(questions, reply, pl_module.prompt.decode, _datamodule(trainer))
        if trainer.is_global_zero:
            self._write(trainer, rows)

    def _complete_questions(self, trainer: Trainer) -> None:
        """After the first validation every rank holds the questions of rank 0."""
        if self._complete:
            return
        if _has(_datamodule(trainer), "predict_batch"):
            self._questions = [take_questions(_datamodule(trainer).predict_batch(self.num).to("cpu"), self.num)]
        self._questions = trainer.strategy.broadcast(self._questions)
        self._complete = True

    def _write(self, trainer: Trainer, rows: list[dict[str, Any]]) -> None:
        path = Path(trainer.default_root_dir) / "samples" / f"{trainer.global_step:06d}.jsonl"
        write_jsonl(path, ({k: v for k, v in row.items() if not isinstance(v, tuple)} for row in rows))
        loggers: list[Any] = trainer.loggers
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                self._log_wandb(logger, rows, trainer.global_step)
            elif _has(logger, "log_table"):
                data = [[row.get(name) for name in COLUMNS[:-2]] for row in rows]
                logger.log_table(self.key, columns=COLUMNS[:-2], data=data, step=trainer.global_step)

    def _log_wandb(self, logger: WandbLogger, rows: list[dict[str, Any]], step: int) -> None:
        data = [[_wandb_cell(row.get(name)) for name in COLUMNS] for row in rows]
        logger.log_table(self.key, columns=COLUMNS, data=data, step=step)
        # Sounds of a table are kept in W&B's data folder until they are uploaded; these lie in the run's own folder.
        for name in ("audio", "answer_audio"):
            sounds = [(row[name], row["id"]) for row in rows if name in row]
            if sounds and not (name == "audio" and self._asked):
                samples, rates = [s for (s, _), _ in sounds], [rate for (_, rate), _ in sounds]
                captions = [caption for _, caption in sounds]
                logger.log_audio(f"{self.key}_{name}", samples, step=step, sample_rate=rates, caption=captions)
        self._asked = True


def take_questions(batch: SpeechBatch, num: int) -> Questions:
    """The first `num` rows without their last answer: what a model is asked, and what it should say.

    Earlier turns of a conversation stay. Rows keep their padding; what is cut away becomes padding. Units and targets
    are dropped. Rows must come with all their clips in `audio` or `features`.
    """
    num = min(num, len(batch))
    ids, mask = batch.input_ids[:num], batch.attention_mask[:num].clone()
    last = batch.turns[:num].amax(dim=1, keepdim=True)
    answer = (batch.turns[:num] == last) & (last > 0)
    position = torch.arange(ids.shape[1])
    first = torch.where(answer, position, ids.shape[1]).amin(dim=1, keepdim=True)
    mask &= position < first
    clips = (batch.input_ids == AUDIO) & batch.attention_mask
    kept = ((clips[:num] & mask).sum(dim=1), clips[:num].sum(dim=1))
    index = _clip_index(*kept)
    # Left padding: what generation continues is then the last column of every row.
    width = int(mask.sum(dim=1).max())
    new_ids, new_mask = ids.new_zeros(num, width), mask.new_zeros(num, width)
    for row in range(num):
        tokens = ids[row][mask[row]]
        new_ids[row, width - len(tokens) :] = tokens
        new_mask[row, width - len(tokens) :] = True
    prompts = SpeechBatch(
        input_ids=new_ids,
        attention_mask=new_mask,
        turns=torch.zeros_like(new_ids),
        audio=_select(batch.audio, index),
        audio_lens=_select(batch.audio_lens, index),
        features=_select(batch.features, index),
        feature_lens=_select(batch.feature_lens, index),
        ids=batch.ids[:num],
    )
    references = [ids[row][answer[row]].tolist() for row in range(num)]
    return Questions(prompts, [new_ids[row][new_mask[row]].tolist() for row in range(num)], references)


def _clip_index(kept: Tensor, present: Tensor) -> Tensor:
    """Rows of `audio` that belong to kept prompts; an answer, cut away, may be followed by turns with clips."""
    starts = present.cumsum(0) - present
    return torch.cat([torch.arange(int(s), int(s) + int(k)) for s, k in zip(starts, kept, strict=True)])


def _select(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index]


def _rows(
    questions: Questions, reply: SpeechReply, decode: Callable[[list[int]], str], datamodule: Any
) -> list[dict[str, Any]]:
    """One record per question; sounds are (samples, Hz)."""
    rows, clip = [], 0
    for row, name in enumerate(questions.batch.ids):
        count = questions.prompts[row].count(AUDIO)
        record: dict[str, Any] = {
            "id": name,
            "prompt": decode(questions.prompts[row]),
            "reference": decode(questions.references[row]),
            "answer": reply.text[row],
        }
        if reply.heard is not None:
            record["heard"] = reply.heard[row]
        if reply.units is not None:
            record["units"] = reply.units[row].tolist()
        batch = questions.batch
        if batch.audio is not None and batch.audio_lens is not None:
            clips = [batch.audio[i, : int(batch.audio_lens[i])] for i in range(clip, clip + count)]
        else:
            clips = datamodule.clips(name) if _has(datamodule, "clips") else []
        if clips:
            record["audio"] = (torch.cat([c.float() for c in clips]).numpy(), SAMPLE_RATE)
        if reply.audio is not None and reply.sample_rate is not None and len(reply.audio[row]):
            record["answer_audio"] = (reply.audio[row].float().cpu().numpy(), reply.sample_rate)
        rows.append(record)
        clip += count
    return rows


def _wandb_cell(value: Any) -> Any:
    if not isinstance(value, tuple):
        return value
    import wandb

    return wandb.Audio(value[0], sample_rate=value[1])


def _has(thing: Any, method: str) -> bool:
    return callable(getattr(thing, method, None))


def _datamodule(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)  # set by fit; None where dataloaders were given
