"""Language models."""

from speechzoo.llms.base import LLM, LLMOutput
from speechzoo.llms.hf import HFCausalLM

__all__ = ["LLM", "HFCausalLM", "LLMOutput"]
