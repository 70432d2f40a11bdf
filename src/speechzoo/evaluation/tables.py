"""Tables of results and how they are written in Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import NamedTuple

NOT_MEASURED = "not measured"

_LATEX = {c: "\\" + c for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


class Cell(NamedTuple):
    """A value, a remark beside it (an interval, a count) and whether it stands out."""

    text: str
    detail: str = ""
    strong: bool = False

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".strip()


@dataclass
class Table:
    """A header and rows of the same width; a row of a single cell is a heading over the rows that follow."""

    header: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    caption: str = ""

    def add(self, *cells: Cell | str) -> None:
        """Add a row.

        Raises:
            ValueError: if it is neither a heading nor as wide as the header.
        """
        if len(cells) not in (1, len(self.header)):
            raise ValueError(f"a row of {len(cells)} cells in a table of {len(self.header)} columns")
        self.rows.append([cell if isinstance(cell, Cell) else Cell(cell) for cell in cells])

    def to_markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        lines = [_markdown_row(self.header), _markdown_row(["---"] * len(self.header), escape=False)]
        for row in self.rows:
            cells = [f"**{markdown(str(c))}**" if c.strong or len(row) == 1 else markdown(str(c)) for c in row]
            lines.append(_markdown_row(cells + [""] * (len(self.header) - len(row)), escape=False))
        return "\n".join(lines)

    def to_latex(self) -> str:
        """A `table` with booktabs rules (`\\usepackage{booktabs}`)."""
        width = len(self.header)
        body = []
        for row in self.rows:
            cells = [f"\\textbf{{{latex(str(c))}}}" if c.strong else latex(str(c)) for c in row]
            if len(row) == 1:
                body += ["\\midrule", f"\\multicolumn{{{width}}}{{l}}{{\\textit{{{latex(row[0].text)}}}}} \\\\"]
            else:
                guard = "{}" if cells[0].startswith(("[", "*")) else ""  # else \\\\ of the row before takes it
                body.append(guard + " & ".join(cells) + " \\\\")
        lines = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{l{'r' * (width - 1)}}}", "\\toprule"]
        lines += [" & ".join(latex(h) for h in self.header) + " \\\\"]
        lines += body if body and body[0] == "\\midrule" else ["\\midrule", *body]
        lines += ["\\bottomrule", "\\end{tabular}"]
        lines += [f"\\caption{{{latex(self.caption)}}}"] if self.caption else []
        return "\n".join([*lines, "\\end{table}"])


def markdown(text: str) -> str:
    """Text on one line that Markdown shows as it is, also inside a table."""
    text = " ".join(text.split())
    for character in "\\`*_[]<>|#~$":
        text = text.replace(character, "\\" + character)
    return re.sub(r"&(?=\w+;)", r"\\&", text)  # else `&lt;` would be shown as <


def _markdown_row(cells: list[str], escape: bool = True) -> str:
    return "| " + " | ".join(markdown(c) if escape else c for c in cells) + " |"


def latex(text: str) -> str:
    """Text on one line that LaTeX shows as it is; an empty one would end a table."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def percent(value: float | None) -> str:
    """0.1234 -> "12.3 %"."""
    return NOT_MEASURED if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of two rates in percentage points: -0.0862 -> "−8.6"."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def count(value: float | None) -> str:
    """134515008 -> "134.5 M", 31204 -> "31.2 k", 812 -> "812"."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    for least, size, letter in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if value >= least:
            return f"{value / size:.1f} {letter}"
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """0.512 -> "0.51 s", 75.3 -> "1 min 15 s", 7300 -> "2 h 2 min"."""
    if value is None or math.isnan(value):
        return NOT_MEASURED
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes = round(value) // 60
    if minutes < 60:
        return f"{minutes} min {round(value) % 60} s"
    return f"{minutes // 60} h {minutes % 60} min"


def number(value: float | None, digits: int = 3) -> str:
    """A plain number with `digits` decimals."""
    return NOT_MEASURED if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def megabytes(value: float | None) -> str:
    """1412.3 -> "1,412 MB"."""
    return NOT_MEASURED if value is None or math.isnan(value) else f"{value:,.0f} MB"
