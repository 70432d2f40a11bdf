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
    out = capsys.readouterr().out
    assert "\u2501" not in out and "epoch" not in out  # no bar's last frame
    lines = [line for line in out.splitlines() if re.match(r"tiny \d+/8 steps", line)]
    assert [line.split()[1] for line in lines] == ["2/8", "4/8", "6/8", "8/8"]
    assert all(re.search(r"steps, \d:\d\d:\d\d left", line) for line in lines)


def test_wrong_share_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        StageProgress(line_every=10)


class Bars(StageProgress):
    """Notes what the training bar shows after each batch, (epoch, batches, of), as on a terminal."""

    on_screen = True

    def __init__(self) -> None:
        super().__init__("tiny")
        self.seen: list[tuple[int, float, float]] = []

    def on_train_batch_end(self, trainer, *args) -> None:
        super().on_train_batch_end(trainer, *args)
        self.seen.append((trainer.current_epoch, self.train_progress_bar.completed, self.train_progress_bar.total))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("validate_every", [1.0, 2])
def test_the_bar_never_passes_its_end_and_reaches_it(make_trainer, accumulate, max_steps, validate_every) -> None:
    """Epochs of 5 batches; the last batch of each makes a step, also of an incomplete window."""
    bars = Bars()
    settings = {"accumulate_grad_batches": accumulate, "val_check_interval": validate_every}
    trainer = make_trainer(
        callbacks=[bars],
        max_steps=max_steps,
        max_epochs=-1,
        enable_progress_bar=True,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(TinyModule(), loader(5), loader(1))
    assert trainer.global_step == max_steps
    assert all(done <= of for _, done, of in bars.seen)
    ends = {epoch: (done, of) for epoch, done, of in bars.seen}
    per_epoch = -(-5 // accumulate)
    rest = max_steps % per_epoch
    last = min(5, rest * accumulate) if rest else 5
    *whole, end = ends.values()
    assert whole == [(5, 5)] * (-(-max_steps // per_epoch) - 1) and end == (last, last)


@pytest.mark.parametrize(("accumulate", "first"), [(1, 3), (2, 1), (2, 2)])
def test_the_bar_of_a_run_resumed_inside_an_epoch(make_trainer, tmp_path, accumulate, first) -> None:
    def run(steps: int, path=None) -> Bars:
        bars = Bars()
        trainer = make_trainer(
            callbacks=[bars], max_steps=steps, max_epochs=-1, enable_progress_bar=True, enable_checkpointing=True,
            accumulate_grad_batches=accumulate, limit_val_batches=0,
        )  # fmt: skip
        trainer.fit(TinyModule(), loader(8), ckpt_path=path)
        trainer.save_checkpoint(tmp_path / "held.ckpt")
        return bars

    before = run(first)
    assert before.seen[-1] == (0, first * accumulate, first * accumulate)
    after = run(first + 2, tmp_path / "held.ckpt")
    want = (first + 2) * accumulate
    assert after.seen[0][1] == first * accumulate + 1
    assert [(done, of) for _, done, of in after.seen][-1] == (want, want)
    assert all(done <= of for _, done, of in after.seen)
