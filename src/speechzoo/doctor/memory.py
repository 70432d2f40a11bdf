"""What a run holds whatever the batch (weights, gradients, Adam's moments), against the memory there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from speechzoo.doctor.findings import Finding, error, ok, warning
from speechzoo.doctor.weights import local
from speechzoo.models import SpeechLLM
from speechzoo.system.cpu import host_bytes
from speechzoo.training import FSDP2Strategy

LORA = "train by LoRA on a bfloat16 base (model.init_args.llm.init_args: {dtype: bfloat16, lora: {r: 16}})"
ROOM = 0.8
"""Share of a device that states may take when it is to be used sensibly; the rest is for activations."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds whatever the batch, and what its device has.

    Attributes:
        weights, gradients, moments: of this process, with the strategy's cut.
        checkpoint: what a checkpoint holds, whole.
        device: what the process may use; 0 if unknown.
        world: number of processes.
        sharded: whether the states are cut over them.
    """

    weights: int
    gradients: int
    moments: int
    checkpoint: int
    device: int
    world: int = 1
    sharded: bool = False

    @classmethod
    def of(cls, trainer: Trainer, model: SpeechLLM) -> Memory:
        """That of a model that is built (and cut, where it is to be).

        What the optimizer keeps is found by a step of it on a few numbers (`state_bytes`).
        """
        weights = learning = moments = whole = 0
        dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        keeps = {dtype: state_bytes(model.optimizer_factory, dtype) for dtype in dtypes}
        for parameter in model.parameters():
            own = local(parameter)
            weights += own.nbytes
            if parameter.requires_grad:
                kept = keeps[parameter.dtype]
                learning += own.nbytes
                moments += int(own.numel() * kept)
                whole += int(parameter.numel() * (own.element_size() + kept))
        there = device_bytes(trainer.strategy.root_device, getattr(trainer.strategy, "num_processes", 1))
        sharded = isinstance(trainer.strategy, FSDP2Strategy)
        return cls(weights, learning, moments, whole, there, trainer.world_size, sharded)

    @property
    def states(self) -> int:
        """All that stays on the device from the first step on."""
        return self.weights + self.gradients + self.moments

    def check(self) -> list[Finding]:
        """An error where states do not fit."""
        parts = f"weights {_gb(self.weights)}, gradients {_gb(self.gradients)}, moments {_gb(self.moments)} GB"
        if not self.device or self.states <= self.device:
            return [ok("states", f"{parts} a device")]
        text = f"{parts}: {_gb(self.states)} GB before any activation, on a device of {_gb(self.device)} GB"
        return [error("states", text, self.advice)]

    def check_host(self, host: int) -> list[Finding]:
        """A warning where `fsdp2` cannot gather a whole checkpoint in so many bytes of host memory (0: unknown)."""
        if not host or self.checkpoint <= host:
            return []
        text = f"to save, rank 0 gathers {_gb(self.checkpoint)} GB in host memory, of which {_gb(host)} GB are free"
        return [warning("host_memory", text, "set FSDP2Strategy's save_distributed_checkpoint: true")]

    @property
    def crowded(self) -> bool:
        """Whether states leave so little that a smaller batch hardly helps."""
        return bool(self.device) and self.states > ROOM * self.device

    @property
    def advice(self) -> str:
        """What helps where states are too large."""
        together = self.states * (self.world if self.sharded else 1)
        devices = max(2, ceil(together / (ROOM * self.device)))
        cut = f"trainer.strategy: fsdp2 on at least {devices} devices"
        if self.sharded:
            cut = f"at least {devices} devices"
        elif self.world >= devices:
            cut = f"trainer.strategy: fsdp2 ({_gb(self.states / self.world)} GB on each of {self.world} devices)"
        return f"{cut}, or {LORA}"


def state_bytes(make: Callable[[list[nn.Parameter]], Optimizer], dtype: torch.dtype) -> float:
    """Bytes that an optimizer keeps for each weight of a type, found by a step on a few of them.

    Args:
        make: the optimizer of some weights.
    """
    weight = nn.Parameter(torch.zeros(64, 256, dtype=dtype))
    weight.grad = torch.zeros_like(weight)
    optimizer = make([weight])
    # Those of torchao compile their step, which takes longer than all the rest.
    with torch.compiler.set_stance("force_eager"):
        optimizer.step(lambda: 0.0)
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(_bytes(value) for value in kept if value.numel() > 1) / weight.numel()


def _bytes(tensor: Tensor) -> int:
    """Bytes of a tensor, or of those that one of fewer bits is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def device_bytes(device: torch.device, processes: int = 1) -> int:
    """Bytes a process may use; 0 unknown.

    Args:
        processes: on this machine, which share its memory where there is no GPU.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return host_bytes(processes)


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f}"
