"""Speech encoders."""

from speechzoo.encoders.base import Encoder
from speechzoo.encoders.whisper import WhisperEncoder, WhisperQueries

__all__ = ["Encoder", "WhisperEncoder", "WhisperQueries"]
