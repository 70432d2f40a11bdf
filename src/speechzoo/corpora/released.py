"""Released speech instruction sets, in the layouts they have on the hub, as values of records.

* `multiturn`: ICTNLP/Multiturn-Speech-Conversations (and the JSON of ICTNLP/InstructS2S-200K): an array of {id,
  conversation: [{from: human, speech: PATH, text}, {from: gpt, unit: [...], text}]}, paths from the file's folder;
  where an answer has `speech` too it is taken.
* `instructs2s`: yuekai/InstructS2S-200K, Parquet: id, round, question, question_audio, answer, speech_token. Of later
  rounds the question holds what was said before (`<USER>: ... <ASSISTANT>: ...`); the sound is the last question's.
* `voiceassistant`: gpt-omni/VoiceAssistant-400K, Parquet: split_name, index, round, question, question_audio, answer,
  answer_snac. SNAC codes are no units of one stream: they are left out.
* `llasm`: LinkSoul/LLaSM-Audio-Instructions holds no data yet; the layout is what its authors' code reads:
  {instruction (system), conversations: [{from: human, value, audio: PATH}, {from: gpt, value}]}.

The units of the first two are CosyVoice 2's (up to 6561), not the 1000 clusters of LLaMA-Omni's paper (issue 66 there).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import regex

from speechzoo.corpora.sounds import kept_sound
from speechzoo.corpora.stage import Broken, Item
from speechzoo.corpora.tables import rows

SPEAKER = regex.compile(r"<\s*(USER|ASSISTANT)\s*>\s*:")
LARGE = ("refuse", "clip", "without")
"""What to do with a record that has units beyond the range: leave it out, take the largest in their place, or keep it
without units."""

Round = tuple[str, Any, str, Any, Any]
"""What the user says as text, as sound (a path, {bytes, path} or None), the answer, its units and sound (or None)."""


def items(kind: str, name: str, split: str = "train") -> Iterator[Item]:
    """Records of a set: values `{rounds, system, source}`, or why there are none.

    Raises:
        ValueError: if there is no such kind.
    """
    if kind not in LAYOUTS:
        raise ValueError(f"{kind}={name}: the layouts of released sets are {', '.join(LAYOUTS)}")
    for number, row in rows(name, split):
        identity = f"{kind}-#{number}"  # apart from ids that records bring
        try:
            if isinstance(row, Broken):
                raise row
            given, system, rounds = LAYOUTS[kind](row, number)
            if strange := [asked for asked, *_ in rounds if not isinstance(asked, str)]:
                raise Broken("unknown layout", f"a question is {strange[0]!r}, and no text")
            if not rounds or not all(answer.strip() for _, _, answer, _, _ in rounds):
                raise Broken("empty answer" if rounds else "no round of question and answer")
            yield Item(number, f"{kind}-{given}", {"rounds": rounds, "system": system, "source": kind})
        except Broken as error:
            yield Item(number, identity, error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            keys = ", ".join(list(row)[:8]) if isinstance(row, dict) else ""
            yield Item(number, identity, Broken("unknown layout", f"{error!r}; its keys: {keys}"))


def _pairs(turns: list[Any]) -> Iterator[tuple[Any, Any]]:
    for ask, answer in zip(turns[::2], turns[1::2], strict=True):
        if (ask["from"], answer["from"]) != ("human", "gpt"):
            raise Broken("roles out of turn", f"{ask['from']} is followed by {answer['from']}")
        yield ask, answer


def _multiturn(row: dict[str, Any], number: int) -> tuple[Any, str, list[Round]]:
    rounds: list[Round] = [
        (ask.get("text") or "", ask["speech"], answer["text"], answer.get("unit"), answer.get("speech"))
        for ask, answer in _pairs(row["conversation"])
    ]
    return _id(row, number), "", rounds


def _id(row: dict[str, Any], number: int) -> Any:
    """Null where other rows of a table bring one."""
    given = row.get("id")
    return number if given is None else given


def _instructs2s(row: dict[str, Any], number: int) -> tuple[Any, str, list[Round]]:
    last = (row["question_audio"], row["answer"], row.get("speech_token"), row.get("answer_audio"))
    rounds = _history(row["question"], *last)
    return f"{_id(row, number)}-{row.get('round', 1)}", "", rounds


def _voiceassistant(row: dict[str, Any], number: int) -> tuple[Any, str, list[Round]]:
    rounds = _history(row["question"], row["question_audio"], row["answer"], None, None)
    return f"{row['split_name']}-{row.get('index', number)}-{row.get('round', 1)}", "", rounds


def _llasm(row: dict[str, Any], number: int) -> tuple[Any, str, list[Round]]:
    pairs = _pairs(row["conversations"])
    rounds: list[Round] = [(ask.get("value") or "", ask["audio"], answer["value"], None, None) for ask, answer in pairs]
    return _id(row, number), row.get("instruction") or "", rounds


LAYOUTS: dict[str, Callable[[dict[str, Any], int], tuple[Any, str, list[Round]]]] = {
    "multiturn": _multiturn,
    "instructs2s": _instructs2s,
    "voiceassistant": _voiceassistant,
    "llasm": _llasm,
}


def _history(question: str, sound: Any, *answer: Any) -> list[Round]:
    """Rounds of a question that may hold the ones before it as text."""
    pieces = SPEAKER.split(question)
    if len(pieces) < 3:
        return [(question.strip(), sound, *answer)]
    names, texts = pieces[1::2], [text.strip() for text in pieces[2::2]]
    if names != [("USER", "ASSISTANT")[n % 2] for n in range(len(names))] or not len(names) % 2:
        raise Broken("roles out of turn", f"in the question {question[:80]!r}")
    before: list[Round] = [
        (asked, None, said, None, None) for asked, said in zip(texts[:-1:2], texts[1::2], strict=True)
    ]
    return [*before, (texts[-1], sound, *answer)]


class Mapping:
    """Makes a record's value of what `items` gives.

    Args:
        sounds: folder for sound that comes as bytes.
        beside: folder that paths are relative to.
        num_units: the range of units; 0 keeps none.
        large: of `LARGE`.
        language: of the set.
    """

    def __init__(self, sounds: Path, beside: Path, num_units: int, large: str, language: str) -> None:
        self.sounds, self.beside, self.num_units = sounds, beside, num_units
        self.large, self.language = large, language

    def __call__(self, value: dict[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {"language": self.language, "source": value["source"], "user_seconds": []}
        messages: list[dict[str, Any]] = []
        if value["system"]:
            messages.append({"role": "system", "content": value["system"]})
        for asked, sound, text, units, spoken in value["rounds"]:
            content: Any = asked
            if sound is not None:
                path, seconds = kept_sound(sound, self.sounds, self.beside)
                said = {"transcript": asked.strip()} if asked.strip() else {}
                content = [{"type": "audio", "path": path, **said}]
                facts["user_seconds"].append(seconds)
            answer = {"role": "assistant", "content": text.strip()}
            if self.num_units and (kept := self._units(units, facts)):
                answer["units"] = kept
            spoken = spoken() if callable(spoken) else spoken
            if spoken is not None:
                try:
                    answer["audio"], seconds = kept_sound(spoken, self.sounds, self.beside)
                    facts.setdefault("answer_seconds", []).append(seconds)
                except Broken:  # the text is still there to learn from
                    facts["lost_answers"] = facts.get("lost_answers", 0) + 1
            messages += [{"role": "user", "content": content}, answer]
        return {"messages": messages, "facts": facts}

    def _units(self, units: Any, facts: dict[str, Any]) -> list[int]:
        try:
            if isinstance(units, str):
                units = json.loads(units) if units.lstrip().startswith("[") else units.split()
            found = [int(unit) for unit in units or []]
        except (TypeError, ValueError) as error:
            raise Broken("strange units", str(error)) from error
        if found and min(found) < 0:
            raise Broken("negative unit", str(min(found)))
        if beyond := sum(unit >= self.num_units for unit in found):
            told = f"units of {self.num_units} and above"
            if self.large == "refuse":
                raise Broken(told, f"{beyond} of {len(found)}, the largest {max(found)}")
            facts["large_units"] = facts.get("large_units", 0) + beyond
            found = [min(unit, self.num_units - 1) for unit in found] if self.large == "clip" else []
        return [unit for unit, _ in groupby(found)]
