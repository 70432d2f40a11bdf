"""A checkpoint is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from speechzoo.training import FileCheckpointIO


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
