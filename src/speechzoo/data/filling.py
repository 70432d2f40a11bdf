"""Caches of frozen states as a Trainer's model fills them before training: its precision, its device, its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from speechzoo.data.collate import Item, collate
from speechzoo.data.dataset import ConversationDataset
from speechzoo.data.features import FeatureCache
from speechzoo.data.states import LLMStates
from speechzoo.types import SpeechBatch

E = TypeVar("E")


def fingerprint(trainer: Any, option: str, method: str, whom: str, source: str) -> str:
    """What the model says that its cached states depend on.

    Args:
        option: of the data module, that asks for them.
        method: of the model, that tells; only models with such states have it.
        whom: which models these are.
        source: what states are computed from.

    Raises:
        ValueError: if the model has no such states, or they would change while it learns.
    """
    model = trainer.lightning_module
    if not hasattr(model, method):
        raise ValueError(f"data.{option} is for models {whom}, not for {type(model).__name__}")
    known: str = getattr(model, method)(f"{trainer.precision} {source}")
    return known


def lacking(trainer: Any, cache: LLMStates[E], examples: Sequence[E]) -> list[int]:
    """Numbers of the conversations whose states the cache lacks, the same in all processes."""
    missing = cache.missing(examples) if trainer.is_global_zero else []
    found: list[int] = trainer.strategy.broadcast(missing)
    return found


def fill(
    trainer: Any,
    cache: LLMStates[E],
    examples: Sequence[E],
    missing: Sequence[int],
    item: Callable[[int], Item],
    states: Callable[[SpeechBatch], tuple[Tensor, Tensor]],
) -> None:
    """Compute what is missing as training would: same precision, same device; each process does its share.

    Args:
        item: what the model reads of a conversation.
        states: gives the states of a batch of them and their lengths, see `StatesOf`.
    """
    model = trainer.lightning_module
    together = partial(collate, pad_id=model.prompt.pad_id)

    def states_of(numbers: list[int]) -> tuple[Tensor, Tensor]:
        batch = trainer.precision_plugin.convert_input(together([item(number) for number in numbers]))
        with trainer.precision_plugin.forward_context():
            return states(trainer.strategy.batch_to_device(batch))

    training = model.training
    model.eval()
    cache.build(examples, missing, states_of, rank=trainer.global_rank, world_size=trainer.world_size)
    model.train(training)
    trainer.strategy.barrier(cache.name)


def features(trainer: Any, folder: str, dataset: ConversationDataset) -> FeatureCache:
    """The cache, holding every clip of the dataset; each process computes its share of what is missing.

    Raises:
        ValueError: if the model has no encoder, or one that learns.
    """
    model = trainer.lightning_module
    if getattr(model, "encoder", None) is None or not model.encoder_is_frozen:
        raise ValueError("data.feature_cache needs a frozen encoder: leave it out, or freeze the encoder")
    cache = FeatureCache(folder, model.encoder.fingerprint, trainer.precision)
    missing = cache.missing(dataset.examples.clips()) if trainer.is_global_zero else None
    missing = trainer.strategy.broadcast(missing)
    rank = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    cache.build(missing, model.encoder, context=trainer.precision_plugin.forward_context, **rank)
    trainer.strategy.barrier("feature cache")
    return cache
