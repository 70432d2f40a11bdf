"""Ends a run that hangs, and names the process that the others wait for."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed import TCPStore
from torch.utils.hooks import RemovableHandle

EXIT_CODE = 75
"""Of a run that was ended: "temporary failure, try again" (sysexits.h)."""


@dataclass
class Beat:
    """What a process last told about itself."""

    number: int  # hooks it has passed
    step: int  # optimizer steps
    doing: str
    told: float  # wall time

    @classmethod
    def read(cls, line: str) -> Beat:
        """From the form `write` gives."""
        number, step, told, doing = line.split(" ", 3)
        return cls(int(number), int(step), doing, float(told))

    def write(self) -> str:
        """As one line."""
        return f"{self.number} {self.step} {self.told} {self.doing}"


class Watchdog(Callback):
    """Watches that training goes on; after `timeout_seconds` without progress names the ranks that are behind and ends
    this process with exit code 75.

    A thread of each process tells the others through a store of its own (a port of rank 0) which hook it passed last.
    A process that is behind is slow or stuck, one that no longer tells anything is dead; a collective call would wait
    for either for ever. The stack of every thread is printed too. Nothing is saved: go on with `--ckpt_path last`.

    Args:
        timeout_seconds: longest time between two hooks (batches, validation batches, checkpoints). The longest thing
            to wait for is usually a sharded checkpoint, or a generated table of answers. Less than the timeout of the
            process group (30 minutes), which would else end the run without a name.
        beat_seconds: between messages.
    """

    def __init__(self, timeout_seconds: float = 600.0, beat_seconds: float = 2.0) -> None:
        if not 0 < beat_seconds < timeout_seconds:
            raise ValueError("Watchdog: beat_seconds is positive and less than timeout_seconds")
        self.timeout_seconds, self.beat_seconds = timeout_seconds, beat_seconds
        self._beat = Beat(0, 0, "start", time.time())
        self._moved = time.monotonic()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._store: TCPStore | None = None
        self._warned = False
        self._hook: RemovableHandle | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._over.clear()
        rank, world = trainer.global_rank, trainer.world_size
        if world > 1:
            self._store = _store(trainer, timedelta(seconds=self.timeout_seconds))
        self._pass(trainer, "start of training")
        # Processes meet after the forward pass (counts of targets) and in the backward pass (gradients).
        self._hook = pl_module.register_forward_hook(lambda *_: self._pass(trainer, "after a forward pass"))
        self._thread = threading.Thread(target=self._watch, args=(rank, world), daemon=True, name="watchdog")
        self._thread.start()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._pass(trainer, f"training batch {batch_idx}")

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._pass(trainer, "backward pass")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._pass(trainer, f"after training batch {batch_idx}, waiting for data or saving")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._pass(trainer, f"validation batch {batch_idx}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pass(trainer, "end of validation")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pass(trainer, "saving a checkpoint")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop("end of training")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop(f"ended by {type(exception).__name__}")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop("end of training")

    def _pass(self, trainer: Trainer, doing: str) -> None:
        self._beat = Beat(self._beat.number + 1, trainer.global_step, doing, time.time())
        self._moved, self._warned = time.monotonic(), False

    def _stop(self, doing: str) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._beat = Beat(self._beat.number + 1, self._beat.step, doing, time.time())
        self._over.set()
        thread.join(timeout=self.beat_seconds + 1)
        self._store = None

    def _watch(self, rank: int, world: int) -> None:
        while not self._over.wait(self.beat_seconds):
            self._tell(rank)
            still = time.monotonic() - self._moved
            if still > self.timeout_seconds:
                print(self._verdict(rank, world, still), file=sys.stderr, flush=True)
                faulthandler.dump_traceback(sys.stderr)
                os._exit(EXIT_CODE)
            if still > self.timeout_seconds / 2 and not self._warned:
                self._warned = True
                print(self._verdict(rank, world, still), file=sys.stderr, flush=True)
        self._tell(rank)

    def _tell(self, rank: int) -> None:
        beat = Beat(self._beat.number, self._beat.step, self._beat.doing, time.time())
        if self._store is not None:
            with suppress(RuntimeError):  # rank 0 is gone, and its store with it: `_verdict` says so
                self._store.set(str(rank), beat.write())

    def _verdict(self, rank: int, world: int, still: float) -> str:
        own = f"watchdog of rank {rank}: no progress for {still:.0f} s at step {self._beat.step} ({self._beat.doing})"
        if self._store is None:
            return f"{own}; limit {self.timeout_seconds:g} s"
        beats: dict[int, Beat | None] = {}
        for other in range(world):
            try:
                known = self._store.check([str(other)])
                beats[other] = Beat.read(self._store.get(str(other)).decode()) if known else None
            except RuntimeError:
                return (
                    f"{own}; rank 0 cannot be reached: it is dead, or its machine is; limit {self.timeout_seconds:g} s"
                )
        return f"{own}; {behind(beats, time.time(), 5 * self.beat_seconds)}; limit {self.timeout_seconds:g} s"


def behind(beats: dict[int, Beat | None], now: float, silence: float) -> str:
    """Which ranks the others wait for, in words.

    Args:
        beats: the last of each rank; None from those that never told anything.
        now: wall time, seconds.
        silence: seconds without a message after which a process counts as dead.
    """
    told = [beat for beat in beats.values() if beat is not None]
    front = max((beat.number for beat in told), default=0)
    lines = []
    for rank, beat in beats.items():
        if beat is None:
            lines.append(f"rank {rank} never started")
        elif now - beat.told > silence:
            text = f"rank {rank} is dead or stopped (last heard {now - beat.told:.0f} s ago"
            lines.append(f"{text} at step {beat.step}, {beat.doing})")
        elif beat.number < front:
            lines.append(f"rank {rank} is behind (step {beat.step}, {beat.doing})")
    return ", ".join(lines) if lines else "all ranks are at the same place: a collective call or the machine hangs"


def _store(trainer: Trainer, timeout: timedelta) -> TCPStore:
    """A store of our own: the process group's may be blocked by what we watch."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    store = None
    if trainer.global_rank == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
    port = trainer.strategy.broadcast(0 if store is None else store.port)
    return store or TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
