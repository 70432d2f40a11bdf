"""Steps and remaining time of a whole stage, and plain lines where there is no terminal."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace

import pytest
from tiny_module import TinyModule, loader

from speechzoo.callbacks import StageProgress
from speechzoo.callbacks.progress import stage_steps


def test_remaining_time_is_of_the_stage_and_ignores_steps_before_a_resume(make_trainer):
    trainer = make_trainer(max_steps=400, max_epochs=-1)
    bar = StageProgress("llasm pretrain")
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 120
    assert trainer.global_step == 120
    bar._started = time.monotonic() - 20, 100  # 20 steps in 20 s
    assert bar.remaining(trainer) == pytest.approx(280, rel=0.02)
    assert re.fullmatch(r"120/400 steps, 0:04:(39|4\d) left", bar.describe(trainer))


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "batches", "accumulate", "expected"),
    [
        (100, -1, 10, 1, 100),
        (100, 3, 10, 1, 30),
        (-1, 3, 10, 4, 9),
        (-1, -1, 10, 1, None),
        (-1, 2, float("inf"), 1, None),
    ],
)
def test_stage_steps(max_steps, max_epochs, batches, accumulate, expected):
    trainer = SimpleNamespace(
        max_steps=max_steps, max_epochs=max_epochs, num_training_batches=batches, accumulate_grad_batches=accumulate
    )
    assert stage_steps(trainer) == expected


def test_lines_where_the_output_is_no_terminal(make_trainer, capsys):
    bar = StageProgress("tiny", line_every=0.25)
    make_trainer(callbacks=[bar], max_epochs=2, enable_progress_bar=True).fit(TinyModule(), loader(4), loader(1))
    lines = [line for line in capsys.readouterr().out.splitlines() if re.match(r"tiny \d+/8 steps", line)]
    assert [line.split()[1] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
    assert all(re.search(r"steps, \d:\d\d:\d\d left", line) for line in lines)


def test_wrong_share_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        StageProgress(line_every=10)
