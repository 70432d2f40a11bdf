"""Corpus-level scores: word, character and unit error rates, exact match, ROUGE-L, and their bootstrap intervals."""

from speechzoo.metrics.bootstrap import Difference, Interval, bootstrap_median, bootstrap_ratio, paired_bootstrap
from speechzoo.metrics.normalise import answer_tokens, normalise_english, speech_words
from speechzoo.metrics.quality import UTMOS, DistillMOS, SpeechQuality, quality_scorers
from speechzoo.metrics.ratio import RatioMetric, edit_distance
from speechzoo.metrics.text import CharErrorRate, ExactMatch, RougeL, WordErrorRate
from speechzoo.metrics.units import UnitErrorRate

__all__ = [
    "UTMOS",
    "CharErrorRate",
    "Difference",
    "DistillMOS",
    "ExactMatch",
    "Interval",
    "RatioMetric",
    "RougeL",
    "SpeechQuality",
    "UnitErrorRate",
    "WordErrorRate",
    "answer_tokens",
    "bootstrap_median",
    "bootstrap_ratio",
    "edit_distance",
    "normalise_english",
    "paired_bootstrap",
    "quality_scorers",
    "speech_words",
]
