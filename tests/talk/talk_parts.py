"""A tiny vocoder with random weights for the models that talk."""

from __future__ import annotations

from dataclasses import replace

import torch
from tiny_vocoders import GENERATOR, NET, NUM_UNITS

from speechzoo.vocoders import LatentVocoder


def vocoder(num_units: int = NUM_UNITS) -> LatentVocoder:
    """Random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return LatentVocoder(replace(NET, num_units=num_units), GENERATOR, sample_rate=8000)
