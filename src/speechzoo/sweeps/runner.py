"""Runs the trials of a sweep on this machine, one after the other or several at a time on their own devices."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from speechzoo.sweeps.file import SweepFile, Values
from speechzoo.sweeps.search import drawn, searched
from speechzoo.sweeps.state import SweepState, Trial
from speechzoo.sweeps.trial import (
    Launch,
    architecture,
    end,
    is_alive,
    last_values,
    launch,
    run_arguments,
    wandb_environment,
)
from speechzoo.system.terminal import last_lines

TAIL = 12  # lines of stderr kept for a failed trial


class Runner:
    """A sweep in a folder; `run` does what is not done yet.

    Trials that finished or failed are left alone; one that was interrupted goes on from its last checkpoint.

    Args:
        sweep: what to try.
        folder: of the sweep; each trial has its run folder `trial_NNN` in it.
        count: most trials in all; the file's `run_cap` and the size of a grid limit them too.
        seed: of random and bayes.
        devices: ids of the accelerators that trials share (`CUDA_VISIBLE_DEVICES`); none = what the recipe says,
            one trial at a time.
        per_trial: accelerators of one trial (`--trainer.devices`).
        retry_failed: run failed trials again.
        start: runs a command; exchanged in tests.

    Raises:
        ValueError: if nothing limits the number of trials, or it is below 1; if `devices` cannot be shared out.
    """

    def __init__(
        self,
        sweep: SweepFile,
        folder: Path,
        count: int | None = None,
        seed: int = 0,
        devices: Sequence[str] = (),
        per_trial: int = 1,
        retry_failed: bool = False,
        start: Launch = launch,
    ) -> None:
        limits = [limit for limit in (count, sweep.run_cap) if limit is not None]
        self.grid = sweep.grid() if sweep.method == "grid" else []
        if sweep.method == "grid":
            limits.append(len(self.grid))
        if not limits:
            raise ValueError(f"{sweep.path}: method {sweep.method} never ends: give --count, or run_cap in the file")
        if count is not None and count < 1:
            raise ValueError(f"--count {count} is no number of trials")
        if not all(device.strip() for device in devices):  # an empty CUDA_VISIBLE_DEVICES hides all of them
            raise ValueError(f"--devices {','.join(devices)!r}: name GPU ids, such as 0,1, or leave it out")
        if per_trial < 1 or max(1, len(devices)) < per_trial:
            raise ValueError(f"--per-trial {per_trial} does not go with {len(devices)} devices")
        self.total = min(limits)
        self.sweep, self.folder, self.retry_failed, self.start = sweep, folder, retry_failed, start
        self.slots = [list(devices[i : i + per_trial]) for i in range(0, len(devices) - per_trial + 1, per_trial)] or [
            []
        ]
        self.state = SweepState(folder, {"sweep": sweep.content, "seed": seed if sweep.method != "grid" else 0})
        self.seed = seed
        self._stop = False

    def run(self, changed: Callable[[], None] = lambda: None) -> list[Trial]:
        """Run all trials that are left; `changed` is called whenever one changes. Returns all trials.

        Raises:
            ValueError: if a trial of an earlier, killed sweep still runs.
        """
        self._take_over()
        free = list(range(len(self.slots)))
        running: dict[Future[None], int] = {}
        pool = ThreadPoolExecutor(len(self.slots))
        try:
            while True:
                while free and (trial := self._next()) is not None:
                    slot = free.pop(0)
                    trial.state = "running"
                    running[pool.submit(self._run_one, trial, self.slots[slot], changed)] = slot
                if not running:
                    return self.state.trials
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    free.append(running.pop(future))
                    future.result()
        finally:
            self._stop = True
            pool.shutdown(wait=False, cancel_futures=True)
            while left := [future for future in running if not future.done()]:
                for trial in self.state.trials:
                    if trial.state == "running" and trial.pid is not None:
                        end(trial.pid)
                wait(left, timeout=0.05)  # then again: a process may only just have been started

    def plan(self) -> list[list[str]]:
        """The command lines of the trials that are left, without running any.

        Raises:
            ValueError: for method bayes, whose settings depend on results.
        """
        if self.sweep.method == "bayes":
            raise ValueError(f"{self.sweep.path}: what bayes tries depends on results, so there is no list of commands")
        done = ["finished"] if self.retry_failed else ["finished", "failed"]
        trials, commands = list(self.state.trials), []
        for number in range(self.total):
            if number == len(trials):
                trials.append(Trial(number, self._propose(trials)))
            if trials[number].state not in done:
                commands.append(self._command(trials[number], self.slots[0]))
        return commands

    def _take_over(self) -> None:
        for trial in self.state.trials:
            if trial.state == "running":
                if is_alive(trial.pid, self.folder / trial.name):
                    raise ValueError(
                        f"{trial.name} of a sweep that was killed still runs as process {trial.pid}: "
                        "end it, or wait for it, then start again"
                    )
                trial.state, trial.pid = "waiting", None
            elif trial.state == "failed" and self.retry_failed:
                trial.state = "waiting"
        self.state.save()

    def _next(self) -> Trial | None:
        for trial in self.state.trials:
            if trial.state == "waiting":
                return trial
        if len(self.state.trials) >= self.total or self._reached():
            return None
        if self.sweep.method == "bayes":
            self._check_metric()
        return self.state.add(self._propose(self.state.trials))

    def _propose(self, trials: Sequence[Trial]) -> Values:
        """The setting of trial number `len(trials)`."""
        if self.sweep.method == "grid":
            return self.grid[len(trials)]
        if self.sweep.method == "random":
            return drawn(self.sweep, self.seed, len(trials))
        return searched(self.sweep, self.seed, trials)

    def _reached(self) -> bool:
        """Whether a trial has reached the sweep's `metric.target`."""
        sign, target = -1 if self.sweep.goal == "maximize" else 1, self.sweep.target
        metrics = [trial.metric for trial in self.state.trials if trial.metric is not None]
        return target is not None and any(sign * metric <= sign * target for metric in metrics)

    def _check_metric(self) -> None:
        """A search whose metric no trial logs would draw at random and say nothing.

        Raises:
            ValueError: naming the first trial without it.
        """
        for trial in self.state.trials:
            if trial.state == "finished" and trial.metric is None:
                logged = last_values(self.folder / trial.name)
                if self.sweep.metric not in logged:
                    there = ", ".join(sorted(logged)) or "nothing that can be read: it takes a CSVLogger named csv"
                    raise ValueError(
                        f"{trial.name} finished, and logged no {self.sweep.metric}, which metric.name in "
                        f"{self.sweep.path} asks for; it logged {there}"
                    )

    def _command(self, trial: Trial, devices: Sequence[str]) -> list[str]:
        command = self.sweep.command_line(trial.values)
        trial.tags = architecture(command)
        name = f"{self.sweep.name}-{trial.number:03d}"
        group, place = self.sweep.name, self.sweep.place
        command += run_arguments(command, self.folder / trial.name, name, group, trial.tags, place)
        return command + ([f"--trainer.devices={len(devices)}"] if devices else [])

    def _run_one(self, trial: Trial, devices: Sequence[str], changed: Callable[[], None]) -> None:
        folder = self.folder / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        trial.command = self._command(trial, devices)
        trial.attempts += 1
        trial.exit_code, trial.error = None, ""
        environment = {**os.environ, **self._wandb(trial)}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        self.state.save()
        changed()

        def started(pid: int) -> None:
            trial.pid = pid
            self.state.save()

        log = folder / "stderr.log"
        written = log.stat().st_size if log.is_file() else 0  # by earlier attempts
        begin = time.monotonic()
        trial.exit_code = self.start(trial.command, environment, folder, started)
        trial.seconds += time.monotonic() - begin
        if self._stop and trial.exit_code != 0:  # ended because the sweep was: it goes on from its checkpoint next time
            return
        trial.pid = None
        trial.state = "finished" if trial.exit_code == 0 else "failed"
        trial.error = "" if trial.exit_code == 0 else last_lines(log, TAIL, written)
        value = float(last_values(folder).get(self.sweep.metric or "", "nan"))
        trial.metric = value if math.isfinite(value) else None
        self.state.save()
        changed()

    def _wandb(self, trial: Trial) -> dict[str, str]:
        # The folder is part of the id: the same sweep run twice makes different runs in W&B.
        mark = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:8]
        name = f"{self.sweep.name}-{trial.number:03d}"
        return wandb_environment(f"{mark}-{trial.number:03d}", name, self.sweep.name, trial.tags, self.sweep.place)
