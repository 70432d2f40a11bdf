"""What a batch teaches: the supervised text itself, ends of answers, padding, beginnings of sequences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from speechzoo.doctor.findings import Finding, error, note, ok, warning
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO, SpeechBatch

CONTROL = re.compile(r"^\s*[<\[].+[>\]]\s*$|pad|eos|unk|endoftext|end_of_text", re.IGNORECASE)
"""Texts of tokens that no ordinary text holds."""


def check_supervision(batch: SpeechBatch, prompt: ChatPrompt, answers: Sequence[Sequence[str]] | None) -> list[Finding]:
    """Shows what rows teach, and compares it with their answers.

    Args:
        answers: texts of the assistant turns of each row as they stand in the records, from which the batch was made
            by another way; None where there are no records.
    """
    found: list[Finding] = []
    masked = (batch.turns > 0) & ~batch.attention_mask
    if masked.any():
        found.append(
            error("padding_supervised", f"{int(masked.sum())} padding positions are targets", "see SpeechBatch.turns")
        )
    if ((batch.turns > 0) & (batch.input_ids == AUDIO)).any():
        found.append(error("audio_supervised", "a clip's placeholder is a target", "only text of answers is learned"))
    for row in range(len(batch)):
        name = batch.ids[row] if batch.ids else row
        if not (batch.turns[row] > 0).any():
            found.append(error("nothing_supervised", f"row {name} has no target", "give the record an answer"))
            continue
        for turn, ids in spans(batch, row):
            found += _span(prompt, ids, f"{name}, answer {turn}")
            if answers is not None:
                expected = answers[row][turn - 1] if turn <= len(answers[row]) else ""
                found += same_text(prompt.decode(ids), expected, f"row {name}, answer {turn}")
    return found


def spans(batch: SpeechBatch, row: int) -> Iterator[tuple[int, list[int]]]:
    """(turn, supervised ids) of each assistant turn of a row."""
    for turn in sorted(set(batch.turns[row].tolist()) - {0}):
        yield turn, batch.input_ids[row][batch.turns[row] == turn].tolist()


def _span(prompt: ChatPrompt, ids: list[int], where: str) -> Iterator[Finding]:
    shown = prompt.decode(ids, skip_special_tokens=False)
    if ids[-1] in prompt.stop_ids:
        yield note("supervised", f"{where}: {_short(shown)!r}")
    else:
        stop = prompt.decode(prompt.stop_ids, skip_special_tokens=False)
        text = f"{where}: {_short(shown)!r} ends without any of {stop!r}: the model would never learn to stop"
        yield error("end_not_learned", text, "set prompt.end_of_turn to what the template ends answers with")


def same_text(got: str, expected: str, where: str) -> Iterator[Finding]:
    """Whether what is supervised is the answer, blanks aside."""
    got, expected = " ".join(got.split()), " ".join(expected.split())
    if got == expected or got.replace(" ", "") == expected.replace(" ", ""):
        return
    if expected and expected in got:
        text = f"{where} supervises {_short(got)!r}, more than its answer {_short(expected)!r}"
        yield error("prompt_supervised", text, "only answers may be targets: see ChatPrompt.encode")
    elif expected and got and got in expected:
        text = f"{where} supervises {_short(got)!r} of its answer {_short(expected)!r} only"
        yield error("answer_cut", text, "shorten the record or raise prompt.max_length")
    else:
        text = f"{where} reads {_short(got)!r}, the record says {_short(expected)!r}"
        yield warning("answer_changed", text, "the tokenizer or the template changes text; see whether that is meant")


def check_tokens(batch: SpeechBatch, prompt: ChatPrompt, vocabulary: int | None) -> list[Finding]:
    """Special tokens: padding that is text, doubled or missing beginnings, ids the LLM has no embedding for.

    Args:
        vocabulary: rows of the LLM's embedding, new tokens included; None if unknown.
    """
    tokenizer, found = prompt.tokenizer, []
    pad = prompt.decode([prompt.pad_id], skip_special_tokens=False)
    if not CONTROL.search(pad) or not pad.strip():
        text = f"the padding id {prompt.pad_id} is the ordinary text {pad!r}"
        found.append(error("pad_is_text", text, "give the tokenizer a padding token of its own"))
    elif prompt.pad_id in prompt.stop_ids:
        found.append(ok("pad_is_end", f"padding and end of answer are both {pad!r}; targets come from spans, not ids"))
    rows = [batch.input_ids[row][batch.attention_mask[row]].tolist() for row in range(len(batch))]
    bos = tokenizer.bos_token_id
    if bos is not None:
        first = prompt.decode([bos], skip_special_tokens=False)
        doubled = [row for row, ids in enumerate(rows) if any(a == b == bos for a, b in pairwise(ids))]
        if doubled:
            text = f"{len(doubled)} of {len(rows)} rows hold {first!r} twice in a row"
            found.append(error("double_bos", text, "take it out of prompt.chat_template, or out of the system text"))
        wants = tokenizer.encode("a", add_special_tokens=True)[:1] == [bos]
        if wants and any(ids[0] != bos for ids in rows):
            text = f"the tokenizer begins texts with {first!r}, the chat template does not"
            found.append(warning("no_bos", text, "begin prompt.chat_template with it"))
    highest = int(batch.input_ids.max())
    if vocabulary is not None and highest >= vocabulary:
        text = f"token {highest} {tokenizer.decode([highest])!r} is beyond the LLM's {vocabulary} embeddings"
        found.append(error("vocabulary", text, "model.llm and model.prompt.tokenizer have to belong together"))
    return found


def check_units(batch: SpeechBatch, num_units: int | None) -> list[Finding]:
    """Range and padding of the target units of a batch."""
    if batch.units is None or batch.unit_lens is None or num_units is None:
        return []
    found = []
    real = torch.arange(batch.units.shape[1], device=batch.units.device) < batch.unit_lens[:, None]
    wrong = batch.units[real & ((batch.units < 0) | (batch.units >= num_units))]
    if len(wrong):
        text = f"{len(wrong)} target units lie outside 0 ... {num_units - 1}, such as {int(wrong[0])}"
        found.append(error("unit_range", text, "make units with the model's own k-means, or set num_units to its size"))
    if (batch.units[~real] >= 0).any():
        text = "target units are padded with a unit: CTC would learn it"
        found.append(error("unit_padding", text, "pad with speechzoo.types.IGNORE"))
    return found


def _short(text: str, most: int = 100) -> str:
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
