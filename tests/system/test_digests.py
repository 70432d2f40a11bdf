"""Whatever byte of a file changes, reading it says so, or gives what was written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speechzoo.data.tensor_files import TensorFiles
from speechzoo.system.digests import DamagedError, check_files, check_zip, file_digest, read_tensors, sealed_tensors
from speechzoo.training import FileCheckpointIO
from speechzoo.training.checkpoint_file import read_file

HELD: dict[str, Any] = {"state_dict": {"a": torch.arange(64.0), "b": torch.tensor([3, 1])}, "epoch": 7}


def same(one: Any, other: Any) -> bool:
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    return True


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "last.ckpt"
    FileCheckpointIO().save_checkpoint(HELD, path)
    return path


def test_every_single_changed_byte_of_a_checkpoint_is_found(checkpoint: Path, tmp_path: Path) -> None:
    """Tensors, pickle, zip headers, padding and the digest itself; by both roads where one would do."""
    whole = checkpoint.read_bytes()
    bad = tmp_path / "last.ckpt"
    for at in range(len(whole)):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(DamagedError, match=r"last\.ckpt: damaged \(.*\): copy it again"):
            check_zip(bad)
    assert len(whole) > 2000
    for at in (0, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        bad.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        for road in (read_file, FileCheckpointIO().load_checkpoint):
            with pytest.raises(DamagedError, match="last.ckpt: damaged"):
                road(bad)


def test_a_checkpoint_that_is_cut_off_or_longer_is_refused_in_one_line(checkpoint: Path, tmp_path: Path) -> None:
    whole, bad = checkpoint.read_bytes(), tmp_path / "last.ckpt"
    for content in [whole[:at] for at in range(0, len(whole), 37)] + [whole[:-1], whole + b"\0", whole + whole]:
        bad.write_bytes(content)
        for road in (read_file, FileCheckpointIO().load_checkpoint):
            with pytest.raises(ValueError, match="last.ckpt: .*damaged") as told:
                road(bad)
            assert "\n" not in str(told.value)


def test_the_digest_travels_with_a_copy_and_disturbs_no_reader(checkpoint: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "another name.bin"
    moved.parent.mkdir()
    shutil.copyfile(checkpoint, moved)
    assert b"speechzoo xxh3-128 " in moved.read_bytes()[-60:]
    for mmap in (False, True):
        assert same(torch.load(moved, weights_only=True, mmap=mmap), HELD)
    assert same(read_file(moved), HELD)


def test_checkpoints_without_a_digest_load_and_their_checksums_count(tmp_path: Path) -> None:
    """Those of earlier versions, and what people write with torch.save."""
    old = tmp_path / "old.ckpt"
    torch.save(HELD, old)
    assert same(read_file(old), HELD) and same(FileCheckpointIO().load_checkpoint(old), HELD)
    whole = old.read_bytes()
    numbers = HELD["state_dict"]["a"].numpy().tobytes()
    start = whole.index(numbers)
    for at in range(start, start + len(numbers), 5):
        old.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DamagedError, match="old.ckpt: damaged .*does not match its checksum"):
            read_file(old)
    torch.save(HELD, old, _use_new_zipfile_serialization=False)
    assert same(FileCheckpointIO().load_checkpoint(old), HELD)


def test_code_in_a_checkpoint_is_refused(tmp_path: Path) -> None:
    FileCheckpointIO().save_checkpoint({"path": Path("a")}, tmp_path / "a.ckpt")
    for road in (read_file, FileCheckpointIO().load_checkpoint):
        with pytest.raises(ValueError, match="a.ckpt: refused or damaged: it holds more than tensors"):
            road(tmp_path / "a.ckpt")


def test_every_single_changed_byte_of_cached_tensors_is_found_or_harmless(tmp_path: Path) -> None:
    """Harmless is what changes the digest's name alone: the file then counts as one without."""
    tensors = {"1": torch.randn(5, 3), "3": torch.randn(2, 3).bfloat16(), "none": torch.empty(0, 3)}
    content, file = sealed_tensors(tensors), tmp_path / "a.safetensors"
    file.write_bytes(content)
    assert same(read_tensors(file), tensors) and same(load_file(file), tensors)  # any reader of safetensors
    harmless = 0
    for at in range(len(content)):
        for flip in (1, 128):
            file.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                assert same(read_tensors(file), tensors)
                harmless += 1
            except DamagedError as error:
                assert str(error).startswith(f"{file}: damaged (")
    assert harmless <= 2 * len('"xxh3-128":"')
    for size in range(0, len(content), 7):
        file.write_bytes(content[:size])
        with pytest.raises(DamagedError, match="damaged"):
            read_tensors(file)
    save_file(tensors, file)  # of an earlier version
    assert same(read_tensors(file), tensors)


def test_a_damaged_entry_of_a_cache_is_one_line_and_computed_anew_once_deleted(tmp_path: Path) -> None:
    cache = TensorFiles(tmp_path, "an encoder")
    file = cache.place("ab" * 32)
    cache.write(file, {"states": torch.ones(100, 8)})
    content = bytearray(file.read_bytes())
    content[-901] ^= 16  # an exponent
    file.write_bytes(content)
    assert load_file(file)["states"].mean() != 1  # what nobody noticed
    with pytest.raises(ValueError, match=r"clip 3: damaged; delete .*\.safetensors and start again"):
        cache.read(file, "clip 3: not there", "clip 3: damaged")
    file.unlink()
    with pytest.raises(FileNotFoundError, match="clip 3: not there"):
        cache.read(file, "clip 3: not there", "clip 3: damaged")


def test_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "a.bin").write_bytes(bytes(range(256)) * 9000)  # more than one block
    digests = {"inside/a.bin": file_digest(tmp_path / "inside" / "a.bin")}
    check_files(tmp_path, digests, "config.json")
    with (tmp_path / "inside" / "a.bin").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\0")
    with pytest.raises(DamagedError, match="a.bin: damaged .* does not fit config.json"):
        check_files(tmp_path, digests, "config.json")
    (tmp_path / "inside" / "a.bin").unlink()
    with pytest.raises(DamagedError, match="a.bin: missing, though config.json names it"):
        check_files(tmp_path, digests, "config.json")
