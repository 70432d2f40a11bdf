"""Batches that know how many targets their whole accumulation window holds, and that survive Lightning's hands.

The loss over an accumulation window is exact only if each micro-batch is divided by the targets of all of them; so the
loader reads a window ahead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from speechzoo.types import SpeechBatch

Count = Callable[[SpeechBatch], dict[str, int]]


class SpeechLoader:
    """A DataLoader that Lightning leaves as it is.

    Lightning would rebuild a plain DataLoader with samplers of its own for distributed runs, prediction and
    overfitting; an iterable of another kind it only iterates.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    @property
    def batch_sampler(self) -> Any:
        return self.loader.batch_sampler

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[SpeechBatch]:
        # A generator, so that asking for an iterator starts no workers: Lightning asks once only to see that it can.
        yield from self.loader


class WindowLoader(SpeechLoader):
    """A `SpeechLoader` that sets `batch.window`; see `with_windows`."""

    def __init__(
        self,
        loader: DataLoader[Any],
        count: Count,
        accumulate: int | Callable[[], int],
        progress: Callable[[], tuple[int, int]] | None,
    ) -> None:
        super().__init__(loader)
        self.count, self.accumulate, self.progress = count, accumulate, progress

    def __iter__(self) -> Iterator[SpeechBatch]:
        # Nothing happens before the first batch is asked for: by then Lightning's counters are those of the run.
        done, end = self.progress() if self.progress else (0, len(self))
        accumulate = self.accumulate() if callable(self.accumulate) else self.accumulate
        window: list[SpeechBatch] = []
        for index, batch in enumerate(self.loader, start=done + 1):
            window.append(batch)
            if index % accumulate == 0 or index == end:
                yield from _counted(window, self.count)
                window = []
            if index == end:
                return
        yield from _counted(window, self.count)

    def state_dict(self) -> dict[str, Any]:
        """Empty: the position is in Lightning's counters. That it exists tells Lightning that runs can go on here."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes nothing; Lightning skips this call anyway when a schedule asked for the number of steps (#20550)."""


def with_windows(
    loader: DataLoader[Any],
    count: Count,
    accumulate: int | Callable[[], int],
    progress: Callable[[], tuple[int, int]] | None = None,
) -> WindowLoader:
    """The loader's batches with `batch.window` set: targets by loss name over the accumulation window of this rank.

    Args:
        count: targets of a batch by loss name: the model's `num_targets`.
        accumulate: micro-batches of an optimizer step; a function is asked at each new iteration.
        progress: batches done of this epoch and batches in it. The last window of an epoch may be shorter, and
            after a resume the windows fall where Lightning steps. Default: none done, a whole loader.
    """
    return WindowLoader(loader, count, accumulate, progress)


def _counted(window: list[SpeechBatch], count: Count) -> list[SpeechBatch]:
    total: Counter[str] = Counter()
    for batch in window:
        total.update(count(batch))
    for batch in window:
        batch.window = dict(total)
    return window
