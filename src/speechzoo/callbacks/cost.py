"""What a training stage costs: time, tokens, memory, use of the device; written as `summary.json` at its end."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from speechzoo.callbacks.flops import peak_flops, training_flops
from speechzoo.models import SpeechLLM
from speechzoo.system.commit import code_version
from speechzoo.system.files import read_json, write_json
from speechzoo.system.ranks import rank
from speechzoo.types import SpeechBatch, SpeechOutput

COUNTS = ("examples", "tokens", "supervised_tokens", "units")
FINAL = 50
"""Training losses averaged into the final one: a single batch says little."""


class StageCost(Callback):
    """Logs `train/tokens_per_second`, `train/seconds`, `train/peak_memory_mb`; writes the cost of the stage.

    On accelerators whose peak rate Lightning knows also `train/mfu`: the arithmetic that the batches needed (see
    `speechzoo.callbacks.flops`) over what the device could have done in the time, validation left out.

    `summary.json` holds seconds, validation_seconds, steps, examples, tokens (LLM positions after splicing, padding
    not), supervised_tokens, units, trainable_parameters, total_parameters, peak_memory_mb, train_loss (mean of the
    last 50 batches), val_loss and commit (of the code; several where a continued run had several). Counts are summed
    over ranks and carried over in the checkpoint, so a stage that was stopped and resumed reports all the work behind
    its result; work after the last checkpoint, which is done again, is not counted twice. Peak memory is the
    accelerator's if there is one, else this process's own (1 MB = 10^6 bytes), over the runs of the stage; on Linux the
    mark is reset when the stage starts, elsewhere it is the peak since the process started.

    Args:
        train_loss, val_loss: names under which the module logs its losses.
        filename: of the summary, in `trainer.default_root_dir`; None writes none.
    """

    def __init__(
        self, train_loss: str = "train/loss", val_loss: str = "val/loss", filename: str | None = "summary.json"
    ) -> None:
        self.train_loss, self.val_loss, self.filename = train_loss, val_loss, filename
        self._before = dict.fromkeys((*COUNTS, "seconds", "validation_seconds", "peak_memory_mb"), 0.0)
        self._now: dict[str, Tensor] = {}
        self._code: list[str] = []  # versions of the code, the first one first
        # Of each batch the sum of losses and their number: here 1 or 0, of batches before a resume that of all ranks.
        self._losses: deque[tuple[Tensor | float, float]] = deque(maxlen=FINAL)
        self._val_loss: float | None = None
        self._trainer: Trainer | None = None
        self._started: float | None = None
        self._ended: float | None = None
        self._validating: float | None = None
        self._validation = 0.0
        self._logged = (0.0, 0.0, 0.0)  # training seconds, tokens and FLOPs at the last log
        self._flops = torch.zeros(())  # of this process
        self._peak_flops: float | None = None  # a second, of this process's device
        self._hook: RemovableHandle | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        if trainer.is_global_zero:  # at the start: the checkout may go on while a run lasts
            self._code = list(dict.fromkeys([*self._code, code_version()]))
        self._now = {name: torch.zeros((), dtype=torch.long, device=trainer.strategy.root_device) for name in COUNTS}
        self._started, self._validation, self._logged = None, 0.0, (0.0, 0.0, 0.0)
        self._flops = torch.zeros((), dtype=torch.float64, device=trainer.strategy.root_device)
        self._peak_flops = peak_flops(trainer.strategy.root_device, _compute_dtype(trainer.precision))
        reset_peak(trainer.strategy.root_device)
        # The only place that knows how many positions a row takes once its clips are spliced in.
        self._hook = pl_module.register_forward_hook(self._count_positions)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._ended = time.monotonic(), None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: SpeechBatch, batch_idx: int
    ) -> None:
        self._now["examples"] += len(batch)
        self._now["supervised_tokens"] += (batch.turns > 0).sum()
        if batch.unit_lens is not None:
            self._now["units"] += batch.unit_lens.sum()
        own = hasattr(pl_module, "last_loss")  # else Lightning's copy: reading it waits for the device
        loss = getattr(pl_module, "last_loss", None) if own else trainer.callback_metrics.get(self.train_loss)
        self._losses.append((0.0, 0) if loss is None else (loss.detach(), 1))
        stepped = not trainer.fit_loop.epoch_loop._should_accumulate()  # before, what is logged is lost
        if stepped and trainer.global_step % max(getattr(trainer, "log_every_n_steps", 1), 1) == 0:
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._started is None:
            return
        if self._validating is not None:
            self._validation += time.monotonic() - self._validating
        loss = trainer.callback_metrics.get(self.val_loss)
        self._val_loss = self._val_loss if loss is None else float(loss)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ended = time.monotonic()
        summary = self.summary(trainer, pl_module)
        if not trainer.is_global_zero or self.filename is None:
            return
        path = Path(trainer.default_root_dir) / self.filename
        if self._started is None and path.is_file():
            with suppress(ValueError):
                if read_json(path).get("steps") == trainer.global_step:
                    return  # a finished stage, continued: what it goes on from was saved before its last validation
        write_json(path, summary)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def summary(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float | int | str | None]:
        """The cost of the stage so far, over all ranks and restarts; every rank must call it."""
        totals = self._totals(trainer)
        parameters = list(pl_module.parameters())
        losses = self._all_losses(trainer)
        total, number = (sum(column) for column in zip(*losses, strict=True)) if losses else (0.0, 0.0)
        return {
            "seconds": totals["seconds"],
            "validation_seconds": totals["validation_seconds"],
            "steps": trainer.global_step,
            "examples": int(totals["examples"]),
            "tokens": int(totals["tokens"]) if totals["tokens"] else None,
            "supervised_tokens": int(totals["supervised_tokens"]),
            "units": int(totals["units"]),
            "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
            "total_parameters": sum(p.numel() for p in parameters),
            "peak_memory_mb": totals["peak_memory_mb"] or None,
            "train_loss": total / number if number else None,
            "val_loss": self._val_loss,
            "commit": ", ".join(self._code) or None,
        }

    def state_dict(self) -> dict[str, Any]:
        totals, losses = dict(self._before), list[list[float]]()
        if self._trainer is not None:
            totals, losses = self._totals(self._trainer), self._all_losses(self._trainer)
        return {"totals": totals, "losses": losses, "val_loss": self._val_loss, "code": list(self._code)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = dict(state_dict["totals"])
        for saved in state_dict["losses"]:  # a number alone in checkpoints of before; of all ranks, so one has them
            loss, number = saved if isinstance(saved, list) else (saved, 1)
            self._losses.append((loss, number) if rank() == 0 else (0.0, 0))
        self._val_loss = state_dict["val_loss"]
        self._code = list(state_dict.get("code", ["not known"]))  # checkpoints of before do not say

    def _count_positions(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, SpeechOutput) and module.training:
            self._now["tokens"] += output.mask.sum()
            if self._peak_flops and isinstance(module, SpeechLLM):
                self._flops += training_flops(module, inputs[0], output)

    def _totals(self, trainer: Trainer) -> dict[str, float]:
        """Work before this process plus work of all ranks since. Collective: checkpoints are saved by all ranks."""
        now = {name: int(trainer.strategy.reduce(value.clone(), reduce_op="sum")) for name, value in self._now.items()}
        totals = {name: self._before[name] + now.get(name, 0) for name in COUNTS}
        totals["seconds"] = self._before["seconds"] + self._elapsed()
        totals["validation_seconds"] = self._before["validation_seconds"] + self._validation
        totals["peak_memory_mb"] = max(self._before["peak_memory_mb"], peak_memory_mb(trainer.strategy.root_device))
        return totals

    def _all_losses(self, trainer: Trainer) -> list[list[float]]:
        """Sum and number of the losses of the last batches over all ranks. Collective, as `_totals`."""
        own = [[float(loss), number] for loss, number in self._losses]
        sums = torch.tensor(own, dtype=torch.float32, device=trainer.strategy.root_device)
        found: list[list[float]] = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        return found

    def _elapsed(self) -> float:
        if self._started is None:
            return 0.0
        return (time.monotonic() if self._ended is None else self._ended) - self._started

    def _log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        training, tokens, flops = self._elapsed() - self._validation, float(self._now["tokens"]), float(self._flops)
        span = max(training - self._logged[0], 1e-9)
        # This rank's share times the ranks: their batches hold the same token budget, so no collective is needed.
        rate = (tokens - self._logged[1]) * trainer.world_size / span
        used = (flops - self._logged[2]) / span
        self._logged = training, tokens, flops
        values = {"train/seconds": self._before["seconds"] + self._elapsed()}
        values["train/peak_memory_mb"] = peak_memory_mb(trainer.strategy.root_device)
        if tokens:
            values["train/tokens_per_second"] = rate
        if self._peak_flops and flops:
            values["train/mfu"] = used / self._peak_flops
        pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory use in MB (10^6 bytes): allocated on a CUDA device, else resident in this process.

    0 where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes on macOS, KiB on Linux


def _compute_dtype(precision: str) -> torch.dtype:
    """What matrix products are computed in under a Trainer's precision."""
    return {"bf": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(str(precision)[:2], torch.float32)


def reset_peak(device: torch.device) -> None:
    """Let peak memory be that of what follows, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # no Linux, or not allowed: the peak is then the process's
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the high-water mark
