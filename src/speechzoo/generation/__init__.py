"""The road of an answer: token loop, units, sound, events, reply.

In its order: `sampling` (which token), `cache` (keys and values), `tokens` (the loop), `slots` and `refill` (steps of
fixed shapes, and their loop), `units` and `sound` (what follows each token), `events` (all of it, typed), `respond`
(what a model offers), `conversation` (what a user calls).
The parts stand on the first ones, so the last one, which asks whole models, is imported when it is asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechzoo.generation.conversation import answer, collect, stream, text_deltas

__all__ = ["answer", "collect", "stream", "text_deltas"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from speechzoo.generation import conversation

        return getattr(conversation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
