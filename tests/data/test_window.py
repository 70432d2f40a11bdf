"""Windows fall where Lightning steps, and a resumed run sees the batches it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from standin import Listener, trainer, write_manifest
from tiny_runs import num_targets
from torch.utils.data import DataLoader

from speechzoo.data import Item, SpeechDataModule, TokenBudgetSampler, collate, with_windows


def text_loader(count: int, batch_size: int = 1, **options) -> DataLoader:
    """Row i has i + 1 targets."""
    items = [Item(str(i), torch.ones(i + 1).long(), torch.ones(i + 1).long()) for i in range(count)]
    sampler = TokenBudgetSampler([1] * count, batch_size)
    return DataLoader(items, batch_sampler=sampler, collate_fn=lambda rows: collate(rows, 0), **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("accumulate", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (10, [7])])
def test_sums_over_windows(accumulate: int, sizes: list[int], workers: int) -> None:
    loader = with_windows(text_loader(7, num_workers=workers), num_targets, accumulate)
    assert len(loader) == 7
    batches = list(loader)
    for size in sizes:
        window, batches = batches[:size], batches[size:]
        total = sum(num_targets(batch)["lm"] for batch in window)
        assert [batch.window for batch in window] == [{"lm": total, "ctc": 0}] * size
    assert not batches


def test_windows_after_a_resume_and_at_a_limit() -> None:
    loader = with_windows(text_loader(20), num_targets, 3, progress=lambda: (4, 11))
    counts = [num_targets(batch)["lm"] for batch in loader]
    assert len(counts) == 7  # batches 4 to 10
    windows = [batch.window["lm"] for batch in loader]
    expected = [sum(counts[:2])] * 2 + [sum(counts[2:5])] * 3 + [sum(counts[5:])] * 2
    assert windows == expected


def test_reads_no_further_than_a_window() -> None:
    taken = []
    loader = text_loader(9)
    loader.collate_fn = lambda rows: taken.append(0) or collate(rows, 0)
    iterator = iter(with_windows(loader, num_targets, 3))
    assert len(taken) == 0  # Lightning makes iterators long before it knows where to go on
    next(iterator)
    assert len(taken) == 3


class Stop(Callback):
    """Saves and stops after so many batches of a run."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        self.batches -= 1
        if not self.batches:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(folder: Path, data: dict, resume: Path | None = None, **options) -> Listener:
    module = Listener(data["tokenizer"])
    parts = {key: value for key, value in data.items() if key != "tokenizer"}
    run = trainer(folder, max_epochs=3, **options)
    run.fit(module, datamodule=SpeechDataModule(**parts), ckpt_path=resume)
    return module


@pytest.fixture
def data(tmp_path: Path, wavs: list[Path], tiny_tokenizer_dir: Path) -> dict:
    train = write_manifest(tmp_path / "train.jsonl", wavs, 23)
    return {"train": str(train), "batch_size": 3, "seed": 5, "tokenizer": str(tiny_tokenizer_dir)}


def check_windows(module: Listener, accumulate: int, per_epoch: int) -> None:
    batches = module.batches
    for first in range(0, len(batches), per_epoch):
        epoch = batches[first : first + per_epoch]
        for start in range(0, len(epoch), accumulate):
            window = epoch[start : start + accumulate]
            total = {key: sum(num_targets(batch)[key] for batch in window) for key in ("lm", "ctc")}
            assert [batch.window for batch in window] == [total] * len(window)


@pytest.mark.parametrize(
    ("accumulate", "workers", "stop", "limit"),
    [(1, 0, 3, None), (1, 2, 11, None), (3, 0, 3, None), (3, 0, 8, None), (3, 2, 14, None), (1, 0, 7, 5), (2, 0, 4, 5)],
)
def test_resumed_run_equals_an_unbroken_one(tmp_path, data, accumulate, workers, stop, limit) -> None:
    """`stop` 8 and `limit` 5 with 10 lie at the end of an epoch of 8 batches, the others inside one."""
    data["num_workers"] = workers
    options = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit or 1.0}
    whole = fit(tmp_path, data, **options)
    per_epoch = limit or 8
    assert len(whole.seen) == 3 * per_epoch
    check_windows(whole, accumulate, per_epoch)
    file = tmp_path / "stop.ckpt"
    first = fit(tmp_path, data, callbacks=[Stop(stop, file)], **options)
    rest = fit(tmp_path, data, resume=file, **options)
    assert first.seen + rest.seen == whole.seen
    assert [b.window for b in first.batches + rest.batches] == [b.window for b in whole.batches]
    assert torch.equal(rest.weight, whole.weight)


def test_resume_from_the_checkpoint_of_an_epoch(tmp_path: Path, data: dict) -> None:
    """Lightning's default checkpoints are written at the end of an epoch."""
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole = fit(tmp_path, data, callbacks=[keep])
    rest = fit(tmp_path, data, resume=tmp_path / "epoch=0.ckpt")
    assert rest.seen == whole.seen[8:]
    assert torch.equal(rest.weight, whole.weight)


def test_limit_walks_through_all_records(tmp_path: Path, data: dict) -> None:
    """`limit_train_batches` shortens Lightning's epochs, it does not hide records."""
    module = fit(tmp_path, data, limit_train_batches=4)
    first_epoch = [name for ids in module.seen[:8] for name in ids]
    assert sorted(first_epoch) == sorted(f"r{i}" for i in range(23))


def test_overfitting_repeats_the_same_batches(tmp_path: Path, data: dict) -> None:
    module = fit(tmp_path, data, overfit_batches=2)
    assert len(module.seen) == 6
    assert module.seen[:2] * 3 == module.seen


def test_changed_data_is_said(tmp_path: Path, data: dict, wavs: list[Path]) -> None:
    file = tmp_path / "stop.ckpt"
    fit(tmp_path, data, callbacks=[Stop(3, file)])
    write_manifest(tmp_path / "train.jsonl", wavs, 24)
    with pytest.warns(UserWarning, match="cannot go on in the order of the checkpoint: records 23 -> 24"):
        fit(tmp_path, {**data, "seed": 5}, resume=file)
