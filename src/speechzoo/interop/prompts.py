"""The released prompts, id for id: LLaMA-Omni's `llama_3` template, and LLaSM's two."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from speechzoo.interop.pieces import PieceTokenizer
from speechzoo.text import CLIP, ChatPrompt, ContentError, Encoded, Message, flatten
from speechzoo.types import AUDIO

SYSTEM = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
"""System text of both releases (conversation.py of LLaMA-Omni, infer_tokenize.py of LLaSM)."""

USER = "{audio}\nPlease directly answer the questions in the user's speech."
"""What LLaMA-Omni's released code says beside a clip; the paper's appendix has another wording."""

LLAMA_3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


class LlamaOmniPrompt(ChatPrompt):
    """LLaMA-Omni's template with the id rule of its released code (preprocess.py:36-55).

    The released code cuts the rendered text at each clip, tokenises each piece as the tokenizer does it by default and,
    because the first piece begins with BOS, removes the first id of every piece. The template brings a BOS of its own,
    so the outcome depends on the tokenizer.

    Args:
        tokenizer: name or folder.
        system, user: as for `ChatPrompt`.
        bos: `added` is the release with a tokenizer that adds BOS: two BOS, all text kept; `bare` with one that does
            not: one BOS, and the first id after each clip (the newline) is lost, probably what the released weights
            saw; `as_tokenizer` is one of these, as this tokenizer is set up; `clean` is one BOS and all text kept.
        stop_ids: ids that end generation; default: those of `ChatPrompt`. The release has three.
        max_length: positions a row may take once its clips are spliced in.
    """

    def __init__(
        self,
        tokenizer: str,
        system: str | None = SYSTEM,
        user: str | None = USER,
        bos: Literal["as_tokenizer", "added", "bare", "clean"] = "as_tokenizer",
        stop_ids: list[int] | None = None,
        max_length: int = 2048,
    ) -> None:
        if bos not in ("as_tokenizer", "added", "bare", "clean"):
            raise ValueError(f"LlamaOmniPrompt.bos is as_tokenizer, added, bare or clean, not {bos!r}")
        super().__init__(tokenizer, system, user, LLAMA_3, "<|eot_id|>", None, max_length)
        self.bos = bos
        if stop_ids is not None:
            self.stop_ids = sorted(stop_ids)

    @cached_property
    def bos_rule(self) -> str:
        """`added`, `bare` or `clean`."""
        if self.bos != "as_tokenizer":
            return self.bos
        first = self.tokenizer("a").input_ids[:1]
        return "added" if first == [self.tokenizer.bos_token_id] else "bare"

    def text_ids(self, text: str) -> list[int]:
        """Ids of a rendered conversation, AUDIO where `CLIP` stands."""
        ids: list[int] = []
        for index, piece in enumerate(text.split(CLIP)):
            part = self.tokenizer.encode(piece, add_special_tokens=False)
            if self.bos_rule == "added" and not index:
                part = [self.tokenizer.bos_token_id, *part]
            if index:
                ids.append(AUDIO)
                part = part[1:] if self.bos_rule == "bare" else part
            ids += part
        return ids

    def encode(self, messages: Sequence[Message], answer: bool = True) -> Encoded:
        """See `ChatPrompt.encode`. As in the release, the text is tokenised whole and the supervised span of an answer
        begins after as many ids as its prompt has alone."""
        messages = [self._with_defaults(message) for message in messages]
        if self.system is not None and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        if not answer and messages[-1]["role"] == "assistant":
            messages.pop()
        for message in messages:
            refuse_special(message["content"], self.special)
        ids = self.text_ids(self._render(messages, generate=not answer))
        turns, turn = [0] * len(ids), 0
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                turn += 1
                start = len(self.text_ids(self._render(messages[:index], generate=True)))
                end = len(self.text_ids(self._render(messages[: index + 1], generate=False)))
                turns[start:end] = [turn] * (end - start)
        if answer and not turn:
            raise ValueError("the conversation has no assistant turn to learn from")
        return Encoded(ids, turns)


class LlasmPrompt(ChatPrompt):
    """LLaSM's templates with the ids of its released code (infer_tokenize.py), one AUDIO for the 64 `<au_patch>`.

    ```
    cllama2:  enc(S) once more where doubled_system | BOS enc("[INST] " S text " [/INST] ") | enc(answer " ") EOS | ...
    baichuan: BOS enc(system) | enc("USER:") enc(text) | enc("ASSISTANT:") enc(answer "</s>") | ...
    ```
    Each text between special tokens is tokenised alone by SentencePiece, with its dummy blank in front.

    Args:
        tokenizer: folder with `tokenizer.model` and `added_tokens.json`.
        template: `cllama2` or `baichuan`.
        system: for conversations that bring none.
        user: as for `ChatPrompt`.
        doubled_system: emit the system prompt twice, as the released code does (cllama2 only).
        pieces: `fast`, as the tokenizer of the released inference; `slow`, as transformers' slow one, which LinkSoul's
            own training scripts use: blanks beside special tokens are lost, and the BOS is whatever
            special_tokens_map.json says (in the release `</s>`).
        max_length: positions a row may take once its clips are spliced in.
    """

    def __init__(
        self,
        tokenizer: str,
        template: Literal["cllama2", "baichuan"] = "cllama2",
        system: str = SYSTEM,
        user: str | None = None,
        doubled_system: bool = False,
        pieces: Literal["fast", "slow"] = "fast",
        max_length: int = 2048,
    ) -> None:
        if template not in ("cllama2", "baichuan"):
            raise ValueError(f"LlasmPrompt.template is cllama2 or baichuan, not {template!r}")
        if pieces not in ("fast", "slow"):
            raise ValueError(f"LlasmPrompt.pieces is fast or slow, not {pieces!r}")
        super().__init__(tokenizer, system, user, None, None, ["<au_start>", "<au_end>"], max_length)
        self.template, self.doubled_system, self.pieces = template, doubled_system, pieces

    @cached_property
    def tokenizer(self) -> PieceTokenizer:  # type: ignore[override]  # it has what a prompt asks of a tokenizer
        """The SentencePiece model with the release's special tokens."""
        return PieceTokenizer(self.name, strip=self.pieces == "slow")

    @property
    def new_tokens(self) -> list[int]:
        """Ids of `<au_start>` and `<au_end>`: their rows learn also where the LLM is frozen."""
        return list(self.tokenizer.convert_tokens_to_ids(self.audio_tokens))

    @cached_property
    def stop_ids(self) -> list[int]:
        return [self.tokenizer.eos_token_id]

    def encode(self, messages: Sequence[Message], answer: bool = True) -> Encoded:
        """See `ChatPrompt.encode`."""
        _ = self.new_tokens  # a tokenizer without them would spell them out
        turns_of = [self._with_clips(message) for message in messages]
        system = self.system or ""
        if turns_of and turns_of[0][0] == "system":
            system = turns_of.pop(0)[1]
        if not answer and turns_of and turns_of[-1][0] == "assistant":
            turns_of.pop()
        if answer and not any(role == "assistant" for role, _ in turns_of):
            raise ValueError("the conversation has no assistant turn to learn from")
        out = Encoded([], [])
        parts = self._cllama2(system, turns_of) if self.template == "cllama2" else self._baichuan(system, turns_of)
        if not answer and self.template == "baichuan":
            parts.append((self.tokenizer.encode("ASSISTANT:"), 0))
        for ids, turn in parts:
            out.ids += ids
            out.turns += [turn] * len(ids)
        return out

    def _with_clips(self, message: Message) -> tuple[str, str]:
        role, text = message["role"], flatten(message["content"])
        refuse_special(text, [*self.tokenizer.special, "[INST]", "[/INST]"])
        if role == "user" and self.user is not None and CLIP in text and not text.replace(CLIP, "").strip():
            text = self.user.replace("{audio}", text)
        if role == "assistant" and CLIP in text:
            raise ValueError("an assistant turn cannot hold audio in its content: give it in the turn's `audio` field")
        return role, text.replace(CLIP, f"<au_start>{CLIP}<au_end>")

    def _cllama2(self, system: str, messages: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
        encode, system = self.tokenizer.encode, f"<<SYS>>\n{system}\n<</SYS>>\n\n"
        parts: list[tuple[list[int], int]] = [(encode(system), 0)] if self.doubled_system else []
        turn = 0
        for index, (role, text) in enumerate(messages):
            text = (text if index else system + text).strip()
            if role == "assistant":
                turn += 1
                parts.append(([*encode(f"{text} "), self.tokenizer.eos_token_id], turn))
            else:
                parts.append(([self.tokenizer.encode_bos, *encode(f"[INST] {text} [/INST] ")], 0))
        return parts

    def _baichuan(self, system: str, messages: list[tuple[str, str]]) -> list[tuple[list[int], int]]:
        encode = self.tokenizer.encode
        parts: list[tuple[list[int], int]] = [([self.tokenizer.bos_token_id] if self.tokenizer.add_bos else [], 0)]
        parts.append((encode(system), 0))
        turn = 0
        for role, text in messages:
            text = text.strip()
            if role == "assistant":
                turn += 1
                parts += [(encode("ASSISTANT:"), 0), (encode(f"{text}</s>"), turn)]
            else:
                parts += [(encode("USER:"), 0), (encode(text), 0)]
        return parts


def refuse_special(text: str, special: Sequence[str]) -> None:
    """Refuse content that the released code would take for special tokens.

    Raises:
        ContentError: naming the first.
    """
    if found := next((token for token in special if token in text), None):
        raise ContentError(f"a text holds {found!r}, a special token of the released prompt: take it out or spell it")


def from_item(item: dict[str, Any]) -> list[Message]:
    """Messages of a conversation in LLaSM's own form (`{"instruction", "conversations": [{"from", "value"}]}`)."""
    messages: list[Message] = []
    if item.get("instruction"):
        messages.append({"role": "system", "content": item["instruction"]})
    for turn in item["conversations"]:
        parts: list[dict[str, str]] = []
        for index, text in enumerate(turn["value"].split("<au_start>")):
            if index:
                parts.append({"type": "audio"})
                text = text.replace("<au_patch>", "").removeprefix("<au_end>")
            if text:
                parts.append({"type": "text", "text": text})
        messages.append({"role": "user" if turn["from"] == "human" else "assistant", "content": parts})
    return messages
