"""Comparing our values with held ones: one row of the table per quantity."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from speechzoo.audio import log_mel
from speechzoo.system.files import read_json, without_nan

MEL, EMBEDS, LOGITS, UNIT_LOGITS, LOSS, GRADIENT, WAVE = 2e-5, 1e-5, 1e-4, 5e-4, 1e-5, 1e-3, 1e-5
CHAIN = 1e-4
"""Relative error of unit logits computed from the mel on: the decoder enlarges the rounding of its inputs, and the held
logits are themselves some 6e-4 (absolute) from what float64 gives."""

STEPPED = 1e-4
"""Relative error of losses after optimizer steps: the held gradients are themselves 7e-4 from what float64 gives, their
CTC having run in float32, and Adam makes whole steps of small differences."""


@dataclass
class Check:
    """One compared quantity."""

    quantity: str
    shape: list[int] | None
    max_abs: float | None
    relative: float | None  # norm of the difference over the norm of the held value
    tolerance: str
    ok: bool
    note: str = ""


class Golden:
    """The held values of a folder, and which of them were looked at.

    Raises:
        FileNotFoundError, ValueError: if the folder has no meta.json or golden.safetensors, or they are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = read_json(folder / "meta.json")
        files = sorted(folder.glob("golden*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{folder}: holds no golden.safetensors")
        self.tensors: dict[str, Tensor] = {}
        for file in files:
            try:
                self.tensors.update(load_file(file))
            except Exception as error:  # safetensors raises several kinds
                raise ValueError(f"{file}: damaged or no safetensors file ({error})") from error
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.seen.add(name)
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def names(self, prefix: str) -> list[str]:
        """Held names with a prefix, sorted."""
        return sorted(name for name in self.tensors if name.startswith(prefix))


class Checks:
    """Collects rows; a step that fails becomes a row, and the others go on."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.rows: list[Check] = []

    def close(
        self,
        name: str,
        ours: Tensor,
        theirs: Tensor,
        atol: float = 0.0,
        rtol: float = 0.0,
        where: Tensor | None = None,
        note: str = "",
    ) -> None:
        """Elementwise: |ours - theirs| <= atol + rtol |theirs|. `where` `[...]` leaves out padding."""
        ours, theirs = ours.detach().double(), theirs.detach().double()
        shape = list(theirs.shape)
        if ours.shape != theirs.shape:
            self._wrong_shape(name, ours, theirs)
            return
        if where is not None:
            ours, theirs = ours[where], theirs[where]
        gap = (ours - theirs).abs()
        ok = bool((gap <= atol + rtol * theirs.abs()).all()) and bool(torch.isfinite(gap).all())
        text = " + ".join([f"{atol:.0e}"] * (atol > 0) + [f"{rtol:.0e} rel"] * (rtol > 0))
        self.rows.append(Check(name, shape, _max(gap), _relative(gap, theirs), text, ok, note))

    def mel(self, name: str, wave: Tensor, n_mels: int, theirs: Tensor) -> None:
        """Log-mel of a clip `[1, T]`. The held one was computed in float32, where FFT kernels of different machines
        differ by some 4e-5, or in float64: the nearer of our two is compared."""
        found = []
        for kind in (torch.float64, torch.float32):
            ours = log_mel(wave, torch.tensor([wave.shape[1]]), n_mels, dtype=kind)[0]
            ours = ours if theirs.dim() == 3 else ours[0].T
            found.append((float((ours - theirs).abs().max()), str(kind).removeprefix("torch."), ours))
        _, dtype, ours = min(found, key=lambda item: item[0])
        self.close(name, ours, theirs, MEL, note=f"front end in {dtype}")

    def gradient(self, name: str, ours: Tensor | None, theirs: Tensor, tolerance: float = GRADIENT) -> None:
        """By norm: |ours - theirs| <= tolerance |theirs|."""
        ours = torch.zeros_like(theirs) if ours is None else ours.detach()
        if ours.shape != theirs.shape:
            self._wrong_shape(name, ours, theirs)
            return
        gap = (ours.double() - theirs.double()).abs()
        relative = _relative(gap, theirs.double())
        ok = relative <= tolerance
        self.rows.append(Check(name, list(theirs.shape), _max(gap), relative, f"{tolerance:.0e} rel of norm", ok))

    def norms(self, name: str, ours: dict[str, float], theirs: dict[str, float | None]) -> None:
        """Norms by name, 1e-3 relative each; None stands for no gradient. One row, with the worst of them."""
        missing = sorted(key for key, value in theirs.items() if value is not None and key not in ours)
        extra = sorted(key for key, value in ours.items() if value and theirs.get(key) is None)
        worst, gap, where = 0.0, 0.0, ""
        for key, value in theirs.items():
            if value is not None and key in ours:
                difference = abs(ours[key] - value)
                difference = math.inf if math.isnan(difference) else difference  # NaN would lose every comparison
                relative = difference / abs(value) if value else float(difference > 0)
                gap = max(gap, difference)
                if relative >= worst:
                    worst, where = relative, key
        note = f"worst: {where}" if where else ""
        if missing or extra:
            note = f"without gradient here: {missing[:3]}, there: {extra[:3]}"
        ok = worst <= GRADIENT and not missing and not extra
        self.rows.append(Check(name, [len(theirs)], gap, worst, f"{GRADIENT:.0e} rel each", ok, note))

    def equal(self, name: str, ours: Any, theirs: Any, where: Tensor | None = None, note: str = "") -> None:
        """Whole numbers (or other plain values), equal."""
        ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
        if ours.shape != theirs.shape:
            self._wrong_shape(name, ours, theirs)
            return
        shape = list(theirs.shape)
        if where is not None:
            ours, theirs = ours[where], theirs[where]
        gap = (ours.double() - theirs.double()).abs()
        self.rows.append(Check(name, shape, _max(gap), _relative(gap, theirs.double()), "equal", not gap.any(), note))

    def fail(self, name: str, note: str) -> None:
        """A row for a quantity that could not be computed."""
        self.rows.append(Check(name, None, None, None, "", False, note))

    def _wrong_shape(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        self.rows.append(Check(name, list(theirs.shape), None, None, "equal", False, f"shape here: {list(ours.shape)}"))

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A group of rows; an exception in it becomes a row that failed."""
        try:
            yield
        except Exception as error:  # whatever it is, the other quantities are still of interest
            text = " ".join(str(error).split())[:200]
            self.fail(name, f"{type(error).__name__}: {text}")

    def close_book(self) -> None:
        """A failed row for each held tensor that nothing compared or used."""
        for name in sorted(set(self.golden.tensors) - self.golden.seen):
            self.rows.append(
                Check(name, list(self.golden.tensors[name].shape), None, None, "", False, "held, but not compared")
            )

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    def as_json(self, system: str) -> str:
        """All rows and the verdict; null for numbers that are not finite."""
        rows = [asdict(row) for row in self.rows]
        data = without_nan({"system": system, "folder": str(self.golden.folder), "ok": self.ok, "checks": rows})
        return json.dumps(data, indent=2) + "\n"


def set_learning(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Gradients for the parameters whose names begin so, and none left over."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(parts))
        parameter.grad = None


def _max(gap: Tensor) -> float:
    return float(gap.max()) if gap.numel() else 0.0


def _relative(gap: Tensor, theirs: Tensor) -> float:
    norm = float(theirs.norm())
    return float(gap.norm()) / norm if norm else float(gap.norm())
