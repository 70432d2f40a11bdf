"""LLMs that are asked in chats: a model behind an endpoint, or one of Hugging Face in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

from speechzoo.names.hugging_face import hub_options
from speechzoo.system.endpoint import Chat, Endpoint, UnreachableError, api_key
from speechzoo.system.terminal import quiet

TOKENS = 512  # of a reply, where nothing else is asked for


class LLM(Protocol):
    """What replies: `model` names it in caches."""

    @property
    def model(self) -> str: ...

    def chat(self, messages: Sequence[dict[str, Any]], **settings: Any) -> Chat: ...


class LocalLLM:
    """A causal LM of Hugging Face, loaded when it is first asked.

    Args:
        model: a folder, a name on the hub (also `hf:NAME`), or one of speechzoo's small parts.
        device: torch's name of it; None: a GPU where there is one.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        self.model, self.device = model, device
        self._lock = threading.Lock()

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from speechzoo.parts.registry import PARTS, fetch

        quiet()
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        name = str(fetch(self.model)) if self.model in PARTS else self.model.removeprefix("hf:")
        try:
            options = {**hub_options(name), "trust_remote_code": False}
            causal: Any = AutoModelForCausalLM.from_pretrained(name, dtype="auto", **options)
            return AutoTokenizer.from_pretrained(name, **options), causal.to(device).eval()
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise UnreachableError(f"{self.model}: no LLM that can be asked ({why})", transient=False) from error

    def chat(self, messages: Sequence[dict[str, Any]], **settings: Any) -> Chat:
        """Reply; `temperature` 0 takes the likeliest token, else `seed` decides.

        Raises:
            UnreachableError: if there is no such model.
        """
        import torch

        with self._lock:
            tokenizer, causal = self._loaded
            torch.manual_seed(settings.get("seed", 0))
            given = tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(causal.device)
            heat = settings.get("temperature", 0.0)
            drawn = {"do_sample": True, "temperature": heat} if heat else {"do_sample": False}
            most = settings.get("max_tokens", TOKENS)
            with torch.inference_mode():
                ids = causal.generate(**given, max_new_tokens=most, **drawn)[0]
            new = ids[given["input_ids"].shape[1] :]
            # Without what Llama 3's tokenizer asks for, which takes blanks out: "the word'morning'".
            text = tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ends = causal.generation_config.eos_token_id
        stopped = len(new) < most or int(new[-1]) in (ends if isinstance(ends, list) else [ends])
        return Chat({"content": text}, "stop" if stopped else "length", given["input_ids"].shape[1], len(new))


def open_llm(name: str, model: str = "", key_env: str = "SPEECHZOO_ENDPOINT_KEY", device: str | None = None) -> LLM:
    """An endpoint by its address, else a local model by its name.

    Raises:
        ValueError: if the endpoint's model is not named.
    """
    if name.startswith(("http://", "https://")):
        if not model:
            raise ValueError(f"{name}: name the model of the endpoint too")
        return Endpoint(name, model, api_key(name, key_env))
    return LocalLLM(name, device)
