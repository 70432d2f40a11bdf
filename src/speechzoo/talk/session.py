"""One user's conversation with one model: history, and answers in events that can be stopped."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from speechzoo.talk.questions import fitting
from speechzoo.talk.sources import Talker
from speechzoo.text import Message
from speechzoo.types import StreamEnd, StreamEvents, TextDelta

MAX_NEW_TOKENS = 256


class Session:
    """A conversation. Its history takes part in each answer; what no longer fits into the model's prompt is forgotten,
    oldest first, so a session of any length takes bounded memory.

    Args:
        talker: who answers.
        history: messages so far, sounds read (see `read_history`).
        generate: settings of all answers (see `Decoding`; also `chunk_units`).
    """

    def __init__(self, talker: Talker, history: Sequence[Message] = (), **generate: Any) -> None:
        self.talker, self.history, self.generate = talker, list(history), generate
        self._busy = False

    def ask(self, message: Message, **generate: Any) -> StreamEvents:
        """Answer a user's message in events; closing the iterator stops the answer and frees all it holds.

        Question and answer then belong to the history, also where the answer was stopped after some words; one without
        a word leaves no trace, nor does one that failed.

        Raises:
            ValueError: if an answer is being given already, or see `Talker.stream`; the history is then as before.
        """
        self._check_idle()
        own = getattr(self.talker.model, "generation", {}).get("max_new_tokens", MAX_NEW_TOKENS)
        options = {"max_new_tokens": own, **self.generate, **generate}
        messages = fitting(self.talker.model, [*self.history, message], options["max_new_tokens"])
        return self._events(self.talker.stream(messages, **options), messages)

    def _check_idle(self) -> None:
        if self._busy:
            raise ValueError("the last question is still being answered: wait, or stop it")

    def _events(self, events: StreamEvents, messages: list[Message]) -> StreamEvents:
        self._check_idle()
        self._busy, text = True, ""
        try:
            with closing(events):
                for event in events:
                    if isinstance(event, StreamEnd):
                        break
                    if isinstance(event, TextDelta):
                        text += event.text
                    yield event
        except GeneratorExit:
            self._remember(messages, text)
            raise
        finally:
            self._busy = False
        self._remember(messages, text)
        yield event  # the end, outside: who sees it may ask again before this iterator is closed

    def _remember(self, messages: list[Message], text: str) -> None:
        if text.strip():
            self.history = [*messages, {"role": "assistant", "content": text}]
