"""States of a frozen LLM kept on disk, so that training a unit decoder runs encoder and LLM once, not each epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from speechzoo.data.features import clip_key
from speechzoo.data.tensor_files import TensorFiles, batches_within, share


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


class StateCache(TensorFiles):
    """LLM states of the answers that have units, one file a conversation, in the precision they were computed in.

    A conversation is known by its token ids, its supervised turns, which of them have units, and its sound files (path,
    size, time of change); a model by its fingerprint. When one of them changes the old states are not found any more.
    The folder has to be visible to every process.

    Args:
        folder: where the states are kept; several models may share it.
        fingerprint: `states_fingerprint` of the model they come from.
    """

    def file(self, example: Spoken) -> Path:
        """Where the states of a conversation are, or will be.

        Raises:
            FileNotFoundError: if one of its sound files is not there.
        """
        digest = hashlib.sha256(np.ascontiguousarray(example.ids, dtype="<i4").tobytes())
        digest.update(np.ascontiguousarray(example.turns, dtype="<i4").tobytes())
        digest.update(repr((sorted(example.units), [clip_key(path) for path in example.clips])).encode())
        return self.place(digest.hexdigest())

    def missing(self, examples: Sequence[Spoken]) -> list[int]:
        """Numbers of the conversations that have units but no states yet, one of each kind."""
        files = {self.file(example): number for number, example in enumerate(examples) if example.units}
        return sorted(number for file, number in files.items() if not file.exists())

    def get(self, example: Spoken) -> dict[int, Tensor]:
        """States by assistant turn, `[M, H]` each, for the turns that have units.

        Raises:
            FileNotFoundError: if they are not in the cache.
            ValueError: if their file is damaged.
        """
        if not example.units:
            return {}
        whose = f"cached states of the conversation with {example.clips}"
        found = self.read(self.file(example), f"no {whose}", f"the {whose} are damaged")
        return {int(turn): states for turn, states in found.items()}

    def build(
        self,
        examples: Sequence[Spoken],
        numbers: Sequence[int],
        states_of: Callable[[list[int]], tuple[Tensor, Tensor]],
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
            states_of: states `[Q, M, H]` and their lengths `[Q]` for the conversations of such numbers together: one
                row for each turn with units, in the order of conversations and turns.
            batch_size, max_positions: most conversations and LLM positions of a forward pass, padding included.

        Raises:
            DiskFullError: if the disk has too little room.
            ValueError: if a state is not finite.
        """
        lengths = [examples[number].length for number in numbers]
        batches = batches_within(numbers, lengths, max_positions, batch_size)
        for step, (batch, own) in enumerate(share(batches, rank, world_size, "LLM states", progress)):
            states, lens = states_of(batch)
            if step == 0:
                some = [examples[number] for number in numbers]
                tokens = sum(int(np.isin(example.turns, list(example.units)).sum()) for example in some)
                need = tokens * states.shape[-1] * states.element_size()
                self.check_room(f"state cache: answers of {len(some)} conversations, {tokens} tokens,", need)
            if not own:
                continue
            if not states.isfinite().all():
                clips = [examples[number].clips for number in batch]
                raise ValueError(f"LLM states of one of the conversations with {clips} are not finite; not cached")
            rows = iter([row[:length].cpu() for row, length in zip(states, lens.tolist(), strict=True)])
            for number in batch:
                held = {str(turn): next(rows).clone() for turn in sorted(examples[number].units)}
                self.write(self.file(examples[number]), held)
