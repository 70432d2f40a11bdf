"""The tokenizer of a chat LLM: its template, with a date that stays, and no second thoughts about blanks."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from speechzoo.names.hugging_face import hub_options

TODAY = date(2024, 7, 26)
"""The date in templates that tell it, Llama 3.1's own default: a prompt that changed overnight would be another one
than the cached states', the run's that is continued, and the trained model's."""

ASKS_DATE = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


def chat_tokenizer(name: str, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer of Hugging Face by name or folder, with a template that tells `TODAY`.

    Args:
        chat_template: Jinja template that replaces its own.

    Raises:
        FileNotFoundError: if `name` is a path and there is no such folder.
        ValueError: if there is no template.
    """
    if not Path(name).is_dir() and name.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{name}: no such tokenizer folder")
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_options(name))
    if chat_template:
        tokenizer.chat_template = chat_template
    if tokenizer.chat_template is None:
        raise ValueError(f"{name} has no chat template: set prompt.chat_template")
    template = tokenizer.get_chat_template()  # the default one, where there are several
    tokenizer.chat_template = ASKS_DATE.sub(lambda ask: repr(TODAY.strftime(ask[2])), template)
    # Llama 3's asks for it: "the word 'morning'" would be read back as "the word'morning'".
    tokenizer.clean_up_tokenization_spaces = False
    return tokenizer
