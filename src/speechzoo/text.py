"""From a conversation to token ids and supervised spans, by the chat template of the tokenizer.

The rendered conversation is cut at the borders that also exist when the model answers (end of the prompt, end of an
answer, each clip) and each piece is tokenised alone. So training sees the very ids that generation continues, no merge
crosses a border, and the supervised tokens are known by construction instead of by comparison with a padding id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from speechzoo.types import AUDIO

CLIP = "\ufffc<audio>\ufffc"
"""Stands for a clip inside a rendered template; the object-replacement characters keep it out of ordinary text."""

Message = dict[str, Any]


@dataclass
class Encoded:
    """A tokenised conversation: `ids` and `turns` `[L]`, as in `SpeechBatch`."""

    ids: list[int]
    turns: list[int]

    @property
    def num_audio(self) -> int:
        return self.ids.count(AUDIO)


def flatten(content: str | Sequence[dict[str, Any]]) -> str:
    """Content of a message as text, with `CLIP` where a clip belongs."""
    if isinstance(content, str):
        return content
    return "".join(CLIP if part["type"] == "audio" else part["text"] for part in content)


class ChatPrompt:
    """Renders and tokenises conversations for one LLM.

    Args:
        tokenizer: name or folder of a Hugging Face tokenizer.
        system: system prompt for conversations that bring none; None leaves the template's own default.
        user: sentence added to user turns that hold only audio, with `{audio}` where the clips go
            (LLaMA-Omni: "{audio}\\nPlease directly answer the questions in the user's speech."); None adds nothing.
        chat_template: Jinja template that replaces the tokenizer's own (needed for base models that have none).
        end_of_turn: text that ends an answer, supervised with it; default: the tokenizer's end-of-sequence token.
        audio_tokens: new tokens put before and after each clip (LLaSM: `<au_start>`, `<au_end>`); their embeddings
            belong to the LLM part and are trained even when its weights are frozen.
        max_length: positions a row may take once its clips are spliced in.
    """

    def __init__(
        self,
        tokenizer: str,
        system: str | None = None,
        user: str | None = None,
        chat_template: str | None = None,
        end_of_turn: str | None = None,
        audio_tokens: list[str] | None = None,
        max_length: int = 2048,
    ) -> None:
        if user is not None and "{audio}" not in user:
            raise ValueError(f"prompt.user needs {{audio}} where the clip goes: {user!r}")
        if audio_tokens is not None and len(audio_tokens) != 2:
            raise ValueError(f"prompt.audio_tokens takes two tokens, [start, end]: {audio_tokens!r}")
        self.name, self.system, self.user = tokenizer, system, user
        self.chat_template, self.end_of_turn_text = chat_template, end_of_turn
        self.audio_tokens, self.max_length = audio_tokens, max_length

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with the audio tokens added."""
        if not Path(self.name).is_dir() and self.name.startswith((".", "/", "~")):
            raise FileNotFoundError(f"{self.name}: no such tokenizer folder")
        tokenizer = AutoTokenizer.from_pretrained(self.name, trust_remote_code=False)
        self._base_size = len(tokenizer)
        if self.chat_template:
            tokenizer.chat_template = self.chat_template
        if tokenizer.chat_template is None:
            raise ValueError(f"{self.name} has no chat template: set prompt.chat_template")
        if self.audio_tokens:
            tokenizer.add_special_tokens({"additional_special_tokens": self.audio_tokens}, False)
        return tokenizer

    @property
    def new_tokens(self) -> list[int]:
        """Ids of tokens that the pretrained LLM has never seen."""
        ids = self.tokenizer.convert_tokens_to_ids(self.audio_tokens or [])
        return [i for i in ids if i >= self._base_size]

    @property
    def end_of_turn(self) -> str:
        """The text that closes an answer."""
        return self.end_of_turn_text or self.tokenizer.eos_token

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids at which generation stops: the end of a turn and the tokenizer's end of sequence."""
        ids = self.tokenizer.encode(self.end_of_turn, add_special_tokens=False)
        return sorted({ids[-1], self.tokenizer.eos_token_id})

    @property
    def pad_id(self) -> int:
        """Id that fills a row; masked by position, so it may equal the end of sequence."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def encode(self, messages: Sequence[Message], answer: bool = True) -> Encoded:
        """Ids and supervised spans of a conversation.

        Args:
            messages: `{"role", "content"}` turns; content is text or a list of text and audio parts.
            answer: True for training (ends with an assistant turn, every assistant turn is supervised);
                False for generation (a trailing assistant turn is dropped, the generation prompt is added).

        Raises:
            ValueError: if a training conversation has no assistant turn, or if the template does not render
                conversations by appending (it rewrites earlier turns) or does not close answers with `end_of_turn`.
        """
        messages = [self._with_defaults(message) for message in messages]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if not answer and messages[-1]["role"] == "assistant":
            messages.pop()
        pieces, done, turn = [], "", 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._render(messages[:index], generate=True)
            full = self._render(messages[: index + 1], generate=False)
            if not prompt.startswith(done) or not full.startswith(prompt):
                raise ValueError(
                    f"the chat template of {self.name} rewrites earlier turns, so answers cannot be located: "
                    "set prompt.chat_template to one that only appends"
                )
            end = full.find(self.end_of_turn, len(prompt))
            if end < 0:
                raise ValueError(
                    f"the chat template of {self.name} does not end an answer with {self.end_of_turn!r}: "
                    "set prompt.end_of_turn to what it writes"
                )
            turn += 1
            end += len(self.end_of_turn)
            pieces += [(prompt[len(done) :], 0), (full[len(prompt) : end], turn)]
            done = full[:end]
        if answer and not turn:
            raise ValueError("the conversation has no assistant turn to learn from")
        if not answer:
            prompt = self._render(messages, generate=True)
            if not prompt.startswith(done):
                raise ValueError(f"the chat template of {self.name} rewrites earlier turns: set prompt.chat_template")
            pieces.append((prompt[len(done) :], 0))
        encoded = Encoded([], [])
        for text, number in pieces:
            self._append(encoded, text, number)
        return encoded

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids without special tokens."""
        return self.tokenizer.decode([i for i in ids if i >= 0], skip_special_tokens=True).strip()

    def _with_defaults(self, message: Message) -> Message:
        text = flatten(message["content"])
        if message["role"] == "user" and self.user is not None and CLIP in text and not text.replace(CLIP, "").strip():
            text = self.user.replace("{audio}", text)
        if message["role"] == "assistant" and CLIP in text:
            raise ValueError("an assistant turn cannot hold audio in its content: give it in the turn's `audio` field")
        return {"role": message["role"], "content": text.strip()}

    def _render(self, messages: list[Message], generate: bool) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)

    def _append(self, encoded: Encoded, text: str, turn: int) -> None:
        clip = [AUDIO]
        if self.audio_tokens:
            start, end = self.tokenizer.convert_tokens_to_ids(self.audio_tokens)
            clip = [start, AUDIO, end]
        for index, piece in enumerate(text.split(CLIP)):
            ids = list(clip) if index else []
            ids += self.tokenizer.encode(piece, add_special_tokens=False) if piece else []
            encoded.ids += ids
            encoded.turns += [turn] * len(ids)
