"""`bucket_by`: what is similar inside a batch."""

from __future__ import annotations

import pytest

from speechzoo.data import SpeechDataModule
from speechzoo.data.dataset import ConversationDataset
from speechzoo.data.manifest import read_manifest
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO


def test_audio_lengths_count_the_clips_alone(manifest, tiny_tokenizer_dir):
    prompt = ChatPrompt(str(tiny_tokenizer_dir))
    dataset = ConversationDataset(read_manifest(manifest), prompt, lambda samples: samples // 1600)
    for example, audio in zip(dataset.examples, dataset.audio_lengths, strict=True):
        text = int((example.ids != AUDIO).sum())
        assert audio == max(1, example.length - text)
        assert (audio > 1) == bool(example.clips)


def test_what_is_no_choice_is_refused():
    with pytest.raises(ValueError, match=r"data\.bucket_by is positions or audio, not 'length'"):
        SpeechDataModule(train="x.jsonl", bucket_by="length")
    with pytest.raises(ValueError, match=r"data\.on_bad is raise or skip, not 'Raise'"):
        SpeechDataModule(train="x.jsonl", on_bad="Raise")
    for name, value in {"batch_size": 0, "max_tokens": 0, "bucket_spread": 0.9, "num_workers": -1, "seed": -1}.items():
        with pytest.raises(ValueError, match=rf"data\.{name} has to be at least \d, not {value}"):
            SpeechDataModule(train="x.jsonl", **{name: value})


def test_a_token_budget_needs_all_positions():
    with pytest.raises(ValueError, match="data.max_tokens counts all positions"):
        SpeechDataModule(train="x.jsonl", bucket_by="audio", max_tokens=100)
