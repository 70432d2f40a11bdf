"""From a conversation to token ids and supervised spans, by the chat template of the tokenizer.

The rendered conversation is cut at the borders that also exist when the model answers (end of the prompt, end of an
answer, each clip) and each piece is tokenised alone. So training sees the very ids that generation continues, no merge
crosses a border, and the supervised tokens are known by construction instead of by comparison with a padding id.

What people write is text: a special token spelled out in it ("</s>", "<|im_end|>") is tokenised like any other word, so
it ends no answer and begins no turn. Text without any has the ids that the tokenizer gives it in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from speechzoo.names.spec import at_least
from speechzoo.text.content import CLIP, MARK, ContentError, Message, flatten
from speechzoo.text.tokenizer import chat_tokenizer
from speechzoo.types import AUDIO


@dataclass
class Encoded:
    """A tokenised conversation: `ids` and `turns` `[L]`, as in `SpeechBatch`."""

    ids: list[int]
    turns: list[int]

    @property
    def num_audio(self) -> int:
        return self.ids.count(AUDIO)


class ChatPrompt:
    """Renders and tokenises conversations for one LLM.

    Args:
        tokenizer: name or folder of a Hugging Face tokenizer.
        system: system prompt for conversations that bring none; None leaves the template's own default.
        user: sentence added to user turns that hold only audio, with `{audio}` where the clips go
            (LLaMA-Omni: "{audio}\\nPlease directly answer the questions in the user's speech."); None adds nothing.
        chat_template: Jinja template that replaces the tokenizer's own (needed for base models that have none).
        end_of_turn: text that ends an answer, supervised with it: one token, or a special one and what follows it;
            default: the tokenizer's end-of-sequence token.
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
        at_least(1, "prompt", max_length=max_length)
        self.name, self.system, self.user = tokenizer, system, user
        self.chat_template, self.end_of_turn_text = chat_template, end_of_turn
        self.audio_tokens, self.max_length = audio_tokens, max_length

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with the audio tokens added."""
        tokenizer = chat_tokenizer(self.name, self.chat_template)
        self._base_size = len(tokenizer)
        if self.audio_tokens:
            tokenizer.add_special_tokens({"additional_special_tokens": self.audio_tokens}, False)
        return tokenizer

    @property
    def new_tokens(self) -> list[int]:
        """Ids of tokens that the pretrained LLM has never seen."""
        return [i for i in self.audio_token_ids if i >= self._base_size]

    @property
    def audio_token_ids(self) -> list[int]:
        """Ids of `audio_tokens`, none where there are none."""
        ids: Any = self.tokenizer.convert_tokens_to_ids(self.audio_tokens or [])
        return list(ids)

    @property
    def end_of_turn(self) -> str:
        """The text that closes an answer.

        Raises:
            ValueError: if neither the settings nor the tokenizer name one.
        """
        end = self.end_of_turn_text or self.tokenizer.eos_token
        if not end:
            raise ValueError(
                f"{self.name} has no end-of-sequence token: set prompt.end_of_turn to what its chat template writes "
                "after an answer"
            )
        return end

    @cached_property
    def stop_ids(self) -> list[int]:
        """Ids at which generation stops: the end of a turn and the tokenizer's end of sequence.

        Raises:
            ValueError: if no single token ends a turn.
        """
        ids = self.tokenizer.encode(self.end_of_turn, add_special_tokens=False)
        # In "<|im_end|>\n" the first token ends an answer; the last one is also in the middle of answers.
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        ends = [token for token in ids if token in added] or ids
        if not ends or (len(ends) > 1 and ends == ids):
            raise ValueError(
                f"prompt.end_of_turn {self.end_of_turn!r} is {len(ids)} tokens of {self.name}, and none of them ends "
                "an answer by itself: take one of its special tokens, such as its end of sequence"
            )
        return sorted({ends[0], self.tokenizer.eos_token_id} - {None})

    @property
    def pad_id(self) -> int:
        """Id that fills a row; masked by position, so it may equal the end of sequence."""
        for found in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if found is not None:
                return int(found)
        return self.stop_ids[-1]

    @cached_property
    def special(self) -> list[str]:
        """Spellings of the tokens that mean something to the LLM or its template; in what people write they are text.

        Other added tokens, such as `<think>` of some tokenizers, belong to what a model may say.
        """
        around = "".join(self._around)
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        found = {str(token) for token in added if token.special or str(token) in around}
        found |= {*getattr(self.tokenizer, "all_special_tokens", ()), *(self.audio_tokens or ())}
        return sorted(found - {""}, key=lambda token: (-len(token), token))

    def spelled(self, text: str) -> bool:
        """Whether a text spells a special token."""
        return self._spelled.search(text) is not None

    @cached_property
    def _spelled(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.special)) or r"(?!)")

    @cached_property
    def _around(self) -> list[str]:
        """What the template writes between a question and its answer, between an answer and the next question, and
        after the last question; nothing for templates that refuse such a conversation."""
        texts = ["\ufffc1\ufffc", "\ufffc2\ufffc", "\ufffc3\ufffc"]
        roles = ("user", "assistant", "user")
        sample = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
        try:
            return re.split("|".join(texts), self._render(sample, generate=True))[1:]
        except (AttributeError, ValueError, TypeError, TemplateError):
            return []

    @cached_property
    def _borders(self) -> list[str]:
        """Those of them that are ordinary text, such as "[/INST]": nothing tells them from the same text in content."""
        plain = [text.strip() for text in self._around if text and not self._spelled.search(text)]
        return [text for text in plain if len(text) > 3 and not text.isalnum()]

    def encode(self, messages: Sequence[Message], answer: bool = True) -> Encoded:
        """Ids and supervised spans of a conversation.

        Args:
            messages: `{"role", "content"}` turns; content is text or a list of text and audio parts.
            answer: True for training (ends with an assistant turn, every assistant turn is supervised);
                False for generation (a trailing assistant turn is dropped, the generation prompt is added).

        Raises:
            ContentError: if what a message says cannot be told from what the template writes around it.
            ValueError: if a training conversation has no assistant turn, or if the template does not render
                conversations by appending (it rewrites earlier turns) or does not close answers with `end_of_turn`.
        """
        _ = self.stop_ids  # refused now, not when the first answer does not end
        messages = [self._with_defaults(message) for message in messages]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if not answer and messages[-1]["role"] == "assistant":
            messages.pop()
        messages = [{**message, "content": self._as_text(message)} for message in messages]
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

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = True) -> str:
        """Text of ids; generated ones are shown without special tokens."""
        known = [i for i in (ids.tolist() if isinstance(ids, Tensor) else ids) if i >= 0]
        text = str(self.tokenizer.decode(known, skip_special_tokens=skip_special_tokens))
        return text.strip() if skip_special_tokens else text

    def _with_defaults(self, message: Message) -> Message:
        text = flatten(message["content"])
        if message["role"] == "user" and self.user is not None and CLIP in text and not text.replace(CLIP, "").strip():
            text = self.user.replace("{audio}", text)
        if message["role"] == "assistant" and CLIP in text:
            raise ValueError("an assistant turn cannot hold audio in its content: give it in the turn's `audio` field")
        return {"role": message["role"], "content": text.strip()}

    def _render(self, messages: list[Message], generate: bool) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate))

    def _as_text(self, message: Message) -> str:
        """Content with special tokens replaced by their marks, which no template and no search takes for tokens."""
        content = message["content"]
        for border in self._borders:
            if border in content:
                text = f"the {message['role']}'s text holds {border!r}, by which the template begins another turn"
                raise ContentError(f"{text}: reword it, or use a template with special tokens")
        content = self._spelled.sub(lambda found: f"\ufffc{self.special.index(found[0])}\ufffc", content)
        if message["role"] == "assistant" and self.end_of_turn in content:
            text = f"an answer holds {self.end_of_turn!r}, which ends answers (prompt.end_of_turn)"
            raise ContentError(f"{text}: reword it, or use a special token as the end of a turn")
        return content

    def _append(self, encoded: Encoded, text: str, turn: int) -> None:
        clip = [AUDIO]
        if self.audio_tokens:
            start, end = self.audio_token_ids
            clip = [start, AUDIO, end]
        ids: list[int] = []
        pieces = MARK.split(text)
        for index, piece in enumerate(pieces):
            before = pieces[index - 1] if index else ""
            if index % 2 and piece == "<audio>":
                ids += clip
            elif index % 2:
                ids += self._spell(self.special[int(piece)])
            elif piece:
                inside = before not in ("", "<audio>")  # after a special token that is text
                ids += self._continue(piece) if inside else self.tokenizer.encode(piece, add_special_tokens=False)
        encoded.ids += ids
        encoded.turns += [turn] * len(ids)

    def _spell(self, token: str) -> list[int]:
        """Ids of a special token's spelling, as of any other text."""
        ids = self._continue(token, split_special_tokens=True)
        if self.tokenizer.convert_tokens_to_ids(token) in ids:  # added without being special
            ids = self._continue(token[:1]) + self._continue(token[1:])
        return ids

    def _continue(self, text: str, **options: bool) -> list[int]:
        """Ids of a text in the middle of another: SentencePiece puts a blank before what begins."""
        if not text:
            return []
        encode: Callable[[str], list[int]] = partial(self.tokenizer.encode, add_special_tokens=False, **options)
        first, both = encode("\n"), encode(f"\n{text}")
        return both[len(first) :] if both[: len(first)] == first else encode(text)
