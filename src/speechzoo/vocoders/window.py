"""Which frames a chunk of sound is computed from, in windows of few lengths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from speechzoo.vocoders.reach import Reach

STEP = 16
"""Frames that the length of a window is rounded up to. oneDNN prepares a convolution anew for every length it has not
met, which took longer than the arithmetic of a chunk of the quickstart's."""


@dataclass(frozen=True)
class Window:
    """Frames `start ... stop - 1`, with zeros before or after them where what they spoil is not wanted.

    Attributes:
        before, after: numbers of zeros; 0 at an end of the sound, whose edge is the one the whole has.
        first, last: frames of the window whose samples are made, the zeros' share among them.
    """

    start: int
    stop: int
    before: int
    after: int
    first: int
    last: int

    @classmethod
    def of(cls, reach: Reach, first: int, last: int, total: int) -> Window:
        """The window for the frames `first ... last - 1` of `total` frames."""
        start, stop = max(0, first - reach.left), min(total, last + reach.right)
        spare = -(stop - start) % STEP
        after = spare if stop < total else 0
        before = spare if start > 0 and not after else 0
        return cls(start, stop, before, after, first - start, last - start + before + after)

    def cut(self, frames: Tensor) -> Tensor:
        """The window of all frames. Shape: `[F, C] -> [W, C]`."""
        return self.pad(frames[self.start : self.stop])

    def pad(self, frames: Tensor) -> Tensor:
        """The window of frames `start ... stop - 1` alone. Shape: `[stop - start, C] -> [W, C]`."""
        return F.pad(frames, (0, 0, self.before, self.after))

    def wanted(self, wave: Tensor, hop: int) -> Tensor:
        """What was asked for of the samples of `first ... last - 1`. Shape: `[(last - first) * hop] -> [T]`."""
        return wave[self.before * hop : len(wave) - self.after * hop]
