"""The computed view of a network is the one it has: what lies outside changes nothing, its ends change something."""

from __future__ import annotations

import pytest
import torch
from tiny_vocoders import KINDS, random_units, vocoder
from torch import Tensor, nn

from speechzoo.vocoders import LatentVocoder
from speechzoo.vocoders.hifigan import HiFiGANGenerator
from speechzoo.vocoders.reach import Reach, ShiftedConv1d, reach


def changed(outputs: list[Tensor]) -> list[int]:
    """Positions (first axis) where the second output differs from the first."""
    apart = (outputs[0] - outputs[1]).abs().flatten(1).amax(dim=1)
    return torch.nonzero(apart).flatten().tolist()


CASES = {
    "one": ([nn.Conv1d(1, 1, 7, padding=3)], Reach(3, 3)),
    "dilated": ([nn.Conv1d(1, 1, 3, dilation=4, padding=4)], Reach(4, 4)),
    "stacked": ([nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 5, padding=2)], Reach(3, 3)),
    "shifted": ([ShiftedConv1d(1, 1, 7, right=2), ShiftedConv1d(1, 1, 5, right=0)], Reach(8, 2)),
    "upsampled": ([nn.ConvTranspose1d(1, 1, 8, 4, padding=2)], Reach(1, 1)),
    "odd kernel": ([nn.ConvTranspose1d(1, 1, 11, 5, padding=3)], Reach(1, 1)),
    "exact kernel": ([nn.ConvTranspose1d(1, 1, 4, 4)], Reach(0, 0)),
    "conv at a higher rate": ([nn.ConvTranspose1d(1, 1, 4, 4), nn.Conv1d(1, 1, 11, padding=5)], Reach(2, 2)),
    "twice upsampled": (
        [nn.ConvTranspose1d(1, 1, 8, 4, padding=2), nn.ConvTranspose1d(1, 1, 4, 2, padding=1)],
        Reach(1, 1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_reach_of_layers(name: str) -> None:
    layers, expected = CASES[name]
    assert reach(layers) == expected
    # and by perturbation: the frame that is changed is seen from `right` before it to `left` after it
    net = nn.Sequential(*layers)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    x = torch.ones(2, 1, 41)
    x[1, 0, 20] += 1
    y = net(x).detach()
    rate = y.shape[-1] // 41
    hit = changed(list(y[..., : 41 * rate].reshape(2, 41, rate)))
    assert (hit[0], hit[-1]) == (20 - expected.right, 20 + expected.left)


def test_branches_count_as_the_widest() -> None:
    narrow, wide = (
        [nn.Conv1d(1, 1, 3, padding=1)],
        [nn.Conv1d(1, 1, 3, dilation=2, padding=2), ShiftedConv1d(1, 1, 3, 2)],
    )
    assert reach([[narrow, wide]]) == Reach(2, 4)
    assert reach([nn.Conv1d(1, 1, 3, padding=1), [wide, narrow]]) == Reach(3, 5)


def test_a_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="lower"):
        reach([nn.Conv1d(1, 1, 4, stride=2)])


def test_generator_of_a_medium_piper_voice_sees_eleven_frames() -> None:
    torch.manual_seed(0)
    generator = loud_generator()
    assert reach(generator.stages.layers) == Reach(11, 11)
    x = torch.randn(2, 192, 41, dtype=torch.float64)
    x[1] = x[0]
    x[1, :, 20] += 1
    y = generator.double()(x).detach()
    hit = changed(list(y.reshape(2, 41, 256)))
    assert (hit[0], hit[-1]) == (9, 31)


def loud_generator() -> HiFiGANGenerator:
    generator = HiFiGANGenerator()
    for parameter in generator.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=(1.0 / parameter[0].numel()) ** 0.5)
    return generator


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_unit_changes_states_and_durations_only_within_the_unit_reach(kind: str, tmp_path) -> None:
    made = vocoder(kind, tmp_path).double()
    units = random_units(31)
    other = units.clone()
    other[15] = (units[15] + 1) % made.num_units
    if isinstance(made, LatentVocoder):
        rows = [
            torch.cat([states, logs[..., None]], -1)[0] for states, logs in map(encode_latent(made), (units, other))
        ]
    else:
        rows = [made.durations(made.embedding(row[None]))[0][:, None] for row in (units, other)]
    hit = changed(rows)
    assert (hit[0], hit[-1]) == (15 - made.unit_reach.right, 15 + made.unit_reach.left)


def encode_latent(made: LatentVocoder):
    return lambda units: made.net.encode(units[None], torch.ones_like(units[None]))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_state_changes_samples_only_within_the_frame_reach(kind: str, tmp_path) -> None:
    made = vocoder(kind, tmp_path).double()
    torch.manual_seed(1)
    states, one = torch.randn(61, made.encode(random_units(2))[0].shape[1], dtype=torch.float64), torch.ones(61).long()
    other = states.clone()
    other[30] += 1
    waves = [made.render(x, one, 0, 61).reshape(61, made.hop) for x in (states, other)]
    hit = changed(waves)
    assert (hit[0], hit[-1]) == (30 - made.frame_reach.right, 30 + made.frame_reach.left)


def test_loud_weights_do_not_saturate(tmp_path) -> None:
    for kind in KINDS:
        wave = vocoder(kind, tmp_path)(random_units(40))
        assert 0.05 < wave.std() < 0.9
