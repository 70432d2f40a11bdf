"""Vocoders: from units to sound."""

from speechzoo.vocoders.base import Vocoder, VocoderStream
from speechzoo.vocoders.latent import LatentNetConfig, LatentVocoder
from speechzoo.vocoders.unit_hifigan import UnitHiFiGAN

__all__ = ["LatentNetConfig", "LatentVocoder", "UnitHiFiGAN", "Vocoder", "VocoderStream"]
