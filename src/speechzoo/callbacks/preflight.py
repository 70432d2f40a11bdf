"""States and the largest batch first: a run that will not fit into memory says so at once, not after hours."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from speechzoo.callbacks.cost import peak_memory_mb
from speechzoo.doctor.batches import TrainingData, there_and_back, undisturbed
from speechzoo.doctor.findings import errors
from speechzoo.doctor.memory import Memory
from speechzoo.doctor.weights import local
from speechzoo.models import SpeechLLM
from speechzoo.system.cpu import host_bytes
from speechzoo.training import FSDP2Strategy


class Preflight(Callback):
    """Runs the largest training batch forward and back before the first step, and says how much memory is left.

    Before the model goes to its device: whether weights, gradients and moments fit at all (`speechzoo.doctor.memory`).
    The batch with most LLM positions that the sampler can deal out, whatever epoch it comes in. Weights, random
    numbers and the order of the data stay as they are. What the optimizer will need on top for its moments is counted
    in. Part of every `speechzoo fit` on a GPU (`--preflight.enabled`).

    Args:
        enabled: None for GPUs only.
        keep_free: share of memory below which what is left is a warning.
    """

    def __init__(self, enabled: bool | None = None, keep_free: float = 0.05) -> None:
        self.enabled, self.keep_free = enabled, keep_free

    def _enabled(self, device: torch.device) -> bool:
        return device.type == "cuda" if self.enabled is None else self.enabled

    def on_model_built(self, trainer: Trainer, model: SpeechLLM) -> None:
        """Compare states with the device.

        Raises:
            ValueError: if they alone do not fit.
        """
        if not self._enabled(trainer.strategy.root_device):
            return
        memory = Memory.of(trainer, model)
        if found := errors(memory.check()):
            raise ValueError(f"{found[0].text} -> {found[0].advice} (--preflight.enabled=false tries it all the same)")
        if isinstance(trainer.strategy, FSDP2Strategy) and not trainer.strategy.saves_folders:
            for finding in memory.check_host(host_bytes()):
                rank_zero_warn(str(finding))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try it.

        Raises:
            ValueError: if it does not fit, with the batch's size.
        """
        device = trainer.strategy.root_device
        if not self._enabled(device) or not isinstance(pl_module, SpeechLLM):
            return
        data = TrainingData.of(trainer)
        if data is None:
            return
        numbers = data.largest()
        longest = max(data.dataset.lengths[number] for number in numbers)
        size = f"the largest batch, {len(numbers)} x {longest} positions"
        memory = Memory.of(trainer, pl_module)
        total = memory.device
        advice = "lower data.max_tokens or data.batch_size, or recompute layers (llm.gradient_checkpointing)"
        if memory.crowded:
            advice = f"{memory.states / 1e9:.1f} GB are weights, gradients and moments: {memory.advice}"
        try:
            with undisturbed(pl_module):
                there_and_back(trainer, pl_module, data.batch(numbers))
        except torch.OutOfMemoryError as error:
            raise ValueError(f"{size}, does not fit into {total / 1e9:.1f} GB: {advice}") from error
        later = moments(trainer)
        peak = peak_memory_mb(device) * 1e6 + later
        text = f"{size}: peak {peak / 1e9:.2f} GB" + (f" ({later / 1e9:.2f} of it the optimizer's)" if later else "")
        if total:
            text += f", {(total - peak) / 1e9:.2f} of {total / 1e9:.2f} GB left"
        if total and total - peak < self.keep_free * total:
            rank_zero_warn(f"{text}: {advice}")
        else:
            rank_zero_info(text)


def moments(trainer: Trainer) -> int:
    """Bytes that optimizers with two moments (Adam and its kin) will still ask for in the first step."""
    missing = 0
    for optimizer in trainer.optimizers:
        if "betas" not in optimizer.defaults:
            continue
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.requires_grad and weight not in optimizer.state:
                    own = local(weight)
                    missing += 2 * own.numel() * own.element_size()
    return missing
