"""A checkpoint is written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from speechzoo.system.digests import DamagedError
from speechzoo.system.files import DiskFullError
from speechzoo.training import FileCheckpointIO
from speechzoo.training.checkpoint_file import put, recover
from speechzoo.training.sharded_folder import load_sharded, read_plain, read_whole, save_sharded


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


@pytest.mark.slow
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


def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch):
    """Where the need is known beforehand nothing is begun; where the disk fills up meanwhile the half file goes."""
    io, path = FileCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint({"x": torch.zeros(100)}, path)
    before = path.read_bytes()
    table = torch.zeros(50_000)
    state = {"a": table, "b": [table[:7], {"c": torch.zeros(10)}]}  # 200 kB and a view of them, 40 bytes
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_039))
        with pytest.raises(DiskFullError, match=r"last\.ckpt: No space .*: at least 200 kB needed, 200 kB free in"):
            io.save_checkpoint(state, path)
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=200_040))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
        try:
            for held in (state, {str(n): torch.zeros(100) for n in range(500)}):  # in one large piece, in many
                with pytest.raises(DiskFullError, match=r"last\.ckpt: File too large: at least 200 kB needed") as told:
                    io.save_checkpoint(held, path)
                assert "\n" not in str(told.value)
                assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    io.save_checkpoint(state, path)
    assert io.load_checkpoint(path)["a"].shape == (50_000,)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A process group of this process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_every_file_of_a_folder_of_shards_is_checked(tmp_path: Path, alone: DeviceMesh):
    path, weight = tmp_path / "last.ckpt", torch.randn(64, 8)
    layer = torch.nn.Linear(8, 64, bias=False)

    def save() -> None:
        save_sharded({"state_dict": {"w": distribute_tensor(weight, alone, [Shard(0)])}, "step": 3}, path)

    def load() -> None:
        load_sharded(path, read_plain(path), {"w": layer.weight}, [])

    save()
    load()
    assert layer.weight.equal(weight) and read_whole(path)["state_dict"]["w"].equal(weight)
    assert "digests" not in read_whole(path)
    files = sorted(path.iterdir())
    assert {file.name for file in files} == {".metadata", "__0_0.distcp", "meta.pt"}
    for file in files:
        whole = file.read_bytes()
        for at in range(0, len(whole), len(whole) // 40 + 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            for road in (load, lambda: read_whole(path), lambda: FileCheckpointIO().load_checkpoint(path)):
                with pytest.raises(DamagedError, match=f"{file.name}: damaged"):
                    road()
        file.write_bytes(whole)
    (path / "__0_0.distcp").rename(tmp_path / "lost")
    with pytest.raises(DamagedError, match="__0_0.distcp: missing, though meta.pt names it"):
        read_whole(path)
    (tmp_path / "lost").rename(path / "__0_0.distcp")
    saved = torch.load(path / "meta.pt")
    torch.save({key: value for key, value in saved.items() if key != "digests"}, path / "meta.pt")
    assert read_whole(path)["step"] == 3  # of an earlier version
    (tmp_path / ".last.ckpt.part").mkdir()  # of a writer that was killed
    save()
    assert read_whole(path)["state_dict"]["w"].equal(weight)
    assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "store"}


def test_a_full_disk_leaves_the_folder_of_shards_as_it_was(tmp_path: Path, alone: DeviceMesh, monkeypatch):
    path = tmp_path / "last.ckpt"

    def save(step: int, size: int = 40_000) -> None:
        shards = distribute_tensor(torch.full((size,), float(step)), alone, [Shard(0)])
        save_sharded({"state_dict": {"w": shards}, "step": step}, path)

    def untouched() -> bool:
        assert {p.name for p in tmp_path.iterdir()} == {"last.ckpt", "store"}
        held = read_whole(path)
        return held["step"] == 1 and bool(held["state_dict"]["w"].eq(1).all())

    save(1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
        with pytest.raises(DiskFullError, match=r"last\.ckpt: No space .*: at least 160 kB needed, 100 kB free in"):
            save(2)
    assert untouched()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DiskFullError, match=r"last\.ckpt: writing failed half way: at least 160 kB needed") as told:
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(told.value) and untouched()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(DiskFullError, match=r"last\.ckpt: No space left"):
            save(2)
    assert untouched()
