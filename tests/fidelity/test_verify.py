"""`speechzoo verify` on the official code's values, and on values that were tampered with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from speechzoo.cli import main
from speechzoo.fidelity.checks import Checks

ROOT = Path(os.environ.get("SPEECHZOO_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))


def need(name: str) -> Path:
    if not (ROOT / name / "golden.safetensors").is_file():
        pytest.skip(f"no golden data in {ROOT / name} (set SPEECHZOO_GOLDEN)")
    return ROOT / name


@pytest.mark.parametrize("name", ["llama_omni", "llasm"])
def test_every_quantity_holds(name, tmp_path, capsys):
    folder = need(name)
    code = main(["verify", str(folder), "--json", str(tmp_path / "table.json")])
    table = json.loads((tmp_path / "table.json").read_text())
    assert [row for row in table["checks"] if not row["ok"]] == [] and table["ok"]
    assert code == 0 and len(table["checks"]) > 70
    assert "NO" not in capsys.readouterr().out.replace("NOT", "")


def test_a_changed_value_and_an_unknown_one_fail(tmp_path, capsys):
    folder = shutil.copytree(need("llasm"), tmp_path / "golden")
    values = load_file(folder / "golden.safetensors")
    values["asr.logits"][0, 5, 7] += 1e-3
    values["never.heard.of"] = values["asr.loss"].clone()
    save_file(values, folder / "golden.safetensors")
    assert main(["verify", str(folder), "--json", str(tmp_path / "table.json")]) == 1
    table = json.loads((tmp_path / "table.json").read_text())
    wrong = {row["quantity"]: row for row in table["checks"] if not row["ok"]}
    assert set(wrong) == {"asr.logits", "never.heard.of"}
    assert wrong["asr.logits"]["max_abs"] == pytest.approx(1e-3, rel=0.05)
    assert wrong["never.heard.of"]["note"] == "held, but not compared"


def test_another_precision_moves_numbers_but_breaks_no_step(tmp_path):
    folder = need("llasm")
    assert main(["verify", str(folder), "--dtype", "bfloat16", "--json", str(tmp_path / "table.json")]) == 1
    rows = {row["quantity"]: row for row in json.loads((tmp_path / "table.json").read_text())["checks"]}
    assert 1e-3 < rows["asr.logits"]["relative"] < 5e-2
    assert not any("Error" in (row["note"] or "") or "not compared" in (row["note"] or "") for row in rows.values())
    assert main(["verify", str(folder), "--attention", "eager"]) == 0


def test_a_norm_that_is_no_number_fails():
    checks = Checks(golden=None)
    for ours in (1.0, float("nan")):
        checks.norms("grad", {"a": ours, "b": 2.0}, {"a": 1.0, "b": 2.0})
    assert [row.ok for row in checks.rows] == [True, False]
    assert checks.rows[1].note == "worst: a"
    checks.golden = SimpleNamespace(folder=Path("golden"))
    assert [row["max_abs"] for row in json.loads(checks.as_json("llasm"))["checks"]] == [0.0, None]
    assert "Infinity" not in checks.as_json("llasm")


@pytest.mark.parametrize("damage", ["meta", "values", "checkpoint", "all"])
def test_damaged_folder_is_one_line(tmp_path, capsys, damage):
    folder = tmp_path / "golden"
    if damage != "all":
        shutil.copytree(need("llasm"), folder)
    if damage == "meta":
        (folder / "meta.json").unlink()
    elif damage == "values":
        file = folder / "golden.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "checkpoint":
        file = folder / "checkpoint" / "pytorch_model.bin"
        file.write_bytes(file.read_bytes()[:1000])
    assert main(["verify", str(folder)]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("speechzoo: ")
