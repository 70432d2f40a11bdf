"""Scoring answers, comparing systems, and the report of a run."""

from speechzoo.evaluation.answers import Answer, load_answers, save_answers, score, score_by
from speechzoo.evaluation.compare import (
    StageSummary,
    SystemResult,
    comparison_table,
    kind_table,
    pair_table,
    stage_table,
)
from speechzoo.evaluation.environment import describe_environment
from speechzoo.evaluation.report import Check, HumanClip, Licence, ReportData, write_report
from speechzoo.evaluation.tables import Cell, Table

__all__ = [
    "Answer",
    "Cell",
    "Check",
    "HumanClip",
    "Licence",
    "ReportData",
    "StageSummary",
    "SystemResult",
    "Table",
    "comparison_table",
    "describe_environment",
    "kind_table",
    "load_answers",
    "pair_table",
    "save_answers",
    "score",
    "score_by",
    "stage_table",
    "write_report",
]
