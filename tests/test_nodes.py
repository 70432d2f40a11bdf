"""Two "nodes" on loopback, started by torchrun and by the SLURM script of the recipes, preempted and requeued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Callback
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from tiny_runs import saved, write_config

CLUSTER = Path(__file__).resolve().parents[1] / "recipes" / "cluster"
STEPS = 4

# Stands in for SLURM's srun: two tasks, each a node of its own, with the variables that Lightning reads.
SRUN = """#!{python}
import os, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith(("--cpus-per-task", "--kill-on-bad-exit"))]
tasks = []
for rank in map(str, range(2)):
    own = {{"SLURM_PROCID": rank, "SLURM_NODEID": rank, "SLURM_LOCALID": "0"}}
    tasks.append(subprocess.Popen(command, env={{**os.environ, **own}}))
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SPEECHZOO = '#!/bin/sh\nexec "{python}" -m speechzoo "$@"\n'
SCONTROL = '#!/bin/sh\necho "$@" >> "{folder}/asked"\n'


class Tell(Callback):
    """Sends SLURM's signal to the second node alone, in the first micro-batch of the third step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2 and trainer.fit_loop.epoch_loop._should_accumulate():
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    path = write_config(tmp_path_factory.mktemp("nodes") / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)
    content = yaml.safe_load(path.read_text())
    content["trainer"] |= {"max_steps": STEPS, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def unbroken(config: Path) -> Path:
    """The checkpoint of two nodes that torchrun started."""
    port = find_free_network_port()
    nodes = []
    for rank in (1, 0):
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"]
        command += ["--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}", "-m", "speechzoo"]
        nodes.append(start([*command, *fit(config, "unbroken")]))
    for node in nodes:
        said = node.communicate(timeout=180)[0]
        assert node.returncode == 0, said
    return config.parent / "unbroken" / "last.ckpt"


def fit(config: Path, name: str) -> list[str]:
    # The overlay asks for GPUs; its other settings stay.
    cpu = ["--trainer.accelerator=cpu", "--trainer.num_nodes=2", "--trainer.devices=1"]
    overlay = str(CLUSTER / "fsdp2.yaml")
    return ["fit", "-c", str(config), "-c", overlay, f"--name={name}", *cpu]


def start(command: list[str], **env: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **env}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sbatch(tools: Path, arguments: list[str]) -> None:
    """Run the script as SLURM would for a job of two nodes with one task each."""
    slurm = {"SLURM_JOB_ID": str(10_000 + find_free_network_port() % 10_000), "SLURM_JOB_NAME": "speechzoo"}
    slurm |= {"SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    slurm |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NODELIST": "127.0.0.1"}
    script = str(CLUSTER / "slurm.sbatch")
    job = start(["bash", script, *arguments[1:]], PATH=f"{tools}{os.pathsep}{os.environ['PATH']}", **slurm)
    said = job.communicate(timeout=180)[0]
    assert job.returncode == 0, said


@pytest.mark.slow
def test_a_preempted_job_ends_as_the_unbroken_one(config: Path, unbroken: Path, tmp_path: Path) -> None:
    """One node is told in the middle of a step; both save after it, the job is requeued once and goes on exactly."""
    for name, text in {"srun": SRUN, "speechzoo": SPEECHZOO, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text.format(python=sys.executable, folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    arguments = fit(config, "preempted")
    last = config.parent / "preempted" / "last.ckpt"

    sbatch(tmp_path, [*arguments, f"--trainer.callbacks+={__name__}.Tell"])
    assert saved(last)["global_step"] == 3
    assert len((tmp_path / "asked").read_text().splitlines()) == 1

    sbatch(tmp_path, arguments)
    one, other = saved(last), saved(unbroken)
    assert one["global_step"] == other["global_step"] == STEPS
    assert one["state_dict"].keys() == other["state_dict"].keys()
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    first = saved(unbroken)["optimizer_states"][0]["state"]
    for index, moments in one["optimizer_states"][0]["state"].items():
        assert all(torch.equal(value, first[index][name]) for name, value in moments.items())
