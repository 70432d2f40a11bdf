"""Every kind of source gives the very batches that JSONL gives, finds the same mistakes, and continues in order."""

from __future__ import annotations

import resource
import tracemalloc
from functools import partial
from pathlib import Path

import pytest
import shards
import torch
from standin import Listener, trainer, write_manifest
from torch.utils.data import DataLoader

from speechzoo.data import (
    ConversationDataset,
    FeatureCache,
    ManifestError,
    SpeechDataModule,
    TokenBudgetSampler,
    collate,
    examples,
    read_manifest,
)
from speechzoo.data.sources import access, read_clip, resolve, source_name
from speechzoo.text import ChatPrompt

pytest.importorskip("pyarrow")
pytest.importorskip("datasets")

kinds = pytest.mark.parametrize("kind", sorted(shards.KINDS))


def positions(samples: torch.Tensor) -> torch.Tensor:
    return samples // 1600  # ten a second


@pytest.fixture(scope="module")
def prompt(tiny_tokenizer_dir: Path) -> ChatPrompt:
    return ChatPrompt(str(tiny_tokenizer_dir))


@pytest.fixture(scope="module")
def stored(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The records of the manifest in each kind of source."""
    folder = tmp_path_factory.mktemp("shards")
    rows = shards.rows_of(manifest)
    return {kind: write(folder / kind, rows, manifest.parent) for kind, write in shards.KINDS.items()}


def batches(paths, prompt: ChatPrompt, workers: int = 0, **options) -> list:
    data = ConversationDataset(read_manifest(paths, **options), prompt, positions, num_units=10)
    sampler = TokenBudgetSampler(data.lengths, 2, seed=1)
    together = partial(collate, pad_id=prompt.pad_id)
    return list(DataLoader(data, batch_sampler=sampler, collate_fn=together, num_workers=workers))


def assert_same(first: list, second: list) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert vars(one).keys() == vars(other).keys()
        for key, value in vars(one).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(other, key)), key
            else:
                assert value == getattr(other, key), key


@kinds
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_jsonl(kind, workers, stored, manifest, prompt, tmp_path) -> None:
    memory = tmp_path / "checks.json"
    expected = batches(manifest, prompt)
    assert_same(expected, batches(stored[kind], prompt, workers, memory=memory))
    assert_same(expected, batches(stored[kind], prompt, memory=memory))  # by the index on disk


@kinds
def test_large_sources_tokenise_on_demand(kind, stored, manifest, prompt, tmp_path, monkeypatch) -> None:
    expected = batches(manifest, prompt)
    monkeypatch.setattr(examples, "KEPT", 0)
    memory = tmp_path / "checks.json"
    assert_same(expected, batches(stored[kind], prompt, memory=memory))
    (lengths,) = (tmp_path / "indexes").glob("lengths-*.npz")
    encode = examples._example
    seen = []
    monkeypatch.setattr(examples, "_example", lambda *args, **more: seen.append(args) or encode(*args, **more))
    data = ConversationDataset(read_manifest(stored[kind], memory=memory), prompt, positions, num_units=10)
    assert len(data) == 6 and not seen  # lengths come from disk
    assert data.examples[3].heard == 25 and len(seen) == 1
    other = ChatPrompt(prompt.name, system="Be brief.")
    longer = ConversationDataset(read_manifest(stored[kind], memory=memory), other, positions, num_units=10)
    assert longer.lengths[0] > data.lengths[0]  # another template, other lengths


def test_kept_lengths_are_those_of_the_model_that_asks(manifest, tiny_tokenizer_dir, tmp_path, monkeypatch) -> None:
    """A model without units, then one with: whose answers are spoken is not taken over; a used prompt is no other."""
    monkeypatch.setattr(examples, "KEPT", 0)

    def spoken(num_units: int | None, prompt: ChatPrompt) -> list[bool]:
        records = read_manifest(manifest, memory=tmp_path / "checks.json")
        return ConversationDataset(records, prompt, positions, num_units=num_units).examples.spoken.tolist()

    prompt = ChatPrompt(str(tiny_tokenizer_dir))
    assert not any(spoken(None, prompt))
    assert any(spoken(10, prompt)) and spoken(10, ChatPrompt(str(tiny_tokenizer_dir))) == spoken(10, prompt)
    assert len(list((tmp_path / "indexes").glob("lengths-*"))) == 2


def test_old_exchanges_are_dropped_alike_on_demand(manifest, tiny_tokenizer_dir, monkeypatch) -> None:
    records = read_manifest(manifest)[3:4]
    full = ConversationDataset(records, ChatPrompt(str(tiny_tokenizer_dir)), positions, num_units=10)
    short = ChatPrompt(str(tiny_tokenizer_dir), max_length=full.lengths[0] - 1)
    kept = ConversationDataset(records, short, positions, num_units=10)
    monkeypatch.setattr(examples, "KEPT", 0)
    made = ConversationDataset(records, short, positions, num_units=10)
    assert made.examples.dropped.tolist() == [1] and made.lengths == kept.lengths
    assert_same([collate([kept[0]], 0)], [collate([made[0]], 0)])
    assert list(made.examples.clips()) == kept.examples[0].clips


def test_mixed_lists(stored, manifest, prompt, tmp_path) -> None:
    rows = [{**row, "id": f"again-{row['id']}"} for row in shards.rows_of(manifest)]
    again = shards.write_tars(tmp_path / "again", rows, manifest.parent, 2)
    records = read_manifest([str(manifest), again])
    assert [record.id for record in records[:6]] + [record.id for record in records[6:]] == [r.id for r in records]
    assert len(records) == 12 and records[9].id == "again-turns" and records[9].clip_samples == [24160, 16000]
    with pytest.raises(ManifestError, match=r"id 'paris' is taken by .*train.jsonl:1"):
        read_manifest([str(manifest), stored["parquet"]])


def test_names(stored, tmp_path) -> None:
    assert [Path(name).name for name in resolve(stored["tar"])] == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert source_name("data/dev/*.parquet") == "dev"
    assert source_name("hf:org/name:test") == "name_test"
    assert source_name("a/b.jsonl") == "b"
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        resolve(str(tmp_path / "*.tar"))
    with pytest.raises(FileNotFoundError, match="no such manifest"):
        resolve(str(tmp_path))


def test_questions_need_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Who?"}]}\n')
    memory = tmp_path / "checks.json"
    assert len(read_manifest(path, answer=False, memory=memory)) == 1
    with pytest.raises(ManifestError, match="does not end with an answer"):
        read_manifest(path, memory=memory)  # by the same index


@kinds
def test_features_of_shards(kind, stored, manifest, wavs) -> None:
    """The cache knows sound in a shard by its place; what is read is what the file holds."""
    (record,) = read_manifest(stored[kind])[:1]
    clip = str(record.clips[0])
    assert "::" in clip and torch.equal(read_clip(clip), read_clip(wavs[0]))
    cache = FeatureCache(manifest.parent / "cache", "encoder")
    assert cache.file(clip) != cache.file(read_manifest(stored[kind])[1].clips[0])


def test_the_index_follows_the_files(tmp_path: Path, wavs: list[Path]) -> None:
    memory = tmp_path / "checks.json"
    (tmp_path / "a.wav").write_bytes(wavs[0].read_bytes())
    path = write_manifest(tmp_path / "m.jsonl", [tmp_path / "a.wav"], 3)
    assert read_manifest(path, memory=memory)[2].clip_samples == [16000]
    (index,) = (tmp_path / "indexes").glob("*.npz")
    made = index.stat().st_mtime_ns
    read_manifest(path, memory=memory)
    assert index.stat().st_mtime_ns == made
    (tmp_path / "a.wav").write_bytes(wavs[1].read_bytes())
    assert read_manifest(path, memory=memory)[2].clip_samples == [36799]  # 2.3 s
    (tmp_path / "a.wav").unlink()
    with pytest.raises(ManifestError, match="no such audio file"):
        read_manifest(path, memory=memory)
    (tmp_path / "a.wav").write_bytes(wavs[1].read_bytes())
    records = read_manifest(path, memory=memory)
    write_manifest(path, [tmp_path / "a.wav"], 5)
    assert len(read_manifest(path, memory=memory)) == 5
    index.write_bytes(index.read_bytes()[:100])  # damaged: made again
    assert len(read_manifest(path, memory=memory)) == 5
    whole = index.read_bytes()
    for at in range(0, len(whole), len(whole) // 60):
        index.write_bytes(whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :])
        records = read_manifest(path, memory=memory)
        assert [records[n].clip_samples for n in range(5)] == [[36799]] * 5
    path.write_text(path.read_text().replace('"r1"', '"rx"'))
    with pytest.raises(ValueError, match="m.jsonl:2: is not the record that was checked"):
        records[1]


def test_a_memory_that_cannot_be_written_is_told_and_ends_nothing(manifest, prompt, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(examples, "KEPT", 0)
    (tmp_path / "full").write_text("no folder")
    with pytest.warns(UserWarning, match=r"not remembered .*; set \$SPEECHZOO_CACHE"):
        records = read_manifest(manifest, memory=tmp_path / "full" / "checks.json")
    with pytest.warns(UserWarning, match="not remembered"):
        assert len(ConversationDataset(records, prompt, positions, num_units=10)) == len(records)


@kinds
def test_resumed_order(kind, tmp_path, wavs, tiny_tokenizer_dir) -> None:
    """A run stopped after 3 of 10 steps goes on with the batches of an unbroken one over JSONL."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    manifest = write_manifest(tmp_path / "m.jsonl", wavs, 12)
    paths = shards.KINDS[kind](tmp_path / "shards", shards.rows_of(manifest), tmp_path)

    def seen(train: str, folder: str, steps: int, start: str | None = None) -> list[list[str]]:
        model = Listener(str(tiny_tokenizer_dir))
        save = ModelCheckpoint(tmp_path / folder, save_last=True, every_n_train_steps=1)
        options = {"callbacks": [save], "max_steps": steps, "max_epochs": -1}
        data = SpeechDataModule(train=train, batch_size=2)
        trainer(tmp_path / folder, **options).fit(model, datamodule=data, ckpt_path=start)
        return model.seen

    unbroken = seen(str(manifest), "whole", 10)
    before = seen(paths, "parts", 3)
    assert before + seen(paths, "parts", 10, str(tmp_path / "parts" / "last.ckpt")) == unbroken


@pytest.mark.parametrize(("limit", "sources"), [(256, 64), (1024, 256), (65536, 256), (resource.RLIM_INFINITY, 256)])
def test_many_sources_leave_files_to_others(limit: int, sources: int, monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    assert access.may_stay_open() == sources


@pytest.mark.slow
def test_memory_of_many_records(tmp_path: Path, wavs: list[Path]) -> None:
    """Two hundred thousand records take less than 80 bytes each once they are indexed."""
    path = tmp_path / "many.jsonl"
    with path.open("w") as file:
        for number in range(200_000):
            part = f'{{"type": "audio", "path": "{wavs[0]}"}}'
            file.write(
                f'{{"id": "r{number}", "messages": [{{"role": "user", "content": [{part}]}}, '
                f'{{"role": "assistant", "content": "This is answer number {number}."}}]}}\n'
            )
    memory = tmp_path / "checks.json"
    read_manifest(path, memory=memory)
    tracemalloc.start()
    records = read_manifest(path, memory=memory, num_units=10, audio_positions=positions)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records) == 200_000 and records[123_456].id == "r123456"
    assert kept < 80 * 200_000
    assert most < 300 * 200_000
