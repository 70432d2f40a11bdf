"""A run killed at random moments ends with the bits of the unbroken one; `benchmarks/reliability.py` kills 20 times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "reliability.py"


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    """Weights, Adam's moments, schedule and the loss of every micro-batch, also of those computed twice."""
    command = [sys.executable, SCRIPT, "--kills", "3", "--steps", "10", "--seed", "1", "--json", tmp_path / "r.json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (tmp_path / "r.json").exists(), done.stderr
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["equal"] == {"weights": True, "moments": True, "schedule": True, "losses": True}
    assert done.returncode == 0 and len(told["in_micro_batch"]) == 3
