"""What an examination found: one line each, with a level, a name to silence it by, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LEVELS = ("ok", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        level: `ok`, `note` (worth knowing), `warning` (probably not meant), `error` (the run would be worthless).
        name: of the check, for `ignore`.
        text: what was seen.
        advice: what to do about it.
    """

    level: str
    name: str
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level:<8}{self.name}: {self.text}" + (f" -> {self.advice}" if self.advice else "")


def ok(name: str, text: str) -> Finding:
    """A check that found things as they should be."""
    return Finding("ok", name, text)


def note(name: str, text: str, advice: str = "") -> Finding:
    """Worth knowing."""
    return Finding("note", name, text, advice)


def warning(name: str, text: str, advice: str) -> Finding:
    """Probably not meant."""
    return Finding("warning", name, text, advice)


def error(name: str, text: str, advice: str) -> Finding:
    """The run would be worthless or fail."""
    return Finding("error", name, text, advice)


def settle(findings: Iterable[Finding], ignore: Iterable[str] = ()) -> list[Finding]:
    """The findings once each, those of ignored checks as notes.

    Raises:
        ValueError: if a name in `ignore` is none of a check that ran.
    """
    unique = list(dict.fromkeys(findings))
    ignored, names = set(ignore), {finding.name for finding in unique}
    if unknown := sorted(ignored - names):
        raise ValueError(
            f"doctor.ignore: there is no check {unknown[0]!r}; checks that ran: {', '.join(sorted(names))}"
        )
    quiet = [finding.name in ignored and finding.level != "ok" for finding in unique]
    return [Finding("note", f.name, f.text, "ignored") if q else f for f, q in zip(unique, quiet, strict=True)]


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those a run should not start with."""
    return [finding for finding in findings if finding.level == "error"]
