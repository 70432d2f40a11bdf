"""States of a frozen LLM kept on disk, so that it reads a conversation once and not in each epoch."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from speechzoo.data.features import clip_key
from speechzoo.data.tensor_files import TensorFiles, batches_within, share
from speechzoo.types import present

E = TypeVar("E")

StatesOf = Callable[[list[int]], tuple[Tensor, Tensor]]
"""States `[N, M, H]` and their lengths `[N]` for the conversations of such numbers together: one row for each tensor
that is kept, in the order of conversations and of a conversation's tensors."""


class LLMStates(TensorFiles, ABC, Generic[E]):
    """States of a frozen LLM, one file a conversation, in the precision they were computed in.

    A model is known by its fingerprint, a conversation by what `file` takes from it. When one of them changes the old
    states are not found any more. The folder has to be visible to every process.

    Args:
        folder: where the states are kept; several models may share it.
        fingerprint: of the model they come from.

    Attributes:
        name: of the cache, in messages.
    """

    name: ClassVar[str]

    @abstractmethod
    def file(self, example: E) -> Path:
        """Where the states of a conversation are, or will be.

        Raises:
            FileNotFoundError: if one of its sound files is not there.
        """

    @abstractmethod
    def kept(self, example: E) -> list[str]:
        """Names of the tensors that are kept of a conversation; none of one that needs no states."""

    @abstractmethod
    def size(self, example: E) -> tuple[int, int]:
        """Positions that the LLM reads, and how many of their states are kept."""

    @abstractmethod
    def called(self, example: E) -> str:
        """What messages call a conversation."""

    def missing(self, examples: Sequence[E]) -> list[int]:
        """Numbers of the conversations that need states and have none yet, one of each kind."""
        files = {self.file(example): number for number, example in enumerate(examples) if self.kept(example)}
        return sorted(number for file, number in files.items() if not file.exists())

    def build(
        self,
        examples: Sequence[E],
        numbers: Sequence[int],
        states_of: StatesOf,
        batch_size: int = 8,
        max_positions: int = 8192,
        progress: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Run the frozen model over conversations and keep the states of their answers.

        With several processes each does its share; all make the same number of forward passes, so the model may be
        sharded. Give every process the same numbers (`missing()` of one of them).

        Args:
            numbers: which of the examples.
            states_of: what computes them.
            batch_size, max_positions: most conversations and LLM positions of a forward pass, padding included.

        Raises:
            DiskFullError: if the disk has too little room.
            ValueError: if a state is not finite.
        """
        sizes = [self.size(examples[number]) for number in numbers]
        batches = batches_within(numbers, [read for read, _ in sizes], max_positions, batch_size)
        for step, (batch, own) in enumerate(share(batches, rank, world_size, "LLM states", progress)):
            states, lens = states_of(batch)
            if step == 0:
                tokens = sum(kept for _, kept in sizes)
                need = tokens * states.shape[-1] * states.element_size()
                self.check_room(f"{self.name}: answers of {len(sizes)} conversations, {tokens} tokens,", need)
            if not own:
                continue
            rows = iter([row[:length].cpu() for row, length in zip(states, lens.tolist(), strict=True)])
            for number in batch:
                example = examples[number]
                held = {name: next(rows).clone() for name in self.kept(example)}
                if not all(tensor.isfinite().all() for tensor in held.values()):
                    raise ValueError(f"LLM states of {self.called(example)} are not finite; not cached")
                self.write(self.file(example), held)

    def held(self, example: E) -> dict[str, Tensor]:
        """The tensors of a conversation, by name.

        Raises:
            FileNotFoundError: if they are not in the cache.
            ValueError: if their file is damaged.
        """
        whose = f"cached states of {self.called(example)}"
        return self.read(self.file(example), f"no {whose}", f"the {whose} are damaged")


class Spoken(Protocol):
    """A tokenised conversation, as far as its states depend on it (see `speechzoo.data.dataset.Example`)."""

    @property
    def ids(self) -> np.ndarray: ...  # [L]

    @property
    def turns(self) -> np.ndarray: ...  # [L]

    @property
    def clips(self) -> list[str]: ...  # paths

    @property
    def units(self) -> dict[int, np.ndarray]: ...  # by assistant turn

    @property
    def length(self) -> int: ...  # positions once the clips are spliced in


class StateCache(LLMStates[Spoken]):
    """LLM states of the answers that have units, for training a unit decoder without the encoder and the LLM.

    A conversation is known by its token ids, its supervised turns, which of them have units, and its sound files (path,
    size, time of change); the model by its `states_fingerprint`.
    """

    name = "state cache"

    def file(self, example: Spoken) -> Path:
        digest = hashlib.sha256(_bytes(example.ids, example.turns))
        digest.update(repr((sorted(example.units), [clip_key(path) for path in example.clips])).encode())
        return self.place(digest.hexdigest())

    def kept(self, example: Spoken) -> list[str]:
        return [str(turn) for turn in sorted(example.units)]

    def size(self, example: Spoken) -> tuple[int, int]:
        return example.length, int(np.isin(example.turns, list(example.units)).sum())

    def called(self, example: Spoken) -> str:
        return f"the conversation with {example.clips}"

    def get(self, example: Spoken) -> dict[int, Tensor]:
        """States by assistant turn, `[M, H]` each, for the turns that have units.

        Raises:
            FileNotFoundError: if they are not in the cache.
            ValueError: if their file is damaged.
        """
        if not example.units:
            return {}
        return {int(turn): states for turn, states in self.held(example).items()}


class Read(Protocol):
    """A tokenised conversation, as far as it is read with transcripts for clips."""

    @property
    def id(self) -> str: ...

    @property
    def written(self) -> tuple[np.ndarray, np.ndarray] | None: ...  # ids and turns [L']


class TeacherCache(LLMStates[Read]):
    """LLM states that predict the answers of conversations which are read, for learning from them without reading.

    A conversation is known by the token ids and the supervised turns of what is read, the transcripts among them:
    however many voices say the same, it is kept once. The model is known by its `teacher_fingerprint`.
    """

    name = "teacher cache"

    def file(self, example: Read) -> Path:
        return self.place(hashlib.sha256(_bytes(*present(example.written, "transcripts"))).hexdigest())

    def kept(self, example: Read) -> list[str]:
        return ["states"]

    def size(self, example: Read) -> tuple[int, int]:
        ids, turns = present(example.written, "transcripts")
        return len(ids), int((turns > 0).sum())

    def called(self, example: Read) -> str:
        return f"the conversation {example.id}"

    def get(self, example: Read) -> Tensor:
        """States of the supervised tokens, turn after turn. `[P, H]`.

        Raises:
            FileNotFoundError: if they are not in the cache.
            ValueError: if their file is damaged.
        """
        return self.held(example)["states"]


def _bytes(*arrays: np.ndarray) -> bytes:
    return b"".join(np.ascontiguousarray(array, dtype="<i4").tobytes() for array in arrays)
