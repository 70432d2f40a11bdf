"""What training needs besides the models."""

from speechzoo.training.freeze import freeze, is_frozen
from speechzoo.training.schedule import WarmupCosine

__all__ = ["WarmupCosine", "freeze", "is_frozen"]
