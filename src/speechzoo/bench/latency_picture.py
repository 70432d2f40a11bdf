"""The picture of `speechzoo bench latency`: time to the first sound by chunk size, the paper's beside ours."""

from __future__ import annotations

from typing import Any

from speechzoo.evaluation.figures import BLUE, GREY, ORANGE, new_figure, png

THEIRS = "#8aa4c2"


def picture(result: dict[str, Any]) -> bytes:
    """A PNG of what `latency.report` returns: bars of LLM and vocoder time on a logarithmic axis, GPT-4o's as lines."""
    figure, (axis,) = new_figure(width=8.2, height=4.2, panels=1, dpi=130)
    names = list(result["omegas"])
    for place, name in enumerate(names):
        row = result["omegas"][name]
        theirs = result["paper_ms"][name]
        bars = [(0.2, theirs[2], theirs[0], THEIRS, "paper, L40")]
        if "first_audio" in row:
            ours = (1000 * row["first_audio"]["median"], 1000 * row["llm"]["median"])
            bars.append((-0.2, *ours, BLUE, f"ours, {result['device']}"))
            p95 = 1000 * row["first_audio"]["p95"]
            axis.plot([place - 0.2] * 2, [ours[0], p95], color=GREY, lw=1.2)
        for shift, whole, llm, color, label in bars:
            axis.bar(place + shift, whole, 0.38, color=ORANGE, label="vocoder" if not place and shift > 0 else None)
            axis.bar(place + shift, llm, 0.38, color=color, label=label if not place else None)
            axis.text(place + shift, whole, f"{whole:.0f}", ha="center", va="bottom", fontsize=7)
    for value, style in ((result["gpt4o_ms"]["least"], ":"), (result["gpt4o_ms"]["mean"], "--")):
        axis.axhline(value, color=GREY, lw=0.9, ls=style)
        axis.text(len(names) - 0.45, value, f"GPT-4o {value} ms", fontsize=7, color=GREY, va="bottom", ha="right")
    axis.set_yscale("log")
    axis.set_xticks(range(len(names)), [name if name == "offline" else f"Ω = {name}" for name in names])
    axis.set_ylabel("ms to the first sound")
    axis.set_title(
        f"{result['model']}: median of {result['questions']} questions, line to p95", fontsize=10, loc="left"
    )
    axis.legend(fontsize=8, frameon=False)
    return png(figure)
