"""The largest batch first: a run that will not fit into memory says so at once, not after hours."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from speechzoo.callbacks.cost import peak_memory_mb
from speechzoo.doctor.batches import TrainingData, there_and_back, undisturbed
from speechzoo.doctor.weights import local
from speechzoo.models import SpeechLLM


class Preflight(Callback):
    """Runs the largest training batch forward and back before the first step, and says how much memory is left.

    The batch with most LLM positions that the sampler can deal out, whatever epoch it comes in. Weights, random
    numbers and the order of the data stay as they are. What the optimizer will need on top for its moments is counted
    in. Part of every `speechzoo fit` on a GPU (`--preflight.enabled`).

    Args:
        enabled: None for GPUs only.
        keep_free: share of memory below which what is left is a warning.
    """

    def __init__(self, enabled: bool | None = None, keep_free: float = 0.05) -> None:
        self.enabled, self.keep_free = enabled, keep_free

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try it.

        Raises:
            ValueError: if it does not fit, with the batch's size.
        """
        device = trainer.strategy.root_device
        enabled = device.type == "cuda" if self.enabled is None else self.enabled
        data = TrainingData.of(trainer) if enabled and isinstance(pl_module, SpeechLLM) else None
        if data is None:
            return
        numbers = data.largest()
        longest = max(data.dataset.lengths[number] for number in numbers)
        size = f"the largest batch, {len(numbers)} x {longest} positions"
        advice = "lower data.max_tokens or data.batch_size, or recompute layers (llm.gradient_checkpointing)"
        try:
            with undisturbed(pl_module):
                there_and_back(trainer, pl_module, data.batch(numbers))
        except torch.OutOfMemoryError as error:
            raise ValueError(f"{size}, does not fit into {_total(device) / 1e9:.1f} GB: {advice}") from error
        later = moments(trainer)
        peak = peak_memory_mb(device) * 1e6 + later
        total = _total(device)
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


def _total(device: torch.device) -> int:
    """Bytes this process may use: the GPU's memory, or what is available on the machine plus what it has; 0 unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration):
        return 0
    total = available + held
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return total
