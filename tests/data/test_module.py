"""The data module under a real Trainer and under the LightningCLI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.cli import LightningCLI
from standin import Listener, trainer, write_manifest
from tiny_runs import num_targets
from torch.multiprocessing import ProcessRaisedException

from speechzoo.data import ManifestError, SpeechDataModule
from speechzoo.data.features import encode

IDS = ["paris", "sum", "hello", "turns", "text", "mixed"]


@pytest.fixture
def model(tiny_tokenizer_dir: Path) -> Listener:
    return Listener(str(tiny_tokenizer_dir))


def test_fit_and_validate(tmp_path: Path, manifest: Path, wavs: list[Path], model: Listener) -> None:
    other = write_manifest(tmp_path / "other.jsonl", wavs, 5)
    data = SpeechDataModule(train=str(manifest), val={"six": str(manifest), "five": str(other)}, batch_size=2)
    assert data.val_names == ["six", "five"]
    trainer(tmp_path, max_epochs=1, limit_val_batches=1.0, num_sanity_val_steps=0).fit(model, datamodule=data)
    trained, validated = model.seen[:3], model.seen[3:]
    assert sorted(sum(trained, [])) == sorted(IDS)
    assert sorted(sum(validated, [])) == sorted(IDS + [f"r{i}" for i in range(5)])
    batch = model.batches[0]
    assert batch.attention_mask[:, 0].all() and batch.window is not None  # padded on the right
    trainer(tmp_path).validate(model, datamodule=data, verbose=False)


def test_predict_keeps_the_order_and_pads_left(tmp_path: Path, manifest: Path, model: Listener) -> None:
    seen = []

    class Look(Callback):
        def on_predict_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0) -> None:
            seen.append(batch)

    data = SpeechDataModule(predict=str(manifest), batch_size=4)
    replies = trainer(tmp_path, callbacks=[Look()], enable_checkpointing=False).predict(model, datamodule=data)
    assert sum(replies, []) == IDS
    assert all(batch.attention_mask[:, -1].all() for batch in seen)
    assert all(num_targets(batch)["ctc"] == 0 for batch in seen)
    assert seen[0].turns[0].sum() == 0


def test_test_loaders_and_names(tmp_path: Path, manifest: Path, model: Listener) -> None:
    data = SpeechDataModule(test=[str(manifest)], max_tokens=80, batch_size=64)
    assert data.test_names == ["train"]  # the name of the file
    trainer(tmp_path).test(model, datamodule=data, verbose=False)
    assert sorted(sum(model.seen, [])) == sorted(IDS)
    assert len(model.seen) > 1
    with pytest.raises(ValueError, match="data.val holds files of the same name"):
        SpeechDataModule(val=["a/x.jsonl", "b/x.jsonl"])


def test_features_replace_audio(tmp_path: Path, manifest: Path, wavs: list[Path], model: Listener) -> None:
    data = SpeechDataModule(train=str(manifest), batch_size=6, feature_cache=str(tmp_path / "cache"))
    for _ in range(2):
        trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    first, second = model.batches
    assert first.audio is None
    assert sum(model.encoder.calls) == 4  # four files in all: the second run found them
    row = first.ids.index("paris")
    clip = sum((first.input_ids[:row] == -200).sum(dim=1)).item() if row else 0
    states = first.features[clip, : first.feature_lens[clip]]
    torch.testing.assert_close(states, encode(wavs[:1], model.encoder)[0], atol=1e-3, rtol=1e-3)
    assert second.features.shape == first.features.shape


def test_features_are_made_beside_a_rich_progress_bar(tmp_path: Path, manifest: Path, model: Listener) -> None:
    """Rich allows one live display; the sanity check has it open when the first loader is made."""
    data = SpeechDataModule(train=str(manifest), val=str(manifest), feature_cache=str(tmp_path / "cache"))
    bar = {"callbacks": [RichProgressBar()], "enable_progress_bar": True, "enable_checkpointing": False}
    trainer(tmp_path, max_epochs=1, limit_val_batches=1, **bar).fit(model, datamodule=data)
    assert sum(model.encoder.calls) == 4


def test_features_need_a_frozen_encoder(tmp_path: Path, manifest: Path, tiny_tokenizer_dir: Path) -> None:
    data = SpeechDataModule(train=str(manifest), feature_cache=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="feature_cache needs a frozen encoder"):
        trainer(tmp_path, max_epochs=1).fit(Listener(str(tiny_tokenizer_dir), frozen=False), datamodule=data)


def test_missing_paths(tmp_path: Path, manifest: Path, model: Listener) -> None:
    with pytest.raises(FileNotFoundError, match=r"data.train: .*no.jsonl: no such manifest"):
        trainer(tmp_path).fit(model, datamodule=SpeechDataModule(train=str(tmp_path / "no.jsonl")))
    with pytest.raises(ValueError, match="data.train is not set"):
        trainer(tmp_path).fit(model, datamodule=SpeechDataModule(val=str(manifest)))
    with pytest.raises(ValueError, match=r"data\.batch_size has to be at least 1, not 0"):
        SpeechDataModule(batch_size=0)


def test_bad_records_of_all_splits_before_the_model_is_built(tmp_path: Path, manifest: Path, model: Listener) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text("oops\n")
    two.write_text('{"messages": []}\n')
    model.configure_model = lambda: pytest.fail("the model is built before the data are checked")
    with pytest.raises(ManifestError) as caught:
        trainer(tmp_path).fit(model, datamodule=SpeechDataModule(train=[str(manifest), str(one)], val=str(two)))
    assert [problem.file for problem in caught.value.problems] == [one, two]


def test_units_are_checked_before_the_model_is_built(tmp_path: Path, manifest: Path, tiny_tokenizer_dir: Path) -> None:
    model = Listener(str(tiny_tokenizer_dir), num_units=9)
    model.configure_model = lambda: pytest.fail("the model is built before the data are checked")
    with pytest.raises(ManifestError, match="unit 9, the model knows 0 to 8"):
        trainer(tmp_path).fit(model, datamodule=SpeechDataModule(train=str(manifest)))


def test_skipped_records_are_listed_in_the_run_folder(tmp_path: Path, manifest: Path, model: Listener) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("oops\n")
    model.prompt.max_length = 38
    data = SpeechDataModule(train=[str(manifest), str(bad)], on_bad="skip", batch_size=2)
    with pytest.warns(UserWarning, match="left out"):
        trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    (row,) = map(json.loads, (tmp_path / "bad_records_train_manifest.jsonl").read_text().splitlines())
    assert row["line"] == 1 and "not JSON" in row["message"]
    long = [json.loads(line) for line in (tmp_path / "bad_records_train_model.jsonl").read_text().splitlines()]
    assert {row["id"] for row in long} | set(sum(model.seen, [])) == set(IDS)


def test_a_speaking_model_without_units_is_warned(tmp_path: Path, wavs: list[Path], model: Listener) -> None:
    file = write_manifest(tmp_path / "t.jsonl", wavs, 2)
    file.write_text("\n".join(line.split(', "units"')[0] + "}]}" for line in file.read_text().splitlines()))
    with pytest.warns(UserWarning, match="no answer of data.train has any"):
        trainer(tmp_path, max_epochs=1).fit(model, datamodule=SpeechDataModule(train=str(file)))


class Write(Callback):
    """Leaves what a rank saw in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_end(self, trainer, module) -> None:
        steps = [[batch.ids, num_targets(batch)["lm"]] for batch in module.batches]
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(steps))


def test_two_processes(tmp_path: Path, wavs: list[Path], model: Listener) -> None:
    """Both ranks take as many steps; over both, each record is trained on and validated on once."""
    train, val = write_manifest(tmp_path / "a.jsonl", wavs, 10), write_manifest(tmp_path / "b.jsonl", wavs, 5)
    cache = str(tmp_path / "cache")
    data = SpeechDataModule(train=str(train), val=str(val), batch_size=2, num_workers=1, feature_cache=cache)
    run = trainer(
        tmp_path,
        max_epochs=1,
        devices=2,
        strategy="ddp_fork",
        callbacks=[Write(tmp_path)],
        enable_checkpointing=False,
        limit_val_batches=1.0,
        num_sanity_val_steps=0,
    )
    run.fit(model, datamodule=data)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) == 3 + 2
    trained = [name for steps in ranks for ids, _ in steps[:3] for name in ids]
    assert sorted(trained) == sorted(f"r{i}" for i in range(10))
    validated = [name for steps in ranks for ids, _ in steps[3:] for name in ids]
    assert sorted(name for name in validated if name) == [f"r{i}" for i in range(5)]
    assert [targets for steps in ranks for ids, targets in steps if ids == [""]] == [0] * validated.count("")


class OwnCopies(SpeechDataModule):
    """A rank on another machine, whose copy of the data is another one."""

    def setup(self, stage: str) -> None:
        if self._trainer().global_rank == 1:
            (file,) = self.paths["train"]["train"]
            self.paths["train"]["train"] = [file.replace("a.jsonl", "b.jsonl")]
        super().setup(stage)


def test_processes_that_read_different_data_are_told(tmp_path: Path, wavs: list[Path], model: Listener) -> None:
    """Of the same number, so that nothing else would show it: some records twice, others never."""
    train = write_manifest(tmp_path / "a.jsonl", wavs, 10)
    (tmp_path / "b.jsonl").write_text("\n".join(reversed(train.read_text().splitlines())))
    run = trainer(tmp_path, max_epochs=1, devices=2, strategy="ddp_fork", callbacks=[], enable_checkpointing=False)
    with pytest.raises(ProcessRaisedException, match="data.train: the processes do not read the same"):
        run.fit(model, datamodule=OwnCopies(train=str(train), batch_size=2))


def test_under_the_cli(tmp_path: Path, manifest: Path, tiny_tokenizer_dir: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        f"""
trainer: {{accelerator: cpu, fast_dev_run: 2, enable_progress_bar: false, logger: false}}
model: {{tokenizer: {tiny_tokenizer_dir}}}
data: {{train: [{manifest}], val: {{six: {manifest}}}, batch_size: 2, max_tokens: 512}}
"""
    )
    args = ["fit", "-c", str(config), "--data.padding_side=left"]
    cli = LightningCLI(Listener, SpeechDataModule, args=args, save_config_callback=None)
    assert cli.datamodule.padding_side == "left"
    assert cli.model.batches[0].attention_mask[:, -1].all()
    assert len(cli.model.batches) == 4
