"""Looks at model, data and settings before the first step, and says what would make the run worthless."""

from speechzoo.doctor.examine import Examination, examine
from speechzoo.doctor.findings import Finding, errors

__all__ = ["Examination", "Finding", "errors", "examine"]
