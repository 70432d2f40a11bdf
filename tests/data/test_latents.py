"""Units with latents: what is read, what is refused, in which order batches come."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file

from speechzoo.data import LatentDataModule
from speechzoo.data.latents import read_latents


def manifest(folder: Path, lengths: list[int], **changes) -> Path:
    """One record per length: units of two frames each."""
    lines = []
    for number, length in enumerate(lengths):
        save_file({"latents": torch.full((2 * length, 3), float(number)).half()}, folder / f"{number}.safetensors")
        record = {"id": str(number), "units": [number % 5] * length, "durations": [2] * length}
        lines.append(json.dumps({**record, "latents": f"{number}.safetensors", **changes}) + "\n")
    (folder / "all.jsonl").write_text("".join(lines))
    return folder / "all.jsonl"


def loaded(path: Path, **options) -> LatentDataModule:
    module = LatentDataModule(str(path), str(path), **options)
    module.setup("fit")
    return module


def test_batches_hold_what_the_manifest_says_padded_with_nothing(tmp_path: Path) -> None:
    batch = next(iter(loaded(manifest(tmp_path, [3, 1, 2]), batch_size=3).val_dataloader()))
    assert batch.units.tolist() == [[0, 0, 0], [1, 0, 0], [2, 2, 0]]
    assert batch.durations.tolist() == [[2, 2, 2], [2, 0, 0], [2, 2, 0]]
    assert batch.latents.dtype == torch.float32
    assert batch.latents[..., 0].tolist() == [[0] * 6, [1] * 2 + [0] * 4, [2] * 4 + [0] * 2]


def test_statistics_are_over_frames(tmp_path: Path) -> None:
    mean, scale = loaded(manifest(tmp_path, [3, 1])).statistics()
    assert mean.tolist() == [0.25] * 3 and scale == pytest.approx((0.25 * 0.75) ** 0.5)


def test_order_depends_on_seed_and_epoch_alone_and_epochs_are_whole(tmp_path: Path) -> None:
    path = manifest(tmp_path, [1 + i % 7 for i in range(50)])

    def order(seed: int, epoch: int) -> list[list[int]]:
        module = loaded(path, batch_size=4, seed=seed)
        module.trainer = SimpleNamespace(current_epoch=epoch)
        return list(module.train_dataloader().batch_sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)
    batches = order(0, 3)
    assert sorted(index for batch in batches for index in batch) == list(range(50)) and len(batches) == 13
    spread = [max(i % 7 for i in batch) - min(i % 7 for i in batch) for batch in batches]
    assert sum(spread) / len(spread) < 2.5  # 50 random ones of 1 ... 7 would spread over about 4.3


class Seen(LightningModule):
    """Writes down which utterances a training gives, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).append(batch.latents[:, 0, 0].tolist())
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_trainer_gives_each_epoch_its_own_order(tmp_path: Path) -> None:
    """Also one that goes on: its first epoch is not the first of all."""
    data = str(manifest(tmp_path, [1 + i % 7 for i in range(20)]))
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def trained(epochs: int, ckpt: Path | None = None) -> dict[int, list[list[float]]]:
        model = Seen()
        trainer = Trainer(max_epochs=epochs, enable_checkpointing=False, limit_val_batches=0, **quiet)
        trainer.fit(model, datamodule=LatentDataModule(data, data, batch_size=4), ckpt_path=ckpt)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return model.seen

    straight, first = trained(3), trained(2)
    assert first == {epoch: straight[epoch] for epoch in (0, 1)}
    assert straight[0] != straight[1] != straight[2] != straight[0]
    assert all(sorted(n for batch in some for n in batch) == list(range(20)) for some in straight.values())
    assert trained(3, tmp_path / "2.ckpt") == {2: straight[2]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"units": [1, 2]}, "2 units and 3 durations"),
        ({"durations": [2, 2, 1]}, "sum to the 6 latents, these sum to 5"),
        ({"durations": [6, 0, 0]}, "at least 1"),
        ({"units": [1, 2, 9]}, "units 1 ... 9, the vocoder has 0 ... 5 - 1"),
        ({"units": "abc"}, "line 1"),
        ({"latents": "gone.safetensors"}, "gone.safetensors is not there"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, changes, said: str) -> None:
    path = manifest(tmp_path, [3], **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        read_latents(path, num_units=5)
    assert f"{path}, line 1" in str(caught.value)


def test_a_missing_or_empty_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        read_latents(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="no utterance"):
        read_latents(tmp_path / "empty.jsonl")


def test_several_processes_are_refused(tmp_path: Path) -> None:
    module = LatentDataModule(*[str(manifest(tmp_path, [3]))] * 2)
    module.trainer = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match="serves one process: set trainer.devices"):
        module.setup("fit")
