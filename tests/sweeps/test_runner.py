"""Running a sweep: what is recorded, what is done again, what a trial is given."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from speechzoo.cli.sweep import main
from speechzoo.sweeps import Runner, load_sweep
from speechzoo.sweeps.show import trial_table
from speechzoo.sweeps.trial import is_alive, launch


def states(folder: Path) -> list[str]:
    return [trial["state"] for trial in json.loads((folder / "sweep.json").read_text())["trials"]]


def test_a_failing_trial_is_recorded_and_the_others_run(write, player, tmp_path: Path) -> None:
    out, play = tmp_path / "out", player(fail=[1])
    trials = Runner(load_sweep(write()), out, start=play).run()
    assert states(out) == ["finished", "failed"] + ["finished"] * 4
    assert trials[1].exit_code == 3 and trials[1].error.splitlines() == [f"line {i}" for i in range(28, 40)]
    assert [trial.metric for trial in trials] == [0.5, None, 2.5, 3.5, 4.5, 5.5]  # the last value, as W&B's summary

    again = player()
    Runner(load_sweep(write()), out, start=again).run()
    assert again.commands == []

    def other(command, environment, folder, started) -> int:
        with (folder / "stderr.log").open("a") as log:
            log.write("\nanother reason\n")
        return 4

    Runner(load_sweep(write()), out, retry_failed=True, start=other).run()
    (failed,) = [t for t in json.loads((out / "sweep.json").read_text())["trials"] if t["state"] == "failed"]
    assert (failed["exit_code"], failed["error"]) == (4, "another reason")  # of the last attempt alone
    assert Runner(load_sweep(write()), out).plan() == []
    assert len(Runner(load_sweep(write()), out, retry_failed=True).plan()) == 1
    Runner(load_sweep(write()), out, retry_failed=True, start=again).run()
    assert len(again.commands) == 1 and "trial_001" in " ".join(again.commands[0])
    assert states(out) == ["finished"] * 6


def test_a_sweep_may_get_more_trials_and_another_name(write, player, tmp_path: Path) -> None:
    out, more = tmp_path / "out", player()
    Runner(load_sweep(write(run_cap=2)), out, start=player()).run()
    Runner(load_sweep(write(run_cap=3, name="larger")), out, start=more).run()
    assert states(out) == ["finished"] * 3 and len(more.commands) == 1
    with pytest.raises(ValueError, match="holds a sweep whose sweep differ"):
        Runner(load_sweep(write(run_cap=3, metric={"name": "val/wer", "goal": "minimize"})), out)


def test_an_interrupted_sweep_goes_on_with_the_half_done_trial(write, player, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        Runner(load_sweep(write()), out, start=player(interrupt=[2])).run()
    assert states(out) == ["finished", "finished", "running"]
    rest = player()
    trials = Runner(load_sweep(write()), out, start=rest).run()
    assert [f"--ckpt_path={out}/trial_002/last.ckpt" in command for command in rest.commands] == [True] + [False] * 3
    assert [trial.attempts for trial in trials] == [1, 1, 2, 1, 1, 1]
    assert len({environment["WANDB_RUN_ID"] for environment in rest.environments}) == 4


def test_whatever_a_killed_trial_left_it_can_begin_again(write, player, tmp_path: Path) -> None:
    """`fit` refuses a folder that holds checkpoints, unless it is told to continue or to begin anew."""
    sweep, out = load_sweep(write()), tmp_path / "out"
    (out / "trial_000" / "last.ckpt").mkdir(parents=True)  # a folder of shards
    (out / "trial_001").mkdir()
    (out / "trial_001" / "best.ckpt").touch()
    commands = Runner(sweep, out).plan()
    assert f"--ckpt_path={out}/trial_000/last.ckpt" in commands[0] and "--overwrite=true" in commands[1]
    assert not any(word.startswith(("--ckpt_path", "--overwrite")) for word in commands[2])


def test_a_folder_belongs_to_one_sweep(write, player, tmp_path: Path) -> None:
    Runner(load_sweep(write()), tmp_path / "out", count=1, start=player()).run()
    other = write(parameters={"lr": {"values": [1]}})
    with pytest.raises(ValueError, match="sweep differ"):
        Runner(load_sweep(other), tmp_path / "out")


def test_count_and_run_cap_limit_the_trials(write, player, tmp_path: Path) -> None:
    assert len(Runner(load_sweep(write()), tmp_path / "a", count=2, start=player()).run()) == 2
    assert len(Runner(load_sweep(write(run_cap=3)), tmp_path / "b", count=5, start=player()).run()) == 3
    endless = load_sweep(write(method="random"))
    with pytest.raises(ValueError, match="never ends: give --count"):
        Runner(endless, tmp_path / "c")
    with pytest.raises(ValueError, match="--count 0 is no number of trials"):
        Runner(endless, tmp_path / "c", count=0)


def test_no_trial_is_begun_once_the_target_is_reached(write, player, tmp_path: Path) -> None:
    """Trial n of the player ends with n.5; they are as many whatever starts the sweep again."""
    for goal, target, number in (("maximize", 2.5, 3), ("minimize", 0.5, 1), ("minimize", 0.4, 6), ("maximize", 9, 6)):
        sweep = load_sweep(write(metric={"name": "val/loss", "goal": goal, "target": target}))
        for _ in range(2):
            trials = Runner(sweep, tmp_path / f"{goal}{target}", start=player()).run()
            assert [trial.metric for trial in trials] == [n + 0.5 for n in range(number)]


def test_a_trial_gets_its_folder_and_its_place_in_wandb(write, player, tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    loggers = [{"class_path": "CSVLogger"}, {"class_path": "lightning.pytorch.loggers.WandbLogger"}]
    model = {"class_path": "speechzoo.models.LLaSM", "init_args": {"adaptor": {"class_path": "Linear"}}}
    config.write_text(yaml.safe_dump({"model": model, "trainer": {"logger": loggers}}))
    parameters = {"config": {"value": str(config)}, "model.init_args.adaptor": {"values": ["Linear", "ConcatMLP"]}}
    play = player()
    place = {"project": "our sweeps", "entity": "us"}
    Runner(load_sweep(write(parameters=parameters, **place)), tmp_path / "out", start=play).run()
    first, second = play.commands
    for argument in (
        "--name=small-001",
        f"--trainer.default_root_dir={tmp_path}/out/trial_001",
        "--trainer.logger.init_args.group=small",
        "--trainer.logger.init_args.tags=['LLaSM', 'ConcatMLP']",
        "--trainer.logger.init_args.project=our sweeps",
        "--trainer.logger.init_args.entity=us",
    ):
        assert argument in second
    assert "--trainer.logger.init_args.tags=['LLaSM', 'Linear']" in first
    one, two = play.environments
    assert one["WANDB_RUN_GROUP"] == two["WANDB_RUN_GROUP"] == "small" and one["WANDB_TAGS"] == "LLaSM,Linear"
    assert one["WANDB_RUN_ID"] != two["WANDB_RUN_ID"]
    assert two["WANDB_PROJECT"] == "our sweeps" and two["WANDB_ENTITY"] == "us"

    play = player()
    Runner(load_sweep(write(parameters=parameters)), tmp_path / "other", start=play).run()  # names neither
    assert not any("project" in word or "entity" in word for command in play.commands for word in command)


def test_trials_share_out_the_devices(write, tmp_path: Path) -> None:
    seen, both = [], threading.Barrier(2, timeout=60)  # breaks unless two trials run at a time

    def start(command, environment, folder, started) -> int:
        both.wait()
        seen.append((environment["CUDA_VISIBLE_DEVICES"], command[-1]))
        both.wait()
        return 0

    Runner(load_sweep(write()), tmp_path / "out", devices=list("01234"), per_trial=2, start=start).run()
    assert {devices for devices, _ in seen} == {"0,1", "2,3"} and len(seen) == 6
    assert {argument for _, argument in seen} == {"--trainer.devices=2"}
    assert all({a, b} == {"0,1", "2,3"} for (a, _), (b, _) in zip(seen[::2], seen[1::2], strict=True))
    with pytest.raises(ValueError, match="does not go with"):
        Runner(load_sweep(write()), tmp_path / "x", devices=["0"], per_trial=2)


def test_dry_run_prints_the_commands_and_writes_nothing(write, tmp_path: Path, capsys) -> None:
    assert main([str(write()), "--out", str(tmp_path / "out"), "--dry-run", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "--config=a.yaml --model.lr=0.1" in lines[0] and "fit" in lines[1].split()
    assert not (tmp_path / "out").exists()
    assert main([str(tmp_path / "none.yaml")]) == 1 and "no such sweep file" in capsys.readouterr().err


SLEEPER = """import sys, time
print("err", file=sys.stderr, flush=True)
time.sleep(float(sys.argv[1]))"""


def test_interrupting_ends_the_processes_of_trials(write, tmp_path: Path, request) -> None:
    """A real process: ended with the sweep, its output kept, its trial open."""

    def start(command, environment, folder, started) -> int:
        return launch([sys.executable, "-c", SLEEPER, "60", str(folder)], environment, folder, started)

    runner = Runner(load_sweep(write()), tmp_path / "out", start=start)
    log = tmp_path / "out" / "trial_000" / "stderr.log"

    def interrupt() -> None:
        while not log.is_file() or not log.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    (trial,) = runner.state.trials
    assert trial.state == "running" and trial.exit_code == -signal.SIGTERM
    assert not is_alive(trial.pid, tmp_path / "out" / "trial_000")


def test_a_trial_left_alive_by_a_killed_sweep_is_not_started_twice(write, player, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        Runner(load_sweep(write()), out, start=player(interrupt=[0])).run()
    left = subprocess.Popen([sys.executable, "-c", SLEEPER, "60", str(out / "trial_000")], stdout=-3, stderr=-3)
    try:
        state = json.loads((out / "sweep.json").read_text())
        state["trials"][0]["pid"] = left.pid
        (out / "sweep.json").write_text(json.dumps(state))
        with pytest.raises(ValueError, match=f"still runs as process {left.pid}"):
            Runner(load_sweep(write()), out, start=player()).run()
    finally:
        left.kill()
        left.wait()
    assert len(Runner(load_sweep(write()), out, start=player()).run()) == 6


HOLD = """
import sys, time
from speechzoo.system.locks import claim
held = claim(sys.argv[1], "speechzoo sweep")
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_sweep_in_one_folder_is_told_who_has_it(write, tmp_path: Path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE)
    assert first.stdout is not None and first.stdout.readline()
    arguments = [str(write(command=["false", "fit", "${args}"])), "--out", str(out)]
    try:
        assert main(arguments) == 1
        told = capsys.readouterr().err
        assert f"speechzoo sweep: {out}: in use by process {first.pid} on " in told and "(speechzoo sweep)" in told
        assert not (out / "sweep.json").exists()
    finally:
        first.kill()
        first.wait()
    assert main(arguments) == 1 and states(out) == ["failed"] * 6  # it ran: every trial is the program `false`
    assert not (out / ".lock.held").exists()


def test_a_trial_is_no_rank_of_the_job_that_starts_it(tmp_path: Path) -> None:
    """With LOCAL_RANK of an earlier fit in this process a trial on two devices waited for its other rank for ever."""
    ranks = {"LOCAL_RANK": "0", "NODE_RANK": "0", "RANK": "0", "WORLD_SIZE": "8", "MASTER_PORT": "1"}
    ranks |= {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}
    tell = "import json, os; print(json.dumps(dict(os.environ)))"
    environment = {**os.environ, **ranks, "MINE": "kept"}
    assert launch([sys.executable, "-c", tell], environment, tmp_path, lambda pid: None) == 0
    given = json.loads((tmp_path / "stdout.log").read_text())
    assert given["MINE"] == "kept" and not set(ranks) & set(given)


def test_values_in_brackets_are_shown(write, player, tmp_path: Path) -> None:
    parameters = {"a.freeze": {"values": ["[encoder]", "[/llm]"]}}
    runner = Runner(load_sweep(write(parameters=parameters)), tmp_path / "out", start=player())
    runner.run()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(trial_table(runner))
    text = console.export_text()
    assert "[encoder]" in text and "[/llm]" in text


def test_a_trial_has_at_least_one_device(write, tmp_path: Path, capsys) -> None:
    with pytest.raises(ValueError, match="--per-trial 0 does not go with 0 devices"):
        Runner(load_sweep(write()), tmp_path / "out", per_trial=0)
    with pytest.raises(ValueError, match="--per-trial 4 does not go with 0 devices"):
        Runner(load_sweep(write()), tmp_path / "out", per_trial=4)
    unset = ["--devices", ""]  # as a shell gives a variable that is not set
    assert main([str(write()), "--out", str(tmp_path / "out"), *unset]) == 1
    assert "name GPU ids" in capsys.readouterr().err


def test_a_search_without_its_metric_is_told_of_it(write, player, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    blind = {"method": "bayes", "metric": {"name": "val_loss"}, "run_cap": 3}
    for trials in (1, 0):  # when the first has finished, and whenever the sweep goes on
        play = player()
        with pytest.raises(ValueError, match="trial_000 finished, and logged no val_loss.* it logged .*val/loss"):
            Runner(load_sweep(write(**blind)), tmp_path / "out", start=play).run()
        assert len(play.commands) == trials


def test_configurations_of_any_kind_are_left_for_the_trial_to_complain_about(write, tmp_path: Path) -> None:
    files = {"latin": "name: café".encode("latin-1"), "text": b"trainer: x", "list": b"model: {init_args: [1]}"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    names = {"values": [str(tmp_path / name) for name in files]}
    assert len(Runner(load_sweep(write(parameters={"config": names})), tmp_path / "out").plan()) == 3
