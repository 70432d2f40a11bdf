"""Architectures: one paper, one short file."""

from speechzoo.models.base import SpeechLLM
from speechzoo.models.cascade import Cascade
from speechzoo.models.latent_training import LatentBatch, LatentVocoderTraining
from speechzoo.models.llama_omni import LLaMAOmni
from speechzoo.models.llama_omni2 import LLaMAOmni2
from speechzoo.models.llasm import LLaSM
from speechzoo.models.ultravox import Ultravox

__all__ = [
    "Cascade",
    "LLaMAOmni",
    "LLaMAOmni2",
    "LLaSM",
    "LatentBatch",
    "LatentVocoderTraining",
    "SpeechLLM",
    "Ultravox",
]
