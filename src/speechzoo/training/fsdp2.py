"""The strategy `fsdp2`: weights, gradients and optimizer state cut over all processes (or groups of them: HSDP)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from speechzoo.system.digests import DamagedError, check_zip
from speechzoo.training.checkpoint_file import map_file, recover
from speechzoo.training.checkpoint_io import FileCheckpointIO
from speechzoo.training.sharded_folder import is_sharded_folder, load_sharded, read_plain, save_sharded
from speechzoo.training.sharding import cut, local_part, shard, whole


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 for speech LLMs: all processes are data parallel, each holds its share of every weight.

    Use it as `trainer.strategy: fsdp2`, or by this class to set something. Losses and checkpoints are those of `ddp`:
    one ordinary file by default, which any strategy and number of processes resumes from. Lightning's `fsdp` (FSDP1) is
    another thing and not supported by speechzoo's models.

    With `precision: bf16-mixed` what learns is gathered in bfloat16; shards, sums of gradients and Adam's moments are
    float32. An answer gathers the LLM once, if it fits.

    Args:
        replicate_size: HSDP: so many groups hold a whole copy each, and only gradients travel between groups; give the
            number of nodes to keep weights inside a node. 1: one copy in all.
        reshard_after_forward: let a layer's gathered weights go between forward and backward; off costs memory and
            saves a gather per layer.
        save_distributed_checkpoint: write a folder, each process its part, instead of one file.
        process_group_backend, timeout: see `ModelParallelStrategy`.
    """

    def __init__(
        self,
        replicate_size: int = 1,
        reshard_after_forward: bool = True,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(1, 1, save_distributed_checkpoint, process_group_backend, timeout)
        self.replicate_size, self.reshard_after_forward = replicate_size, reshard_after_forward
        self.shard_mesh: DeviceMesh | None = None

    @property
    def saves_folders(self) -> bool:
        """Whether each process writes its part of a checkpoint."""
        return bool(self._save_distributed_checkpoint)

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """The Trainer's plugin, or one that keeps checkpoints whole."""
        if self._checkpoint_io is None:
            self._checkpoint_io = FileCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, io: CheckpointIO | None) -> None:
        self._checkpoint_io = io

    def setup_environment(self) -> None:
        """Start the process group and lay out the processes.

        Raises:
            ValueError: if `replicate_size` does not divide the number of processes.
        """
        world = self.num_nodes * self.num_processes
        if world % self.replicate_size:
            raise ValueError(f"fsdp2: replicate_size={self.replicate_size} does not divide {world} processes")
        self._data_parallel_size, self._tensor_parallel_size = world, 1
        super().setup_environment()
        kind = self.root_device.type
        if self.replicate_size == 1:
            self.shard_mesh = init_device_mesh(kind, (world,), mesh_dim_names=("shard",))
        else:
            shape = (self.replicate_size, world // self.replicate_size)
            self.shard_mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))

    def shard(self, model: nn.Module) -> None:
        """Shard a model that rank 0 holds; its `configure_model` calls this, see `speechzoo.training.sharding`."""
        assert self.shard_mesh is not None
        half = torch.bfloat16 if self.precision_plugin.precision == "bf16-mixed" else None
        shard(model, self.shard_mesh, self.root_device, self.reshard_after_forward, half)

    # -- saving -----------------------------------------------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights: whole on rank 0 (elsewhere nothing), or shards where a folder is to be written."""
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return state if self._save_distributed_checkpoint else self._gathered(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """As torch's own `state_dict`, in the optimizer's numbering, so that other strategies can read it."""
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state = plain.state_dict()
        return state if self._save_distributed_checkpoint else self._gathered(state)

    def _gathered(self, state: Any) -> Any:
        """Nested data with its tensors whole and on the CPU in rank 0; the others only take part in gathering."""
        if isinstance(state, Mapping):
            held = {key: self._gathered(value) for key, value in state.items()}
            return held if self.is_global_zero else {}
        if not isinstance(state, Tensor):
            return state
        full = whole(state)
        return full.detach().cpu() if self.is_global_zero else None

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; see `FileCheckpointIO` and `sharded_folder` for how it is kept whole."""
        path = self.broadcast(str(filepath))
        if self._save_distributed_checkpoint:
            save_sharded(checkpoint, Path(path))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options=storage_options)
        self.barrier("checkpoint")

    # -- loading ----------------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights and optimizer state from one file or a folder, whatever number of processes wrote it.

        The file is mapped, not read: each process touches its own shards alone.

        Returns:
            The rest of the checkpoint.

        Raises:
            DamagedError: if it is not what was written.
            ValueError: if the module refuses it.
        """
        path = self.broadcast(str(checkpoint_path))
        module = self.lightning_module
        assert module is not None
        if "://" in path:
            saved, folder = self.checkpoint_io.load_checkpoint(path), None
        else:
            if self.is_global_zero:
                recover(Path(path))
            self.barrier("checkpoint")
            folder = Path(path) if is_sharded_folder(path) else None
            if folder is None:
                self._check(Path(path))
            saved = read_plain(folder) if folder else map_file(Path(path))
        module.on_load_checkpoint(saved)  # refuses, before anything is overwritten
        weights = dict(module.named_parameters())
        optimizers = [o for o in self.optimizers if module.trainer.state.fn == TrainerFn.FITTING]
        states = saved.get("optimizer_states", [])
        if folder:
            load_sharded(folder, saved, {name: weights[name] for name in saved["trained"]}, optimizers)
            return saved
        for name, value in saved.pop("state_dict").items():
            _copy(weights[name], value, name)
        for optimizer, state in zip(optimizers, states, strict=False):
            load_optimizer(optimizer, state)
        return saved

    def _check(self, file: Path) -> None:
        """Rank 0 alone reads the whole file; what it finds, all raise."""
        told = ""
        if self.is_global_zero:
            try:
                check_zip(file)
            except DamagedError as error:
                told = str(error)
            except OSError:  # all will meet it when they map the file
                pass
        if told := self.broadcast(told):
            raise DamagedError(told)


@torch.no_grad()
def _copy(target: Tensor, value: Tensor, name: str) -> None:
    if target.shape != value.shape:
        raise ValueError(f"size mismatch for {name}: {tuple(value.shape)} saved, {tuple(target.shape)} in the model")
    if isinstance(target, DTensor):
        target.to_local().copy_(local_part(value, target))
    else:
        target.copy_(value)


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state of whole tensors into one over sharded parameters, moments cut like their weights."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = {}
    for index, values in state["state"].items():
        like = parameters[int(index)]
        held[index] = {key: _like(value, like) for key, value in values.items()}
    optimizer.load_state_dict({"state": held, "param_groups": state["param_groups"]})


def _like(value: Any, like: Tensor) -> Any:
    if isinstance(value, Tensor) and isinstance(like, DTensor) and not isinstance(value, DTensor):
        return cut(value, like) if value.shape == like.shape else value.clone()
    return value


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2: weights cut over all processes")
