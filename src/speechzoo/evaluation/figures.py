"""Pictures of the report as PNG bytes: loss curves and log-mel spectrograms; the same input gives the same bytes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from speechzoo.audio import HOP, SAMPLE_RATE, log_mel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN_COLUMNS = ("train/loss", "train/loss_step", "train_loss")
VAL_COLUMNS = ("val/loss", "val_loss")
BLUE, ORANGE, GREY = "#2563a8", "#d9601a", "#5b6470"

Curve = tuple[np.ndarray, np.ndarray]


def read_curve(files: Sequence[Path], columns: Sequence[str]) -> Curve:
    """Steps and values `[n]` of the first of `columns` that Lightning's `metrics.csv` files hold.

    A stage that was killed and continued has several files: rows that a later file repeats are taken from it. Half a
    row, which a killed process leaves at the end, is none.
    """
    points: dict[int, float] = {}
    for file in files:
        whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
        rows = list(csv.DictReader(whole.split("\n")))
        column = next((c for c in columns if rows and c in rows[0]), None)
        if column is None:  # the scores of a test, which continues nothing
            continue
        steps = [int(float(row["step"])) for row in rows]
        points = {step: value for step, value in points.items() if step < min(steps)}
        for step, row in zip(steps, rows, strict=True):
            if row[column] not in ("", None):
                points[step] = float(row[column])
    ordered = sorted(points)
    return np.array(ordered, dtype=int), np.array([points[s] for s in ordered], dtype=float)


def metrics_files(folder: Path) -> list[Path]:
    """Every `csv/version_N/metrics.csv` of a run folder, oldest first (a continued run writes a new one); folders of
    other names, such as a copy that somebody put there, are none."""
    found = {file.parent.name.removeprefix("version_"): file for file in folder.glob("csv/version_*/metrics.csv")}
    return [found[number] for number in sorted(filter(str.isdecimal, found), key=int)]


def plot_losses(stages: Sequence[tuple[str, Curve, Curve]]) -> bytes:
    """One panel per stage (name, training curve, validation curve), side by side."""
    figure, axes = new_figure(width=4.4 * max(len(stages), 1), height=2.9, panels=len(stages))
    for axis, (name, train, val) in zip(axes, stages, strict=True):
        if train[0].size:
            smooth = train[0].size >= 40
            axis.plot(*train, color=BLUE, lw=0.8 if smooth else 1.4, alpha=0.35 if smooth else 1)
            if smooth:
                axis.plot(train[0], running_mean(train[1]), color=BLUE, lw=1.6, label="train (running mean)")
            else:
                axis.lines[-1].set_label("train")
        if val[0].size:
            axis.plot(*val, color=ORANGE, lw=1.4, marker="o", ms=3.5, label="validation")
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlabel("optimiser step")
        axis.set_ylim(bottom=0)
        axis.grid(color="#e4e7eb", lw=0.7)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("loss per target")
    return png(figure)


def plot_mel(audio: torch.Tensor) -> bytes:
    """Whisper's log-mel (80 bands) of one clip `[T]` at 16 kHz."""
    mel, _ = log_mel(audio[None].float(), torch.tensor([audio.shape[0]]), 80, pad_to=None)
    figure, (axis,) = new_figure(width=5.6, height=1.75, panels=1, dpi=130)
    axis.imshow(
        mel[0].numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(0, mel.shape[-1] * HOP / SAMPLE_RATE, 0, 80),
    )
    axis.set_xlabel("seconds")
    axis.set_ylabel("mel band")
    axis.set_yticks([0, 40, 80])
    return png(figure)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a twentieth of the curve, three points at least, cut at its ends."""
    half = max(values.size // 40, 1)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    index = np.arange(values.size)
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    means: np.ndarray = (sums[last] - sums[first]) / (last - first)
    return means


def new_figure(width: float, height: float, panels: int, dpi: int = 170) -> tuple[Figure, Sequence[Any]]:
    """A figure with panels side by side (inches).

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the report's figures need matplotlib: pip install 'speechzoo[quickstart]'") from error

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")  # no pyplot: no global state, no display
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(panels, 1), squeeze=False)[0]
    for axis in axes:
        axis.tick_params(labelsize=8, colors=GREY)
        axis.xaxis.label.set(size=9, color=GREY)
        axis.yaxis.label.set(size=9, color=GREY)
        for side, spine in axis.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color("#b8c0cc")
    return figure, axes


def png(figure: Figure) -> bytes:
    """Its bytes; the same figure gives the same ones."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # no version string: same input, same bytes
    return buffer.getvalue()
