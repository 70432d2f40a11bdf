"""Which records form which batch: similar lengths, a token budget, equal work on all ranks, exact continuation.

The order depends on nothing but the seed and the number of batches done. Epoch hooks come too late after a resume
(Lightning makes the iterator first), so nothing here listens to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

SPREAD = 1.05
"""Longest over shortest record of a bucket, so that 2 to 4 % of the positions are padding; see benchmarks/README.md."""


class TokenBudgetSampler(Sampler[list[int]]):
    """Batches of record numbers for training, without end: iterating gives the next `len(self)` of them.

    Records are sorted into buckets of similar length, shuffled inside their bucket each epoch and cut into steps of
    one batch per rank; then the steps are shuffled. What a bucket has left over joins the next longer bucket, or
    makes a smaller step where that is far longer. Each record occurs exactly once per epoch, except that the last
    step of the longest bucket repeats fewer than `world_size` records, so that each rank gets as many rows as the
    others. Every epoch has the same number of batches, the same on all ranks.

    Args:
        lengths: positions of each record.
        batch_size: most rows of a batch.
        max_tokens: most positions of a batch, rows times longest; a longer single record gets a batch of its own.
        seed: of the order.
        rank, world_size: this process and how many there are.
        start: batches of this rank done so far, over all epochs; a function is asked at each new iteration.
        spread: longest over shortest record of a bucket.

    Raises:
        ValueError: if there are no records.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        max_tokens: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int | Callable[[], int] = 0,
        spread: float = SPREAD,
    ) -> None:
        self.lengths = np.asarray(lengths)
        if not len(self.lengths):
            raise ValueError("there are no records to sample from")
        self.seed, self.rank, self.world_size, self.start = seed, rank, world_size, start
        by_length = np.argsort(self.lengths, kind="stable")
        self.buckets = _buckets(by_length, self.lengths, spread)
        self.rows = [_rows(int(self.lengths[bucket[-1]]), batch_size, max_tokens) for bucket in self.buckets]
        self._epoch, self._batches = 0, self._plan(0)

    def __len__(self) -> int:
        """Batches of one rank in an epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        start = self.start() if callable(self.start) else self.start
        for number in range(start, start + len(self)):
            epoch, step = divmod(number, len(self))
            if epoch != self._epoch:
                self._epoch, self._batches = epoch, self._plan(epoch)
            yield self._batches[step].tolist()

    @property
    def order(self) -> dict[str, int]:
        """What the order rests on: it goes on after a resume only if none of this has changed."""
        total = int(self.lengths.sum())
        return {
            "seed": self.seed,
            "records": len(self.lengths),
            "positions": total,
            "ranks": self.world_size,
            "batches": len(self),
        }

    def _plan(self, epoch: int) -> list[np.ndarray]:
        """This rank's batches of an epoch."""
        generator = np.random.default_rng((self.seed, epoch))
        steps: list[np.ndarray] = []
        left = np.empty(0, dtype=np.int64)
        for bucket, rows, next_rows in zip(self.buckets, self.rows, [*self.rows[1:], 0], strict=True):
            pool = np.concatenate([left, generator.permutation(bucket)])
            whole = len(pool) // (rows * self.world_size) * rows * self.world_size
            steps += list(pool[:whole].reshape(-1, rows * self.world_size))
            left = pool[whole:]
            even = len(left) // self.world_size * self.world_size
            if even and 2 * next_rows < rows:  # far longer records follow, whose small batches would waste these
                steps.append(left[:even])
                left = left[even:]
        if len(left):
            alike = steps[-1] if steps else left
            steps.append(np.concatenate([left, np.resize(alike, -len(left) % self.world_size)]))
        # Dealt out by length, so that the ranks of a step wait for one another as little as possible.
        dealt = [step[np.argsort(self.lengths[step], kind="stable")][self.rank :: self.world_size] for step in steps]
        return [dealt[index] for index in generator.permutation(len(dealt))]


class EvalSampler(Sampler[list[int]]):
    """Batches of record numbers for evaluation: every record exactly once over all ranks, in a fixed order.

    All ranks get the same number of batches. Where records run out, a rank gets a filler: the shortest record as
    `~number`, which `ConversationDataset` gives without targets and with an empty id. Count nothing of such rows.

    Args:
        keep_order: batches of neighbouring records in the order of the file, instead of similar lengths in mixed
            order (so that `limit_val_batches` sees all lengths).

    The other arguments are those of `TokenBudgetSampler`.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        max_tokens: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        keep_order: bool = False,
    ) -> None:
        order = range(len(lengths)) if keep_order else np.argsort(lengths, kind="stable").tolist()
        batches: list[list[int]] = []
        for index in order:
            longest = max(lengths[other] for other in [*batches[-1], index]) if batches else 0
            if not batches or len(batches[-1]) >= _rows(longest, batch_size, max_tokens):
                batches.append([])
            batches[-1].append(index)
        if batches:
            filler = [~int(np.argmin(lengths))]
            batches += [filler] * (-len(batches) % world_size)
        steps = [batches[first : first + world_size] for first in range(0, len(batches), world_size)]
        if not keep_order:
            steps = [steps[index] for index in np.random.default_rng(0).permutation(len(steps))]
        self.batches = [step[rank] for step in steps]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _rows(longest: int, batch_size: int, max_tokens: int | None) -> int:
    """Records of up to `longest` positions that fit a batch."""
    return batch_size if max_tokens is None else max(1, min(batch_size, max_tokens // max(longest, 1)))


def _buckets(by_length: np.ndarray, lengths: np.ndarray, spread: float) -> list[np.ndarray]:
    """Records sorted by length, cut wherever a record is more than `spread` times as long as its bucket's first."""
    borders, first = [0], 0
    ordered = lengths[by_length]
    while first < len(ordered):
        first = int(np.searchsorted(ordered, ordered[first] * spread, side="right"))
        borders.append(first)
    return [by_length[a:b] for a, b in pairwise(borders)]
