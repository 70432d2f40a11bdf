"""Released checkpoints in and out; models saved and loaded."""

from speechzoo.interop.hub import load, load_run, save_pretrained
from speechzoo.interop.llama_omni import export_llama_omni, import_llama_omni
from speechzoo.interop.llasm import export_llasm, import_llasm
from speechzoo.interop.prompts import LlamaOmniPrompt, LlasmPrompt

__all__ = [
    "LlamaOmniPrompt",
    "LlasmPrompt",
    "export_llama_omni",
    "export_llasm",
    "import_llama_omni",
    "import_llasm",
    "load",
    "load_run",
    "save_pretrained",
]
