"""Windows of a stream: the sound of the whole, of few lengths, and no layer makes much more than is wanted."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_vocoders import KINDS, random_units, vocoder

from speechzoo.vocoders.reach import Reach
from speechzoo.vocoders.window import STEP, Window

RANGES = [(0, 90), (0, 7), (0, 40), (3, 5), (17, 60), (30, 31), (44, 90), (60, 90), (89, 90)]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_any_range_of_frames_sounds_as_in_the_whole(kind: str, tmp_path) -> None:
    made = vocoder(kind, tmp_path).double()
    torch.manual_seed(0)
    states, one = torch.randn(90, made.encode(random_units(2))[0].shape[1], dtype=torch.float64), torch.ones(90).long()
    whole = made.render(states, one, 0, 90)
    assert len(whole) == 90 * made.hop and whole.std() > 0.05
    for first, last in RANGES:
        part = made.render(states, one, first, last)
        torch.testing.assert_close(part, whole[first * made.hop : last * made.hop], atol=1e-12, rtol=0)


def test_windows_hold_all_that_is_seen_and_have_few_lengths() -> None:
    reach = Reach(23, 17)
    for first, size, ahead in itertools.product((0, 5, 40, 200), range(20, 90), (0, 3, 17, 60)):
        total = first + size + ahead
        window = Window.of(reach, first, first + size, total)
        assert (window.start, window.stop) == (max(0, first - 23), min(total, first + size + 17))
        # zeros stand only where real frames follow that are not given, never at an end of the sound
        assert not (window.after and window.stop == total) and not (window.before and window.start == 0)
        length = window.stop - window.start + window.before + window.after
        assert window.last - window.first == size + window.before + window.after
        if window.stop < total or window.start > 0:
            assert length % STEP == 0 and length < window.stop - window.start + STEP


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_last_layers_make_only_what_is_wanted(kind: str, tmp_path) -> None:
    made, seen = vocoder(kind, tmp_path), {}
    for name in ("conv_pre", "conv_post"):
        layer = getattr(made.generator, name)
        layer.register_forward_hook(lambda _, args, out, name=name: seen.update({name: args[0].shape[-1]}))
    states, one = torch.randn(200, made.encode(random_units(2))[0].shape[1]), torch.ones(200).long()
    made.render(states, one, 80, 100)
    assert seen["conv_pre"] <= 20 + made.frame_reach.left + made.frame_reach.right + STEP
    assert seen["conv_post"] <= (20 + STEP) * made.hop + 6
