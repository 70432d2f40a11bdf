"""Records become items of the right ids, clips and units; long conversations lose whole old exchanges only."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from tiny_runs import num_targets

from speechzoo.audio import read_audio
from speechzoo.data import ConversationDataset, ManifestError, encode_batch, read_manifest
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO


def positions(samples: torch.Tensor) -> torch.Tensor:
    return samples // 1600  # ten a second


@pytest.fixture(scope="module")
def prompt(tiny_tokenizer_dir: Path) -> ChatPrompt:
    return ChatPrompt(str(tiny_tokenizer_dir))


def text_of(prompt: ChatPrompt, ids: torch.Tensor) -> str:
    return prompt.tokenizer.decode([i for i in ids.tolist() if i >= 0])


def test_items(manifest: Path, wavs: list[Path], prompt: ChatPrompt) -> None:
    data = ConversationDataset(read_manifest(manifest), prompt, positions, num_units=10)
    assert len(data) == 6
    item = data[3]
    assert item.id == "turns"
    assert [len(clip) for clip in item.audio] == [24160, 16000]
    assert torch.equal(item.audio[1], read_audio(wavs[0]))
    assert text_of(prompt, item.input_ids[item.turns == 1]) == "Hello.<|im_end|>"
    assert text_of(prompt, item.input_ids[item.turns == 2]) == "Paris.<|im_end|>"
    assert {turn: units.tolist() for turn, units in item.units.items()} == {2: [7, 9]}
    assert data.lengths[3] == len(item.input_ids) - 2 + 15 + 10
    assert data[4].audio == []


def test_fillers_have_no_targets(manifest: Path, prompt: ChatPrompt) -> None:
    data = ConversationDataset(read_manifest(manifest), prompt, positions, num_units=10)
    filler = data[~2]
    assert filler.id == "" and filler.units == {}
    assert torch.equal(filler.input_ids, data[2].input_ids)
    assert filler.turns.sum() == 0 < data[2].turns.sum()


def test_models_without_units_get_none(manifest: Path, prompt: ChatPrompt) -> None:
    data = ConversationDataset(read_manifest(manifest), prompt, positions)
    assert all(data[index].units == {} for index in range(6))


def test_questions_end_with_the_generation_prompt(manifest: Path, prompt: ChatPrompt) -> None:
    data = ConversationDataset(read_manifest(manifest), prompt, positions, answer=False, num_units=10)
    assert text_of(prompt, data[0].input_ids).endswith("<|im_start|>assistant\n")
    assert data[0].turns.sum() == 0 and data[0].units == {}
    assert len(data[3].audio) == 2  # both questions, and only the first answer
    assert "Hello." in text_of(prompt, data[3].input_ids) and "Paris" not in text_of(prompt, data[3].input_ids)


def test_old_exchanges_are_dropped_whole(manifest: Path, tiny_tokenizer_dir: Path, caplog) -> None:
    records = read_manifest(manifest)[3:4]
    full = ConversationDataset(records, ChatPrompt(str(tiny_tokenizer_dir)), positions, num_units=10)
    short = ChatPrompt(str(tiny_tokenizer_dir), max_length=full.lengths[0] - 1)
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "lightning.pytorch"):
        data = ConversationDataset(records, short, positions, num_units=10)
    assert "1 conversations are longer" in caplog.text and "1 of their oldest exchanges" in caplog.text
    item = data[0]
    text = text_of(short, item.input_ids)
    assert "helpful speech assistant" in text  # the system message stays
    assert "Hello." not in text and "Paris." in text
    assert [len(clip) for clip in item.audio] == [16000]
    assert {turn: units.tolist() for turn, units in item.units.items()} == {1: [7, 9]}
    assert item.turns.max() == 1
    assert data.lengths[0] == len(item.input_ids) - 1 + 10


def test_last_exchange_too_long_is_a_bad_record(manifest: Path, tiny_tokenizer_dir: Path) -> None:
    prompt = ChatPrompt(str(tiny_tokenizer_dir), max_length=30)
    with pytest.raises(ManifestError, match=r"train.jsonl:4 \(turns\): its last exchange takes \d+ positions"):
        ConversationDataset(read_manifest(manifest), prompt, positions)
    with pytest.warns(UserWarning, match="left out"):
        data = ConversationDataset(read_manifest(manifest), prompt, positions, on_bad="skip")
    assert 0 < len(data) == len(data.lengths) == len(data.records) < 6
    assert max(data.lengths) <= 30
    assert [example.id for example in data.examples] == [record.id for record in data.records]


def test_units_and_short_clips_are_checked_for_the_model(manifest: Path, prompt: ChatPrompt) -> None:
    with pytest.raises(ManifestError) as caught:
        ConversationDataset(read_manifest(manifest), prompt, lambda samples: samples // 12_000, num_units=9)
    messages = [str(problem) for problem in caught.value.problems]
    assert any("(sum): answer 1 has unit 9, the model knows 0 to 8" in message for message in messages)
    assert any("(turns): answer 2 has unit 9" in message for message in messages)
    assert any("(hello)" in message and "700 ms is too short" in message for message in messages)


def test_deaf_models(manifest: Path, prompt: ChatPrompt) -> None:
    with pytest.raises(ManifestError, match="cannot hear"):
        ConversationDataset(read_manifest(manifest), prompt)


def test_template_errors_name_the_record(manifest: Path, tiny_tokenizer_dir: Path) -> None:
    prompt = ChatPrompt(str(tiny_tokenizer_dir), chat_template="{{ raise_exception('no system role') }}")
    with pytest.raises(ValueError, match=r"train.jsonl:1 \(paris\): no system role"):
        ConversationDataset(read_manifest(manifest), prompt, positions)


def test_can_travel_to_workers(manifest: Path, prompt: ChatPrompt) -> None:
    data = pickle.loads(pickle.dumps(ConversationDataset(read_manifest(manifest), prompt, positions, num_units=10)))
    assert data[0].id == "paris"


def test_encode_batch_equals_the_dataset(manifest: Path, wavs: list[Path], prompt: ChatPrompt) -> None:
    rows = [json.loads(line)["messages"] for line in manifest.read_text().splitlines()][:2]
    array = read_audio(wavs[0])
    rows[0][0]["content"][0] = {"type": "audio", "array": array}
    rows[1][0]["content"][0]["path"] = str(wavs[1])
    data = ConversationDataset(read_manifest(manifest), prompt, positions, num_units=10)
    batch = encode_batch(prompt, rows, answer=True, padding_side="right")
    for row, item in enumerate([data[0], data[1]]):
        ids = batch.input_ids[row][batch.attention_mask[row]]
        assert torch.equal(ids, item.input_ids)
        assert torch.equal(batch.turns[row][batch.attention_mask[row]], item.turns)
        assert torch.equal(batch.audio[row, : batch.audio_lens[row]], item.audio[0])
    assert batch.unit_lens.tolist() == [5, 3]
    asked = encode_batch(prompt, rows)
    assert asked.units is None and num_targets(asked) == {"lm": 0, "ctc": 0}
    assert asked.attention_mask[:, -1].all()  # padded on the left
    assert (asked.input_ids == AUDIO).sum() == 2


def test_decoded_sound_of_datasets_is_taken_at_16_khz_alone(prompt: ChatPrompt, wavs: list[Path]) -> None:
    array = read_audio(wavs[0]).numpy()

    def batch(part: dict) -> torch.Tensor:
        return encode_batch(prompt, [[{"role": "user", "content": [{"type": "audio", **part}]}]]).audio

    decoded = {"array": array, "sampling_rate": 16_000, "path": None}
    for part in ({"audio": decoded}, decoded, {"path": None, "audio": str(wavs[0])}, {"audio": {"path": str(wavs[0])}}):
        assert torch.equal(batch(part)[0], torch.from_numpy(array))
    for part in ({**decoded, "sampling_rate": 8000}, {"audio": {**decoded, "sampling_rate": 8000}}):
        with pytest.raises(ValueError, match="conversation 0: an array at 8000 Hz: resample it to 16000 Hz"):
            batch(part)


def test_arrays_have_one_channel(prompt: ChatPrompt) -> None:
    part = {"type": "audio", "array": torch.zeros(2, 100)}
    with pytest.raises(ValueError, match=r"16 kHz, not of shape \[2, 100\]"):
        encode_batch(prompt, [[{"role": "user", "content": [part]}]])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("hello", "there is no user message"),
        ([], "there is no user message"),
        ([{"role": "assistant", "content": "a"}], "there is no user message"),
        ([{"role": "user"}], "message 1 is not of the form"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], "message 2 is not of the form"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "message 1 is not of the form"),
        ([{"role": "user", "content": [{"text": "a"}]}], "message 1 is not of the form"),
    ],
)
def test_what_is_no_conversation_is_told(prompt: ChatPrompt, given: list, why: str) -> None:
    with pytest.raises(ValueError, match=f"conversation 1: {why}"):
        encode_batch(prompt, [[{"role": "user", "content": "a"}], given])
