"""Batches of the training data outside their turn: nothing of the run's order or random numbers changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from speechzoo.data import ConversationDataset, TokenBudgetSampler
from speechzoo.models import SpeechLLM
from speechzoo.training.exact_loss import step_loss
from speechzoo.types import SpeechBatch, SpeechOutput


class TrainingData:
    """What stands behind the training loader of `SpeechDataModule`.

    Attributes:
        dataset: its conversations.
        sampler: who deals them out.
    """

    def __init__(self, loader: Any) -> None:
        self.dataset: ConversationDataset = loader.loader.dataset
        self.sampler: TokenBudgetSampler = loader.batch_sampler
        self._collate: Callable[[list[Any]], SpeechBatch] = loader.loader.collate_fn

    @classmethod
    def of(cls, trainer: Trainer) -> TrainingData | None:
        """That of a trainer whose loaders are set up; None for loaders of another kind."""
        loader: Any = trainer.train_dataloader
        inner = getattr(loader, "loader", None)
        kinds = isinstance(getattr(inner, "dataset", None), ConversationDataset)
        return cls(loader) if kinds and isinstance(loader.batch_sampler, TokenBudgetSampler) else None

    def batch(self, numbers: Sequence[int]) -> SpeechBatch:
        """The conversations of these numbers, on the CPU."""
        return self._collate([self.dataset[number] for number in numbers])

    def telling(self, rows: int) -> list[int]:
        """Numbers of a few conversations of the first epoch, one with sound and units among them if there is any."""
        examples = self.dataset.examples
        scores = (examples.heard > 0).astype(int) + 2 * examples.spoken.astype(int)
        best = np.flatnonzero(scores == scores.max())
        others = np.random.default_rng(0).permutation(len(examples))[: rows - 1].tolist()
        return list(dict.fromkeys([int(best[len(best) // 2]), *others]))[:rows]

    def largest(self) -> list[int]:
        """Numbers of the batch with most LLM positions that this epoch or a later one can bring."""
        # What a bucket has left over joins the next longer one: a batch may reach down into shorter records.
        ordered = np.concatenate(self.sampler.buckets)
        lengths = np.asarray(self.dataset.lengths)
        candidates, end = [], 0
        for bucket, rows in zip(self.sampler.buckets, self.sampler.rows, strict=True):
            end += len(bucket)
            longest = bucket[np.argmax(lengths[bucket])]
            others = ordered[:end][ordered[:end] != longest]
            candidates.append([int(longest), *others[len(others) - min(rows - 1, len(others)) :].tolist()])
        return max(candidates, key=lambda numbers: len(numbers) * int(lengths[numbers].max()))


def there_and_back(trainer: Trainer, model: SpeechLLM, batch: SpeechBatch) -> SpeechOutput:
    """Forward and backward as training does it, leaving the gradients in place.

    The model's own hooks do not run (callbacks count batches by them), nor does a DDP wrapper, so no gradient is
    averaged. Call it inside `undisturbed`.
    """
    batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
    with trainer.precision_plugin.forward_context():
        out = model.forward(batch)
        loss: Tensor = step_loss(out.sums, model.num_targets(batch), model.loss_weights, 1, 1)
    if loss.requires_grad:
        loss.backward()
    return out


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Random numbers and gradients are afterwards as before, and the model's mode too."""
    training = model.training
    with isolate_rng(), torch.enable_grad():
        try:
            yield
        finally:
            for parameter in model.parameters():
                parameter.grad = None
            model.train(training)
