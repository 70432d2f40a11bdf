"""Text: conversations as token ids, with the spans that are learnt and the places of clips."""

from speechzoo.text.content import CLIP, ContentError, Message, flatten, lone_surrogate
from speechzoo.text.prompt import ChatPrompt, Encoded

__all__ = [
    "CLIP",
    "ChatPrompt",
    "ContentError",
    "Encoded",
    "Message",
    "flatten",
    "lone_surrogate",
]
