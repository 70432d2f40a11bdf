"""Text: conversations as token ids, with the spans that are learnt and the places of clips."""

from speechzoo.text.prompt import CLIP, ChatPrompt, ContentError, Encoded, Message, flatten, lone_surrogate

__all__ = [
    "CLIP",
    "ChatPrompt",
    "ContentError",
    "Encoded",
    "Message",
    "flatten",
    "lone_surrogate",
]
