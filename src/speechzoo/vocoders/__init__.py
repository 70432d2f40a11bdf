"""Vocoders: from units to sound."""

from speechzoo.vocoders.base import Vocoder
from speechzoo.vocoders.unit_hifigan import UnitHiFiGAN

__all__ = ["UnitHiFiGAN", "Vocoder"]
