"""How natural speech sounds, as mean opinion scores (1 to 5) that networks predict from the sound alone."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor

from speechzoo.audio import SAMPLE_RATE, resample

UTMOS_FOLDER = "SPEECHZOO_UTMOS"
"""Environment variable: a folder with a copy of tarepan/SpeechMOS, for `UTMOS`."""


class SpeechQuality(Protocol):
    """A predictor of mean opinion scores. Scores of different predictors do not compare."""

    name: str

    def __call__(self, wave: Tensor, sample_rate: int) -> float:
        """The score of samples `[T]` at `sample_rate` Hz."""
        ...


class DistillMOS:
    """Distill-MOS (package `distillmos`, MIT, weights in the package). It is not UTMOS, which the paper reports.

    Install it with `pip install 'speechzoo[quality]'`. Its torchaudio is needed by its own command alone, so where no
    torchaudio fits the installed torch, `pip install --no-deps distillmos xls-r-sqa` does as well.

    Raises:
        ModuleNotFoundError: if it is not installed.
    """

    name = "Distill-MOS"

    def __init__(self) -> None:
        with _importable("torchaudio"), contextlib.redirect_stdout(io.StringIO()):  # it prints where its weights are
            self.model = importlib.import_module("distillmos").ConvTransformerSQAModel().eval()

    @torch.no_grad()
    def __call__(self, wave: Tensor, sample_rate: int) -> float:
        """See `SpeechQuality`.

        Raises:
            ValueError: for a sound that is empty, silent or not finite, of which any score would be made up.
        """
        return float(self.model(_heard(wave, sample_rate)[None]))


class UTMOS:
    """UTMOS (strong learner), as LLaMA-Omni's paper reports it, through a copy of tarepan/SpeechMOS.

    Args:
        folder: a clone of that repository. Its code fetches the weights on first use unless torch.hub holds them.

    Raises:
        FileNotFoundError: if there is no `hubconf.py`.
    """

    name = "UTMOS"

    def __init__(self, folder: str | Path) -> None:
        if not (Path(folder) / "hubconf.py").is_file():
            raise FileNotFoundError(f"{folder}: no hubconf.py; {UTMOS_FOLDER} has to name a clone of tarepan/SpeechMOS")
        self.model: Any = torch.hub.load(str(folder), "utmos22_strong", source="local")

    @torch.no_grad()
    def __call__(self, wave: Tensor, sample_rate: int) -> float:
        """See `SpeechQuality` and `DistillMOS`."""
        return float(self.model(_heard(wave, sample_rate)[None], SAMPLE_RATE))


def quality_scorers() -> list[SpeechQuality]:
    """What there is on this machine: Distill-MOS if installed, UTMOS if `$SPEECHZOO_UTMOS` names its folder."""
    scorers: list[SpeechQuality] = []
    with contextlib.suppress(ModuleNotFoundError):
        scorers.append(DistillMOS())
    if os.environ.get(UTMOS_FOLDER):
        scorers.append(UTMOS(os.environ[UTMOS_FOLDER]))
    return scorers


def _heard(wave: Tensor, sample_rate: int) -> Tensor:
    """The samples at 16 kHz. `[T]`"""
    if wave.ndim != 1:
        raise ValueError(f"one channel of samples is needed, [T], not {list(wave.shape)}")
    if not wave.numel() or not math.isfinite(peak := float(wave.abs().max())) or peak == 0:
        raise ValueError("a sound that is empty, silent or not finite has no quality")
    return torch.from_numpy(resample(wave.float().cpu().numpy(), sample_rate))


@contextlib.contextmanager
def _importable(name: str) -> Iterator[None]:
    """Let `import name` succeed for a moment, by an empty module where there is none that works."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError):  # OSError: built for another torch
        sys.modules[name] = ModuleType(name)
        try:
            yield
        finally:
            del sys.modules[name]
    else:
        yield
