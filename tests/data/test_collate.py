"""Batches hold what the items hold, on the side asked for, and pad tokens never pass for targets."""

from __future__ import annotations

import torch
from tiny_runs import num_targets

from speechzoo.data import Item, collate
from speechzoo.types import AUDIO, IGNORE

PAD = 1  # also the end of a turn: masks have to come from positions


def items() -> list[Item]:
    return [
        Item(
            "a",
            torch.tensor([5, AUDIO, 6, PAD, AUDIO, 7, PAD]),
            torch.tensor([0, 0, 1, 1, 0, 2, 2]),
            audio=[torch.full((4,), 0.5), torch.full((2,), 0.25)],
            units={2: torch.tensor([0, 3])},
        ),
        Item("b", torch.tensor([8, PAD]), torch.tensor([0, 1]), units={1: torch.tensor([9, 8, 7])}),
    ]


def test_right() -> None:
    batch = collate(items(), PAD)
    assert batch.input_ids.tolist() == [[5, AUDIO, 6, PAD, AUDIO, 7, PAD], [8, PAD, PAD, PAD, PAD, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[True] * 7, [True] * 2 + [False] * 5]
    assert batch.turns.tolist() == [[0, 0, 1, 1, 0, 2, 2], [0, 1, 0, 0, 0, 0, 0]]
    assert batch.labels[1].tolist() == [IGNORE, PAD] + [IGNORE] * 5  # the end of the turn is learned, padding is not
    assert batch.audio.tolist() == [[0.5] * 4, [0.25, 0.25, 0, 0]]
    assert batch.audio_lens.tolist() == [4, 2]
    assert batch.units.tolist() == [[0, 3, IGNORE], [9, 8, 7]]
    assert batch.unit_lens.tolist() == [2, 3]
    assert batch.unit_turns.tolist() == [[0, 2], [1, 1]]
    assert batch.ids == ["a", "b"]
    assert num_targets(batch) == {"lm": 5, "ctc": 5}


def test_left() -> None:
    batch = collate(items(), PAD, padding_side="left")
    assert batch.input_ids[1].tolist() == [PAD] * 5 + [8, PAD]
    assert batch.attention_mask[1].tolist() == [False] * 5 + [True] * 2
    assert batch.turns[1].tolist() == [0] * 6 + [1]
    assert batch.audio.tolist() == [[0.5] * 4, [0.25, 0.25, 0, 0]]  # sound is always filled at its end
    assert torch.equal(batch.units, collate(items(), PAD).units)


def test_text_alone() -> None:
    batch = collate([Item("b", torch.tensor([8, 9]), torch.tensor([0, 1]))], PAD)
    assert (batch.audio, batch.features, batch.units, batch.unit_turns) == (None, None, None, None)
    assert num_targets(batch) == {"lm": 1, "ctc": 0}


def test_features_instead_of_audio() -> None:
    clip = torch.arange(6.0).reshape(3, 2)
    batch = collate([Item("a", torch.tensor([AUDIO]), torch.tensor([0]), features=[clip, clip[:1]])], PAD)
    assert batch.audio is None
    assert batch.features.shape == (2, 3, 2)
    assert batch.feature_lens.tolist() == [3, 1]
    assert batch.features[1, 1:].abs().sum() == 0


def test_what_is_read_instead_of_heard() -> None:
    one, two = items()
    one.written = torch.tensor([5, 3, 6, PAD]), torch.tensor([0, 0, 1, 1])
    two.written = torch.tensor([8, PAD]), torch.tensor([0, 1])
    batch = collate([one, two], PAD, padding_side="left")
    assert batch.written.input_ids.tolist() == [[5, 3, 6, PAD], [8, PAD, PAD, PAD]]  # always filled at its end
    assert batch.written.turns.tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]
    assert batch.written.attention_mask.sum() == 6 and batch.written.states is None
    one.read, two.read = torch.ones(2, 3), torch.zeros(0, 3)  # the other one is a filler
    moved = collate([one, two], PAD).to(torch.float64).written.states
    assert moved.tolist() == [[1.0] * 3] * 2 and moved.dtype == torch.float64
