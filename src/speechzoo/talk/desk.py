"""Many users, several models: each model answers one question at a time, in the order they came, in its own thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from speechzoo.talk.session import Session
from speechzoo.talk.sources import Talker
from speechzoo.text import Message
from speechzoo.types import AudioChunk, StreamEnd, StreamEvent, TextDelta, UnitDelta

WAITING, ANSWERING, DONE, STOPPED, FAILED = "waiting", "answering", "done", "stopped", "failed"


@dataclass
class Answer:
    """An answer on its way: written by its desk's thread, read by any other. Times are wall seconds since it was asked
    for, waiting for others included.

    Attributes:
        ahead: questions of others that came before it, while it waits.
        chunks: its sound so far, `[T]` each.
        error: why it failed, in one line.
    """

    session: Session
    message: Message
    generate: dict[str, Any]
    changed: Callable[[], None]
    state: str = WAITING
    ahead: int = 0
    text: str = ""
    heard: list[str] = field(default_factory=list)
    tokens: int = 0
    units: int = 0
    chunks: list[Tensor] = field(default_factory=list)
    sample_rate: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # first_text, first_units, first_audio, total, waited
    error: str = ""
    asked: float = field(default_factory=time.perf_counter)
    _stop: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in (DONE, STOPPED, FAILED)

    def stop(self) -> None:
        """Have it end: at once if it waits, else at its next token."""
        self._stop = True
        if self.state == WAITING:
            self._become(STOPPED)

    def run(self) -> None:
        """Give the answer; for the desk's thread."""
        if self._stop:
            return
        self._time("waited")
        self._become(ANSWERING)
        try:
            with closing(self.session.ask(self.message, **self.generate)) as events:
                for event in events:
                    self._note(event)
                    self.changed()
                    if self._stop and not isinstance(event, StreamEnd):
                        break
        except Exception as error:  # one user's question must not end the thread that answers all
            self.error = (str(error).splitlines() or [type(error).__name__])[0]
            self._become(FAILED)
        else:
            self._become(DONE if "total" in self.seconds else STOPPED)

    def _note(self, event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            self._time("first_text")
            self.text += event.text
            self.tokens += len(event.ids)
        elif isinstance(event, UnitDelta):
            self._time("first_units")
            self.units += len(event.units)
        elif isinstance(event, AudioChunk):
            self._time("first_audio")
            self.sample_rate = event.sample_rate
            self.chunks.append(event.audio.detach().float().cpu())
        else:
            self._time("total")
            self.tokens, self.heard = len(event.ids), event.heard or []

    def _time(self, what: str) -> None:
        self.seconds.setdefault(what, time.perf_counter() - self.asked)

    def _become(self, state: str) -> None:
        self.state = state
        self.changed()


class Desk:
    """A talker and the questions that wait for it."""

    def __init__(self, talker: Talker) -> None:
        self.talker = talker
        self._waiting: queue.Queue[Answer | None] = queue.Queue()
        self._lock, self._open = threading.Lock(), 0
        self._thread = threading.Thread(target=self._work, name=f"answers of {talker.name}", daemon=True)
        self._thread.start()

    def ask(
        self, session: Session, message: Message, changed: Callable[[], None] = lambda: None, **generate: Any
    ) -> Answer:
        """Put a question in line.

        Args:
            changed: called after each change of the answer, in the desk's thread.
        """
        with self._lock:
            answer = Answer(session, message, generate, changed, ahead=self._open)
            self._open += 1
            self._waiting.put(answer)
        return answer

    def close(self) -> None:
        """End the thread once the questions in line are answered."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (answer := self._waiting.get()) is not None:
            answer.run()
            with self._lock:
                self._open -= 1
            del answer  # its sound would stay until the next question


class Lobby:
    """The users of several desks; none sees another's conversation.

    Args:
        desks: by the name users choose them by.
        generate: settings of all answers.
    """

    def __init__(self, desks: Mapping[str, Desk], **generate: Any) -> None:
        self.desks, self.generate = dict(desks), generate
        self._users: dict[str, User] = {}
        self._lock = threading.Lock()

    def user(self, key: str) -> User:
        """The user of a key, who may be new."""
        with self._lock:
            return self._users.setdefault(key, User(self))

    def leave(self, key: str) -> None:
        """Stop the answers a user waits for, and forget everything about them."""
        with self._lock:
            user = self._users.pop(key, None)
        if user is not None:
            user.stop()

    def __len__(self) -> int:
        return len(self._users)


class User:
    """One user, with a conversation with each desk they ask."""

    def __init__(self, lobby: Lobby) -> None:
        self.lobby = lobby
        self.sessions: dict[str, Session] = {}
        self.answers: dict[str, Answer] = {}
        self.news = threading.Event()  # set whenever one of the answers changes

    def ask(self, names: list[str], message: Message, **generate: Any) -> dict[str, Answer]:
        """Put one question to several desks side by side; answers still running are stopped.

        Raises:
            ValueError: if no desk is named, or an unknown one.
        """
        if not names:
            raise ValueError("choose a model to ask")
        if unknown := [name for name in names if name not in self.lobby.desks]:
            raise ValueError(f"there is no model {unknown[0]!r}")
        self.stop()
        self.answers = {}
        for name in names:
            desk = self.lobby.desks[name]
            session = self.sessions.setdefault(name, Session(desk.talker, **self.lobby.generate))
            self.answers[name] = desk.ask(session, message, self.news.set, **generate)
        return self.answers

    def stop(self) -> None:
        """Stop the answers that are not over."""
        for answer in self.answers.values():
            answer.stop()

    def clear(self) -> None:
        """Stop, and forget the conversations."""
        self.stop()
        self.sessions, self.answers = {}, {}
