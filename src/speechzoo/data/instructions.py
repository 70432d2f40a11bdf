"""LLaSM's speech recognition instructions (its first training stage), English and Chinese.

The paper (arXiv 2308.15930, figures 2 and 3) shows its two pools as pictures only. The first four English ones are its
own, as later work quotes them; all others are our wording.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

ASR_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "en": (
        "Transcribe the following speech into text.",
        "Convert the spoken words into written text.",
        "Transform the speech into a written transcript.",
        "Record the oral communication as written text.",
        "Write down what is said in this recording.",
        "Please type out the words you hear.",
        "What does the speaker say? Give the exact words.",
        "Listen to the audio and write it out word for word.",
        "Turn this audio clip into text.",
        "Give me a transcript of the speech.",
        "Put the spoken sentence into writing.",
        "Take dictation from this recording.",
    ),
    "zh": (
        "请把这段语音转写成文字。",
        "写出录音里说的话。",
        "请将下面的语音转换为文本。",
        "听这段音频,逐字记录下来。",
        "说话的人说了什么?请写出原话。",
        "把你听到的内容写下来。",
        "请为这段录音做听写。",
        "给出这段语音的文字稿。",
        "请将说出的句子变成书面文字。",
        "识别这段音频中的语音内容。",
        "把这段口语记录成文字。",
        "请输出这段话对应的文字。",
    ),
}


def asr_messages(
    audio: str | Path, transcript: str, language: str = "en", rng: random.Random | None = None
) -> list[dict[str, Any]]:
    """Return a two-turn conversation that asks for the transcript of a clip, LLaSM's stage 1 sample.

    The instruction is drawn from the pool of the clip's language and stands before or after the audio at random.

    Raises:
        ValueError: there is no pool for this language.
    """
    if language not in ASR_INSTRUCTIONS:
        known = ", ".join(ASR_INSTRUCTIONS)
        raise ValueError(f"no recognition instructions for language {language!r}; there are {known}")
    rng = rng or random.Random()
    content = [{"type": "audio", "path": str(audio)}, {"type": "text", "text": rng.choice(ASR_INSTRUCTIONS[language])}]
    if rng.random() < 0.5:
        content.reverse()
    return [{"role": "user", "content": content}, {"role": "assistant", "content": transcript}]
