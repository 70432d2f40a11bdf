"""The same questions are answered after each validation and shown in JSONL and in an offline W&B run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
import torch
import wandb
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from tiny_module import TinyModule, loader, make_batch
from tiny_vocoders import KINDS, NUM_UNITS, vocoder

from speechzoo.callbacks import SampleTable
from speechzoo.callbacks.samples import take_questions
from speechzoo.types import AUDIO, SpeechBatch


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_same_first_questions_each_time(tmp_path, make_trainer):
    module = TinyModule()
    trainer = make_trainer(callbacks=[SampleTable(num=3)], max_epochs=2, num_sanity_val_steps=1)
    trainer.fit(module, loader(4), loader(3, first=20))
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["000004.jsonl", "000008.jsonl"]
    rows = read(files[0])
    assert [row["id"] for row in rows] == ["q20", "q21", "q22"]
    assert rows == read(files[1])
    assert rows[0] == {
        "id": "q20", "prompt": "ab", "reference": "cd", "answer": "answer to q20", "units": [4, 0],
    }  # fmt: skip
    assert module.training  # as Lightning left it after the run


def test_every_second_validation_also_over_a_resume(tmp_path, make_trainer):
    table = SampleTable(num=1, every_n_val=2)
    make_trainer(callbacks=[table], max_epochs=3).fit(TinyModule(), loader(2), loader(1))
    assert [f.name for f in (tmp_path / "samples").iterdir()] == ["000004.jsonl"]
    resumed = SampleTable(num=1, every_n_val=2)
    resumed.load_state_dict(table.state_dict())
    make_trainer(callbacks=[resumed]).fit(TinyModule(), loader(1), loader(1))  # the fourth validation
    assert sorted(f.name for f in (tmp_path / "samples").iterdir()) == ["000001.jsonl", "000004.jsonl"]


def test_datamodule_may_name_the_questions_and_give_their_sound(tmp_path, make_trainer):
    class Data(LightningDataModule):
        def train_dataloader(self):
            return loader(2)

        def val_dataloader(self):
            return loader(1)

        def predict_batch(self, n: int) -> SpeechBatch:
            batch = make_batch(70, rows=n)
            batch.features, batch.feature_lens = torch.zeros(n, 4, 8), torch.full((n,), 4)
            batch.audio = batch.audio_lens = None
            return batch

        def clips(self, name: str) -> list[torch.Tensor]:
            return [torch.full((160,), int(name[1:]) / 100)]

    module = TinyModule()
    sink = Sink(tmp_path)
    make_trainer(callbacks=[SampleTable(num=2)], logger=sink).fit(module, datamodule=Data())
    assert module.asked[0].features.shape == (2, 4, 8)
    assert [row["id"] for row in read(tmp_path / "samples" / "000002.jsonl")] == ["q70", "q71"]
    assert sink.tables == [("val/samples", ["id", "prompt", "reference", "answer", "heard"], 2)]


class Sink(CSVLogger):
    """A logger that takes tables of text."""

    def __init__(self, folder):
        super().__init__(folder)
        self.tables = []

    def log_table(self, key, columns, data, step):
        assert all(len(row) == len(columns) for row in data)
        self.tables.append((key, columns, len(data)))


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_table_with_sound(tmp_path, make_trainer, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    logger = WandbLogger(save_dir=str(tmp_path), project="tests")
    make_trainer(callbacks=[SampleTable(num=2)], logger=logger, max_epochs=2).fit(TinyModule(), loader(1), loader(1))
    assert (tmp_path / "samples" / "000002.jsonl").is_file()
    logger.experiment.finish()
    wandb.teardown()  # WANDB_MODE is read once per process
    files = tmp_path.glob("wandb/offline-run-*/files/media/**/*.*")
    names = sorted(file.name.rsplit("_", 2)[0] for file in files)
    if mode == "disabled":
        assert not names
        return
    # Two tables, the sound of both questions once, that of both answers (silence) each time.
    assert names == ["samples"] * 2 + ["samples_answer_audio"] * 2 + ["samples_audio"] * 2
    table = json.loads(next(tmp_path.glob("wandb/offline-run-*/files/media/table/val/*.json")).read_text())
    assert table["columns"] == ["id", "prompt", "reference", "answer", "heard", "audio", "answer_audio"]
    assert table["data"][1][:4] == ["q1", "ab", "cd", "answer to q1"]
    staged = [file.read_bytes() for file in (tmp_path / "data" / "artifacts" / "staging").iterdir()]
    assert sum(content[:4] == b"RIFF" for content in staged) >= 3  # the table's own sounds


class Speaking(TinyModule):
    """Answers in units, and makes no sound of them."""

    num_units = NUM_UNITS

    def respond(self, batch: SpeechBatch, max_new_tokens: int):
        reply = super().respond(batch, max_new_tokens)
        reply.audio = reply.sample_rate = None
        reply.units[0] = torch.zeros(0, dtype=torch.long)  # one answer says nothing
        return reply


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_heard_through_a_vocoder(tmp_path, make_trainer, monkeypatch, kind):
    """W&B gets the sound that the vocoder makes of the answers' units."""
    made = vocoder(kind, tmp_path / "vocoder")
    if kind == "latent":
        made.save(tmp_path / "vocoder")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    wandb.teardown()
    logger = WandbLogger(save_dir=str(tmp_path), project="tests")
    table = SampleTable(num=2, vocoder=str(tmp_path / "vocoder"))
    make_trainer(callbacks=[table], logger=logger).fit(Speaking(), loader(1), loader(1))
    logger.experiment.finish()
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/audio/val/samples_answer_audio*.wav")
    heard, rate = soundfile.read(file, dtype="float32")
    expected = made(torch.tensor([4, 0])).numpy()
    assert rate == made.sample_rate and len(heard) == len(expected) > 0
    assert np.abs(heard - expected).max() < 1e-3 < np.abs(expected).max()


def test_a_vocoder_that_does_not_fit_is_refused_before_training(tmp_path, make_trainer):
    vocoder("latent", tmp_path).save(tmp_path / "vocoder")
    for module, folder, words in (
        (TinyModule(), "vocoder", "knows 12 units, this TinyModule speaks no units"),
        (Speaking(), "none", "none: no such folder"),
    ):
        trainer = make_trainer(callbacks=[SampleTable(vocoder=str(tmp_path / folder))])
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            trainer.fit(module, loader(1), loader(1))
        assert trainer.global_step == 0


@pytest.mark.slow
def test_all_ranks_answer_the_questions_of_rank_zero(tmp_path, make_trainer):
    trainer = make_trainer(callbacks=[SampleTable(num=2), SameQuestions()], devices=2, strategy="ddp_spawn")
    trainer.fit(TinyModule(), loader(2), loader(4))
    assert [row["id"] for row in read(tmp_path / "samples" / "000001.jsonl")] == ["q0", "q1"]


class SameQuestions(SampleTable):
    """Fails on a rank that was asked something else; writes nothing."""

    def on_validation_batch_end(self, *args, **kwargs) -> None:
        pass

    def on_validation_end(self, trainer, pl_module) -> None:
        if not trainer.sanity_checking:
            assert [batch.ids for batch in pl_module.asked] == [["q0", "q1"]]


def test_questions_lose_only_the_last_answer_and_its_clips():
    batch = SpeechBatch(
        input_ids=torch.tensor([[0, 0, 1, AUDIO, 2, 3, 4], [1, AUDIO, 3, AUDIO, 2, AUDIO, 5]]),
        attention_mask=torch.tensor([[False] * 2 + [True] * 5, [True] * 7]),
        turns=torch.tensor([[0, 0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0, 2]]),
        features=torch.arange(4.0)[:, None, None].expand(-1, 2, 3),
        feature_lens=torch.tensor([1, 2, 2, 1]),
        ids=["left", "turns"],
    )
    questions = take_questions(batch, 5)
    assert questions.prompts == [[1, AUDIO, 2], [1, AUDIO, 3, AUDIO, 2, AUDIO]]
    assert questions.references == [[3, 4], [5]]
    asked = questions.batch
    assert asked.input_ids[0].tolist() == [0, 0, 0, 1, AUDIO, 2]  # left padded, so that answers start together
    assert asked.attention_mask[0].tolist() == [False] * 3 + [True] * 3
    assert asked.features[:, 0, 0].tolist() == [0, 1, 2, 3] and asked.feature_lens.tolist() == [1, 2, 2, 1]
    first = take_questions(batch, 1).batch
    assert first.features[:, 0, 0].tolist() == [0] and first.audio is None and first.units is None


def test_clips_after_the_cut_are_left_out():
    batch = make_batch(0, rows=2)
    batch.input_ids[0] = torch.tensor([1, AUDIO, 3, 2, AUDIO, 0])  # a clip after the last answer
    batch.turns[0] = torch.tensor([0, 0, 1, 0, 0, 0])
    batch.audio, batch.audio_lens = torch.tensor([[0.1], [0.2], [0.3]]), torch.tensor([1, 1, 1])
    assert take_questions(batch, 2).batch.audio[:, 0].tolist() == pytest.approx([0.1, 0.3])


def test_wrong_numbers_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SampleTable(num=0)
