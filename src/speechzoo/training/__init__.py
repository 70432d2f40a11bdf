"""What training needs besides the models."""

from speechzoo.training.checkpoint_io import FileCheckpointIO
from speechzoo.training.freeze import freeze, is_frozen
from speechzoo.training.fsdp2 import FSDP2Strategy
from speechzoo.training.schedule import WarmupCosine

__all__ = ["FSDP2Strategy", "FileCheckpointIO", "WarmupCosine", "freeze", "is_frozen"]
