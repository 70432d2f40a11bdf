"""The columns of a suite's table: each a ratio of sums over questions, so that all have intervals and paired tests."""

from __future__ import annotations

from speechzoo.evaluation.answers import Answer, Measure, Part, compared, rated
from speechzoo.metrics import CharErrorRate, ExactMatch, RougeL, WordErrorRate, speech_words


def _given(key: str, name: str, higher: bool = True, rate: bool = True) -> Measure:
    """The mean of a score by rule or judge."""

    def of(answer: Answer) -> Part | None:
        value = (answer.scores or {}).get(key)
        return None if value is None else (value, 1.0)

    return Measure(key, name, of, higher, rate)


def _share(key: str, name: str, total: str) -> Measure:
    """One score of all answers over another."""

    def of(answer: Answer) -> Part | None:
        scores = answer.scores or {}
        return (scores[key], scores[total]) if key in scores else None

    return Measure(key, name, of)


def _speed(answer: Answer) -> Part | None:
    return (len(speech_words(answer.text)), answer.reply_seconds) if answer.reply_seconds else None


COLUMNS = {
    column.key: column
    for column in (
        _given("s2tif", "S2TIF, 1 to 5", rate=False),
        _given("s2sif", "S2SIF, 1 to 5", rate=False),
        compared("asr_wer", "ASR-WER", WordErrorRate, "spoken", "text"),
        compared("asr_cer", "ASR-CER", CharErrorRate, "spoken", "text"),
        rated("utmos", "UTMOS", digits=4),
        rated("distill_mos", "Distill-MOS", digits=4),
        Measure("wps", "Words per second", _speed, rate=False),
        _given("s2t", "Reference in the text (S2T)"),
        _given("s2s", "Reference in the speech (S2S)"),
        _given("judged_s2t", "Right by the judge (S2T)"),
        _given("judged_s2s", "Right by the judge (S2S)"),
        _given("same_s2t", "Says the expected sentence (text, local rule)"),
        _given("same_s2s", "Says the expected sentence (speech, local rule)"),
        _given("choice", "Right letter"),
        _given("no_choice", "No letter", higher=False),
        _given("refusal", "Refused"),
        _given("ifeval_strict_prompt", "Strict, prompts"),
        _share("ifeval_strict", "Strict, instructions", "ifeval_total"),
        _given("ifeval_loose_prompt", "Loose, prompts"),
        _share("ifeval_loose", "Loose, instructions", "ifeval_total"),
        compared("wer", "WER", WordErrorRate),
        compared("cer", "CER", CharErrorRate),
        compared("exact_match", "Exact match", ExactMatch),
        compared("rouge_l", "ROUGE-L", RougeL),
    )
}
