"""Instructions rewritten for speech, and answered for the ear, by an LLM: an endpoint or a local model.

After the description of LLaMA-Omni's data (arXiv 2409.06666, section 3 and appendix A): the instruction gets fillers,
numbers become words, it is kept short; the answer is written to the new instruction, brief, with nothing that
text-to-speech cannot say. The wording of the prompts is ours.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import regex

from speechzoo.corpora.llm import LLM
from speechzoo.corpora.stage import Broken
from speechzoo.corpora.texts import LISTED, UNSPEAKABLE, Turns
from speechzoo.system.endpoint import Chat, EndpointError
from speechzoo.system.files import write_json
from speechzoo.text import lone_surrogate

ASK = """Below is a written instruction. Say the same as somebody would say it aloud to a voice assistant.
- Where it sounds natural, use words of spontaneous speech, such as "hey", "so", "well" or "you know"; not too many.
- Write numbers, signs and abbreviations as the words that are spoken.
- Be brief: keep what is asked, with all that is needed to answer it, and leave out the rest.
Reply with the spoken instruction alone, in the language of the instruction.

Instruction:
{text}"""

ANSWER = """Somebody asked a voice assistant what stands below. Give the answer that the assistant speaks.
- It is read aloud by text-to-speech: no lists, headings, brackets, formulas, code, links or emoji; numbers as words.
- Be brief and natural, two or three sentences in most cases, and say what matters.
Reply with the spoken answer alone, in the language of the question.

Question:
{text}"""

TOKENS = 512
ANSWER_WORDS = 60  # expected, with the paper's mean of 39.5 and what models add
WRAPPED = regex.compile(r"^[\s\"“”']+|[\s\"“”']+$")


class Rewriter:
    """Rewrites conversations; answers of the LLM are kept by what was asked and never asked for twice.

    Args:
        llm: what writes.
        cache: folder of its answers, a file each; several processes may share it.
        temperature, seed: of the LLM.
    """

    def __init__(self, llm: LLM, cache: Path, temperature: float = 0.7, seed: int = 0) -> None:
        self.llm, self.cache, self.settings = llm, cache, {"temperature": temperature, "seed": seed}
        self.spent = {"prompt_tokens": 0, "completion_tokens": 0, "asked": 0, "cached": 0}
        self._lock = threading.Lock()

    def __call__(self, turns: Turns) -> Turns:
        """Spoken questions and answers.

        Raises:
            Broken: the LLM gave none, or one that cannot be spoken.
            ValueError: if the endpoint refuses everything.
        """
        spoken = []
        for question, _ in turns:
            asked = self._write(ASK.format(text=question), "question")
            spoken.append([asked, self._write(ANSWER.format(text=asked), "answer")])
        return spoken

    def _write(self, prompt: str, what: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        key = sha256(json.dumps([self.llm.model, messages, self.settings, TOKENS], ensure_ascii=False).encode())
        file = self.cache / key.hexdigest()[:2] / f"{key.hexdigest()}.json"
        reply = _kept(file)
        if reply is None:
            try:
                reply = self.llm.chat(messages, max_tokens=TOKENS, **self.settings)
                written = reply.text
            except EndpointError as error:
                if not error.transient:
                    raise ValueError(f"{error}: check address, model and key") from error
                raise Broken("LLM failed", str(error), transient=True) from error
            self._count(asked=1, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)
            if written.strip() and not lone_surrogate(written):  # an empty or damaged one is asked for again
                write_json(file, vars(reply))
        else:
            self._count(cached=1)
        text: str = WRAPPED.sub("", reply.text)
        if not text:
            raise Broken("LLM wrote nothing", f"as {what}", transient=True)
        if reply.ended == "length":
            raise Broken("LLM's text is cut off", f"{what} of {TOKENS} tokens")
        return check_speakable(text, what)

    def _count(self, **more: int | None) -> None:
        with self._lock:
            for key, number in more.items():
                self.spent[key] += number or 0


def check_speakable(text: str, what: str) -> str:
    """A rewritten text, if it can be spoken.

    Raises:
        Broken: naming the rule of `UNSPEAKABLE` that says no, or a list.
    """
    rules = ("list",) if LISTED.search(text) else (rule for rule, found in UNSPEAKABLE.items() if found(text))
    if rule := next(iter(rules), None):
        raise Broken("rewritten, but not speakable", f"{rule} in the {what} {text[:80]!r}")
    return text


def _kept(file: Path) -> Chat | None:
    try:
        return Chat(**json.loads(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):  # damaged: asked for again
        return None


def expected_tokens(conversations: Iterable[Turns]) -> tuple[int, int]:
    """Tokens of prompts and of answers to come: an estimate, by four characters a token and the paper's lengths."""
    prompts = answers = 0
    for turns in conversations:
        for question, _ in turns:
            written = -(-len(question) // 4)
            prompts += (len(ASK) + len(ANSWER)) // 4 + 2 * written
            answers += written + ANSWER_WORDS * 4 // 3
    return prompts, answers


def cost(prompts: int, answers: int, prices: Sequence[float] | None) -> str:
    """In words; `prices` are those of a million tokens, read and written."""
    told = f"{prompts:,} tokens read and {answers:,} written"
    return (
        told if not prices else f"{told}, {(prompts * prices[0] + answers * prices[1]) / 1e6:,.2f} at the given prices"
    )
