"""The records that travel between the parts, and the letters of their shapes.

Shape letters, used in every docstring of the package:

| letter | meaning                                                      |
|--------|--------------------------------------------------------------|
| B      | conversations (rows) in a batch                              |
| N      | audio clips in a batch, row by row, in the order they appear |
| T      | audio samples at 16 kHz                                      |
| F, D   | encoder frames, encoder width                                |
| A      | adaptor frames = positions one clip takes in the LLM         |
| L      | tokens of a row before splicing (one placeholder per clip)   |
| S, H   | positions after splicing, LLM width                          |
| V      | LLM vocabulary                                               |
| Q      | assistant turns that carry units                             |
| M      | supervised tokens of one assistant turn                      |
| P      | supervised tokens of all rows, row by row                    |
| U      | target units of one assistant turn                           |
| R, K   | positions of the unit decoder, number of units (blank = K)   |

Masks are boolean with True = keep. Lengths are `long` and called `*_lens`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

IGNORE = -100
"""Label of a position that is not supervised, and padding of unit targets (never 0, which is a unit)."""

AUDIO = -200
"""Token id that stands for one whole clip until the LLM splices its frames in (the official LLaMA-Omni value)."""


def present(value: T | None, name: str) -> T:
    """A field of a batch or an output that has to be there.

    Raises:
        ValueError: naming it.
    """
    if value is None:
        raise ValueError(f"there is no {name} here, which this needs")
    return value


class HostSide:
    """Sizes of a batch and its unit targets in the host's memory: whoever reads them there never waits for the device.

    No dataclass, so that Lightning does not move its tensors.
    """

    def __init__(self, width: int) -> None:
        self.width = width  # S
        self.answer_lens: Tensor | None = None  # [Q] states of each answer with units
        self.units: Tensor | None = None  # [Q, U]
        self.unit_lens: Tensor | None = None  # [Q]


@dataclass
class Written:
    """Rows of a batch with what their clips say instead of the clips; padded on the right.

    `states` are those that predict the supervised tokens.
    """

    input_ids: Tensor  # [B, L']
    attention_mask: Tensor  # [B, L'] bool
    turns: Tensor  # [B, L']; the same tokens are supervised as in the spoken row
    states: Tensor | None = None  # [P, H] cached states of a frozen LLM that has read them

    def map(self, fn: Callable[[Tensor], Tensor]) -> Written:
        """With a function applied to each tensor."""
        states = None if self.states is None else fn(self.states)
        return Written(fn(self.input_ids), fn(self.attention_mask), fn(self.turns), states)


@dataclass
class SpeechBatch:
    """One collated batch. Not frozen: Lightning moves dataclass fields in place.

    `turns` says which assistant turn (1, 2, ...) a token is supervised for; 0 means not supervised. It comes from the
    spans of the assistant text, never from a comparison with the padding id.
    """

    input_ids: Tensor  # [B, L] long, AUDIO where a clip belongs
    attention_mask: Tensor  # [B, L] bool
    turns: Tensor  # [B, L] long
    audio: Tensor | None = None  # [N, T] float in [-1, 1], 16 kHz, zero padded; None where features are given
    audio_lens: Tensor | None = None  # [N] samples
    features: Tensor | None = None  # [N, F, D] cached states of a frozen encoder
    feature_lens: Tensor | None = None  # [N] frames
    units: Tensor | None = None  # [Q, U] long, IGNORE padded
    unit_lens: Tensor | None = None  # [Q]
    unit_turns: Tensor | None = None  # [Q, 2] (row, turn) each unit sequence belongs to
    answer_states: Tensor | None = None  # [Q, M, H] cached states of a frozen LLM, 0 past each length
    answer_state_lens: Tensor | None = None  # [Q]
    positions: Tensor | None = None  # [B] spliced length of each row; given with answer_states
    written: Written | None = None  # the rows with transcripts for clips, for models that learn from reading them
    ids: list[str] = field(default_factory=list)  # B record names
    window: dict[str, int] | None = None  # targets by loss name over the accumulation window of this rank
    counts: dict[str, int] | None = None  # targets by loss name of this batch, once the model counted them
    host: HostSide | None = None  # what a step would else ask of the device; filled in on the way there

    @property
    def labels(self) -> Tensor:
        """Token ids where supervised, IGNORE elsewhere. `[B, L]`."""
        return torch.where(self.turns > 0, self.input_ids, torch.full_like(self.input_ids, IGNORE))

    @property
    def clips(self) -> tuple[Tensor, Tensor] | None:
        """Samples and lengths of all clips, `[N, T], [N]`; None where there is no sound."""
        if self.audio is None or self.audio_lens is None or not len(self.audio):
            return None
        return self.audio, self.audio_lens

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def split(self, rows: int) -> list[SpeechBatch]:
        """The questions in batches of so many rows, each with the clips of its own."""
        ends = ((self.input_ids == AUDIO) & self.attention_mask).sum(dim=1).cumsum(dim=0).tolist()
        parts = []
        for start in range(0, len(self), rows):
            here, clips = (
                slice(start, start + rows),
                slice(ends[start - 1] if start else 0, ends[start : start + rows][-1]),
            )
            part = SpeechBatch(self.input_ids[here], self.attention_mask[here], self.turns[here], ids=self.ids[here])
            for name, lens in (("audio", "audio_lens"), ("features", "feature_lens")):
                values, sizes = getattr(self, name), getattr(self, lens)
                if values is not None and sizes is not None and clips.stop > clips.start:
                    setattr(part, lens, sizes[clips])
                    setattr(part, name, values[clips, : int(sizes[clips].max())])
            parts.append(part)
        return parts

    def _map(self, fn: Callable[[Tensor], Tensor]) -> SpeechBatch:
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {name: fn(value) for name, value in values.items() if isinstance(value, Tensor)}
        if self.written is not None:
            moved["written"] = self.written.map(fn)
        return SpeechBatch(**{**values, **moved})

    def to(self, *args: Any, **kwargs: Any) -> SpeechBatch:
        """A copy with every tensor moved (`torch.Tensor.to` arguments), `host` excepted."""
        return self._map(lambda t: t.to(*args, **kwargs))

    def pin_memory(self) -> SpeechBatch:
        """A copy in page-locked memory; torch calls it for `DataLoader(pin_memory=True)`."""
        return self._map(lambda t: t.pin_memory())


@dataclass
class SpeechOutput:
    """What a forward pass of a speech LLM returns."""

    losses: dict[str, Tensor]  # scalars: mean over the targets of this batch, by loss name
    sums: dict[str, Tensor]  # scalars: the same losses summed over their targets
    hidden: Tensor | None  # [B, S, H] last LLM state, after the final norm; None where cached states replaced the LLM
    mask: Tensor  # [B, S]
    turns: Tensor  # [B, S]; like the labels [B, L], not spliced, where cached states replaced the LLM
    labels: Tensor  # [B, S]
    logits: Tensor | None = None  # [B, S, V], only when asked for
    unit_logits: Tensor | None = None  # [Q, R, K + 1]
    unit_logit_lens: Tensor | None = None  # [Q]
    counters: dict[str, int] = field(default_factory=dict)  # e.g. infeasible_units


@dataclass
class SpeechReply:
    """Answers to a batch of questions."""

    text: list[str]
    units: list[Tensor] | None = None  # B times [U]
    audio: list[Tensor] | None = None  # B times [T]
    sample_rate: int | None = None  # Hz
    heard: list[str] | None = None  # what a cascade's recogniser wrote down
    stopped: list[bool] | None = None  # by a stop token, not cut off by `max_new_tokens`


@dataclass
class TextDelta:
    """Text that follows what a row has said so far; never half a character, never taken back."""

    row: int
    text: str
    ids: list[int]  # tokens since the row's last delta; a token may bring no text, or that of tokens before it


@dataclass
class UnitDelta:
    """Units that follow those a row has spoken so far."""

    row: int
    units: Tensor  # [U], at least one


@dataclass
class AudioChunk:
    """Sound that follows what a row has sounded so far."""

    row: int
    audio: Tensor  # [T] float in [-1, 1], at least one sample, in the host's memory
    sample_rate: int  # Hz
    start_seconds: float  # of its first sample, in the row's sound


@dataclass
class StreamEnd:
    """A row is finished; the totals. Times are wall seconds since the stream was asked for its first event."""

    row: int
    text: str  # all text deltas together
    ids: list[int]  # tokens of the answer, the stop token included
    stopped: bool  # with a stop token, not by `max_new_tokens`
    seconds: float  # to this event
    units: Tensor | None = None  # [U]; None where the model speaks no units
    audio_seconds: float = 0.0  # length of the sound
    first_text_seconds: float | None = None  # None where there was none
    first_units_seconds: float | None = None
    first_audio_seconds: float | None = None
    heard: list[str] | None = None  # what a cascade's recogniser wrote down, one text per clip of the row


StreamEvent = TextDelta | UnitDelta | AudioChunk | StreamEnd

StreamEvents = Generator[StreamEvent, None, None]
"""Events as they come; closing it frees all that the answer holds."""
