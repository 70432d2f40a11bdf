"""The batch record: labels and counts come from the turns, and moving it loses nothing."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import num_targets
from torch.utils.data import DataLoader

from speechzoo.types import AUDIO, IGNORE, SpeechBatch


def batch() -> SpeechBatch:
    return SpeechBatch(
        input_ids=torch.tensor([[5, AUDIO, 7, 2, 2], [5, 6, 0, 2, 2]]),
        attention_mask=torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]).bool(),
        turns=torch.tensor([[0, 0, 1, 1, 0], [0, 1, 2, 2, 0]]),
        audio=torch.zeros(1, 16),
        audio_lens=torch.tensor([16]),
        units=torch.tensor([[0, 3, IGNORE], [1, 0, 2]]),
        unit_lens=torch.tensor([2, 3]),
        unit_turns=torch.tensor([[0, 1], [1, 2]]),
        ids=["a", "b"],
        window={"lm": 9, "ctc": 5},
    )


def test_labels_follow_the_turns_whatever_the_ids_are():
    """Id 0 and the padding id 2 are supervised inside an answer, and only there."""
    assert batch().labels.tolist() == [[IGNORE, IGNORE, 7, 2, IGNORE], [IGNORE, 6, 0, 2, IGNORE]]


def test_targets_are_counted_by_loss():
    assert num_targets(batch()) == {"lm": 5, "ctc": 5}
    text = SpeechBatch(torch.ones(1, 2).long(), torch.ones(1, 2).bool(), torch.tensor([[0, 1]]))
    assert num_targets(text) == {"lm": 1, "ctc": 0}
    assert len(batch()) == 2


def test_moving_keeps_every_field():
    given, moved = batch(), batch().to("meta")
    for name, value in vars(given).items():
        got = getattr(moved, name)
        if isinstance(value, torch.Tensor):
            assert got.device.type == "meta" and got.shape == value.shape and got.dtype == value.dtype, name
        else:
            assert got == value, name
    assert given.input_ids.device.type == "cpu"


@pytest.mark.gpu
def test_a_loader_pins_every_tensor():
    (pinned,) = DataLoader([batch()], batch_size=None, pin_memory=True)
    assert all(value.is_pinned() for value in vars(pinned).values() if isinstance(value, torch.Tensor))
    assert pinned.ids == ["a", "b"] and pinned.window == {"lm": 9, "ctc": 5}


def test_parts_of_a_batch_hold_their_own_clips():
    """Three questions with two, no and one clip, of which the padding is cut to what the part needs."""
    whole = SpeechBatch(
        input_ids=torch.tensor([[AUDIO, 5, AUDIO], [6, 7, 8], [AUDIO, AUDIO, 9]]),
        attention_mask=torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1]]).bool(),
        turns=torch.zeros(3, 3).long(),
        audio=torch.arange(12.0).view(3, 4),
        audio_lens=torch.tensor([2, 3, 4]),
        ids=["a", "b", "c"],
    )
    first, second = whole.split(2)
    assert first.ids == ["a", "b"] and second.ids == ["c"]
    assert first.input_ids.equal(whole.input_ids[:2]) and second.attention_mask.equal(whole.attention_mask[2:])
    assert first.audio.tolist() == [[0, 1, 2], [4, 5, 6]] and first.audio_lens.tolist() == [2, 3]
    assert second.audio.tolist() == [[8, 9, 10, 11]] and second.audio_lens.tolist() == [4]
    one, two, three = whole.split(1)
    assert two.audio is None and two.clips is None and one.audio.equal(first.audio) and three.ids == ["c"]
