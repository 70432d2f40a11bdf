"""`speechzoo data ... --ray N`: the data set of one process, byte by byte; what fails is named and the rest is kept."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from corpus_files import librispeech, write

from speechzoo.cli.data import main, without_option


@pytest.mark.parametrize("given", [["--ray", "4"], ["--ray=4"]])
def test_the_option_and_its_value_are_taken_out(given: list[str]) -> None:
    assert without_option(["asr", "out", *given, "a=b", "--lower"], "--ray") == ["asr", "out", "a=b", "--lower"]


@pytest.mark.parametrize("given", [["--ray=0"], ["--ray=2", "--shard=0/2"]])
def test_a_number_that_makes_no_sense_is_refused(given: list[str], tmp_path: Path, capsys) -> None:
    assert main(["asr", str(tmp_path / "out"), f"librispeech={librispeech(tmp_path)}", *given]) == 1
    assert "a number of shards, at least 1, without --shard" in capsys.readouterr().err


def test_without_ray_one_line_says_what_to_install(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["asr", str(tmp_path / "out"), f"librispeech={librispeech(tmp_path)}", "--ray=2"]) == 1
    assert "pip install 'speechzoo[ray]'" in capsys.readouterr().err


@pytest.mark.real
def test_shards_on_ray_make_what_one_process_makes(tmp_path: Path, capsys, monkeypatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)  # relative paths mean the same to the tasks
    librispeech(Path("corpus"))
    command = ["librispeech=corpus/LibriSpeech", "--lower"]
    assert main(["asr", "alone", *command]) == 0
    # a shard that fails is named, the others are finished, and the same command does it again
    blocked = write(tmp_path / "together" / "clips" / "00001-of-00003", "in the way")
    assert main(["asr", "together", *command, "--ray", "3"]) == 1
    assert "1 of 3 shards failed (1/3: " in capsys.readouterr().err
    assert Path("together/clips/00000-of-00003/done.json").is_file()
    blocked.unlink()
    assert main(["asr", "together", *command, "--ray", "3"]) == 0
    for name in ("data.jsonl", "broken.jsonl"):
        assert Path("together", name).read_bytes() == Path("alone", name).read_bytes()
    assert "--ray" not in Path("together/README.md").read_text()
