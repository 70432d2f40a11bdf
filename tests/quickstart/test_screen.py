"""What is seen while stages run: a live line for each on a terminal, a line at its end where there is none."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from speechzoo.quickstart import pipeline
from speechzoo.quickstart.pipeline import TITLES, Quickstart
from speechzoo.quickstart.scale import DEFAULT
from speechzoo.quickstart.screen import Counter, Screen
from speechzoo.system.terminal import last_lines

LINES = [
    (b"", ""),
    (b"one\ntwo\n\n", "two"),
    (b"states:  10%\rstates: 100%\r\n", "states: 100%"),
    (b"\x1b[1mstep 3\x1b[0m\x1b[2K  \n", "step 3"),
    (b"x" * 5000 + b"\nlast \xff\n", "last \ufffd"),
]


@pytest.mark.parametrize(("written", "seen"), LINES)
def test_the_last_line_as_a_terminal_would_show_it(tmp_path: Path, written: bytes, seen: str) -> None:
    assert last_lines(tmp_path / "none.log") == ""
    (tmp_path / "a.log").write_bytes(written)
    assert last_lines(tmp_path / "a.log") == seen


def test_what_a_stage_says_is_no_markup(tmp_path: Path) -> None:
    screen = Screen(Console(file=io.StringIO(), width=200, force_terminal=True), tmp_path)
    screen.log("parts").write_text("loading [/tmp/llm] [bold]\n")
    with screen.shown("parts", "Parts"):
        screen.console.print(screen.table())
    assert "loading [/tmp/llm] [bold]" in screen.console.file.getvalue()


def test_all_that_a_process_writes_goes_to_its_log(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from speechzoo.quickstart.screen import write_into\n"
        "write_into(Path(sys.argv[1]))\n"
        "print('printed', flush=True); print('complained', file=sys.stderr); os.system('echo of a child')"
    )
    log = tmp_path / "logs" / "a.log"
    for _ in range(2):  # a second try is added to the first
        ended = subprocess.run([sys.executable, "-c", code, log], capture_output=True, text=True, check=True)
        assert ended.stdout == ended.stderr == ""
    assert log.read_text() == "printed\ncomplained\nof a child\n" * 2


def test_without_a_terminal_counts_are_a_line_each_twentieth() -> None:
    file = io.StringIO()
    with Counter(Console(file=file, width=80)) as counter:
        task = counter.add_task("speaking", total=None)
        for done in range(1, 1001):
            counter.update(task, completed=done, total=1000)
    assert file.getvalue().splitlines() == [f"speaking {done}/1000" for done in range(50, 1001, 50)]


def run(folder: Path, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quickstart whose lanes do nothing but say something at the same time."""
    both = threading.Barrier(2, timeout=10)

    def run_apart(work, out, scale, seed, threads, log, method, *args) -> None:
        assert (log is None) == (method == "fetch_parts")
        if method != "train":
            return
        log.parent.mkdir(exist_ok=True)
        log.write_text(f"{args[0]} 7/450 steps\n")
        if args[0] in ("llasm_finetune", "llama_omni_stage1"):
            both.wait()
            live = quickstart.screen.table()
            assert {f"{name} 7/450 steps" for name in ("llasm_finetune", "llama_omni_stage1")} <= set(
                live.columns[2].cells
            )
            both.wait()

    monkeypatch.setattr(pipeline, "run_apart", run_apart)
    quickstart = Quickstart(folder, DEFAULT, 0, console)
    quickstart.run()


def test_one_line_a_stage_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    run(tmp_path, Console(file=file, width=200), monkeypatch)
    stages = ["parts", "corpus", "units", *(stage for lane in DEFAULT.lanes for stage in lane), "speech", "report"]
    assert sorted(file.getvalue().splitlines()) == sorted(f"✓ {TITLES[name]} (0 s)" for name in stages)


def test_one_live_display_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    run(tmp_path, Console(file=file, width=200, force_terminal=True, color_system=None), monkeypatch)
    shown = file.getvalue()
    assert f"✓ {TITLES['report']} (0 s)" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # one display, and the cursor is back


def test_a_failed_stage_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_apart(work, out, scale, seed, threads, log, method, *args) -> None:
        if log is not None:
            log.parent.mkdir(exist_ok=True)
            log.write_text("why\n")
            raise ValueError("no room on the disk")

    file = io.StringIO()
    monkeypatch.setattr(pipeline, "run_apart", run_apart)
    with pytest.raises(ValueError, match="no room"):
        Quickstart(tmp_path, DEFAULT, 0, Console(file=file, width=200)).run()
    assert f"what corpus said: {tmp_path / 'logs' / 'corpus.log'}" in file.getvalue()
    assert Screen(Console(), tmp_path / "logs").log("corpus").read_text() == "why\n"
