"""A checkpoint is written whole or not at all."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from speechzoo.training import FileCheckpointIO
from speechzoo.training.checkpoint_io import put, recover


def test_what_is_saved_comes_back_and_nothing_else_is_left(tmp_path: Path):
    io, path = FileCheckpointIO(), tmp_path / "new" / "folder" / "a.ckpt"
    for value in (1.0, 2.0):
        io.save_checkpoint({"x": torch.full((3,), value), "step": 7}, path)
    held = io.load_checkpoint(path)
    assert held["x"].tolist() == [2.0] * 3 and held["step"] == 7
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]


def test_a_writer_that_dies_leaves_the_previous_checkpoint_whole(tmp_path: Path, monkeypatch):
    io, path = FileCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({"step": 1}, path)
    before = path.read_bytes()

    def dies(checkpoint, file):
        file.write(b"half of the new")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", dies)
        with pytest.raises(OSError, match="No space left"):
            io.save_checkpoint({"step": 2}, path)
    assert path.read_bytes() == before
    io.save_checkpoint({"step": 3}, path)  # what the dead writer left does not disturb
    assert io.load_checkpoint(path)["step"] == 3 and [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_new_file_is_on_disk_before_it_replaces_the_old(tmp_path: Path, monkeypatch):
    import os

    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("sync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    FileCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "a.ckpt")
    assert order == ["sync", "replace"]


def test_remote_paths_go_to_lightning(monkeypatch):
    seen = []
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", lambda self, *args: seen.append(args))
    FileCheckpointIO().save_checkpoint({"step": 1}, "s3://bucket/a.ckpt")
    assert seen == [({"step": 1}, "s3://bucket/a.ckpt", None)]


def test_a_folder_cut_off_at_the_last_moment_comes_back(tmp_path: Path, monkeypatch):
    """A folder cannot take another's place in one step: after the first of the two the process dies."""
    target, part = tmp_path / "last.ckpt", tmp_path / ".last.ckpt.part"
    for folder, step in ((target, 1), (part, 2)):
        folder.mkdir()
        torch.save({"step": step}, folder / "meta.pt")
    with monkeypatch.context() as patch:
        rename, done = Path.rename, []

        def dies(self, to):
            if done:
                raise KeyboardInterrupt
            done.append(self)
            return rename(self, to)

        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            put(part, target)
    assert not target.exists()
    recover(target)
    assert torch.load(target / "meta.pt")["step"] == 1
    put(part, target)
    assert torch.load(target / "meta.pt")["step"] == 2 and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_takes_a_folders_place_and_the_other_way(tmp_path: Path):
    target = tmp_path / "last.ckpt"
    (target / "inside").mkdir(parents=True)
    FileCheckpointIO().save_checkpoint({"step": 1}, target)
    assert FileCheckpointIO().load_checkpoint(target)["step"] == 1
    (tmp_path / "part").mkdir()
    put(tmp_path / "part", target)
    assert target.is_dir() and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


WRITER = """
import sys, torch
from pathlib import Path
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor, Shard
from speechzoo.training import FileCheckpointIO
from speechzoo.training.sharded_folder import save_sharded
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for step in range(10_000):
    x = torch.full((1_000_000,), float(step))
    FileCheckpointIO().save_checkpoint({"state_dict": {"x": x}, "step": step}, f"{sys.argv[1]}/file.ckpt")
    shards = {"x": distribute_tensor(x, mesh, [Shard(0)])}
    save_sharded({"state_dict": shards, "step": step}, Path(sys.argv[1], "folder"))
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path):
    """A file and a folder, each rewritten over and over; SIGKILL comes while one of them is being written."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        for seen in process.stdout:
            if int(seen) == 3:
                break
        time.sleep(0.013)
    finally:
        process.kill()
        process.wait()
    for name in ("file.ckpt", "folder"):
        held = FileCheckpointIO().load_checkpoint(tmp_path / name)
        assert held["step"] >= 3 and held["state_dict"]["x"].eq(held["step"]).all()
