"""Vocoders: from units to sound."""

from speechzoo.generation.sound import VocoderStream
from speechzoo.vocoders.base import Vocoder
from speechzoo.vocoders.folder import VOCODER_FOLDERS, open_vocoder
from speechzoo.vocoders.latent import LatentNetConfig, LatentVocoder
from speechzoo.vocoders.unit_hifigan import UnitHiFiGAN

__all__ = [
    "VOCODER_FOLDERS",
    "LatentNetConfig",
    "LatentVocoder",
    "UnitHiFiGAN",
    "Vocoder",
    "VocoderStream",
    "open_vocoder",
]
