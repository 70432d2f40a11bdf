"""Speech encoders."""

from speechzoo.encoders.base import Encoder
from speechzoo.encoders.hugging_face import HFSpeechEncoder
from speechzoo.encoders.whisper import WhisperEncoder, WhisperQueries

__all__ = ["Encoder", "HFSpeechEncoder", "WhisperEncoder", "WhisperQueries"]
