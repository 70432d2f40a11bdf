"""`speechzoo predict` leaves its answers in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from speechzoo.system.files import json_line, keep_inputs, write_atomically
from speechzoo.system.ranks import gather_rows
from speechzoo.types import SpeechBatch, SpeechReply


class AnswerWriter(Callback):
    """Writes `predictions.jsonl` into `trainer.default_root_dir`: one line a question:
    `{"id", "text", "stopped"?, "units"?}`.

    A line also has `stopped`: whether the answer ended by itself, not cut off at `max_new_tokens`. Lines are written as
    batches finish, so a killed run keeps them; with several processes each writes to `predictions.<rank>.jsonl`, which
    become one file in the order of the questions at the end.

    Args:
        filename: of the file.
    """

    def __init__(self, filename: str = "predictions.jsonl") -> None:
        self.filename = filename
        self._file: TextIO | None = None
        self._lines: list[tuple[int, str]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to write over the questions.

        Raises:
            ValueError: if the file that will be written is a manifest that is read.
        """
        records = getattr(getattr(trainer, "datamodule", None), "records", {}) if stage == "predict" else {}
        sources = [source for one in records.get("predict", {}).values() for source in one.sources]
        keep_inputs([self._path(trainer)], sources)

    def _path(self, trainer: Trainer) -> Path:
        path = Path(trainer.default_root_dir) / self.filename
        return path.with_suffix(f".{trainer.global_rank}{path.suffix}") if trainer.world_size > 1 else path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = self._path(trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self._lines = path.open("w", encoding="utf-8"), []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: SpeechReply,
        batch: SpeechBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._file is not None
        for row, name in enumerate(batch.ids):
            if not name:  # a filler row, there so that all ranks have as many batches
                continue
            record: dict[str, Any] = {"id": name, "text": outputs.text[row]}
            if outputs.stopped is not None:
                record["stopped"] = outputs.stopped[row]
            if outputs.units is not None:
                record["units"] = outputs.units[row].tolist()
            line = json_line(record)
            self._file.write(line)
            if trainer.world_size > 1:
                self._lines.append((batch_idx, line))
        self._file.flush()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._file is not None:
            self._file.close()
            if trainer.world_size > 1:
                lines = gather_rows(self._lines)
                if trainer.is_global_zero:
                    write_atomically(Path(trainer.default_root_dir) / self.filename, "".join(lines))
                trainer.strategy.barrier("predictions")
                Path(self._file.name).unlink(missing_ok=True)
            self._file = None
