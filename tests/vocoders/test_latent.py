"""The latent vocoder: durations, padding, what is saved is what speaks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_vocoders import GENERATOR, NET, random_units, vocoder
from torch.nn.utils.rnn import pad_sequence

from speechzoo.vocoders import LatentVocoder


@pytest.fixture(scope="module")
def latent(tmp_path_factory) -> LatentVocoder:
    return vocoder("latent", tmp_path_factory.mktemp("unused"))


def test_saved_and_loaded_it_says_the_same(latent: LatentVocoder, tmp_path: Path) -> None:
    latent.save(tmp_path / "voice")
    again = LatentVocoder.from_folder(tmp_path / "voice")
    assert (again.sample_rate, again.num_units, again.hop) == (800, NET.num_units, 8)
    assert again.training is False and not any(p.requires_grad for p in again.generator.parameters())
    units = random_units(20)
    torch.testing.assert_close(again(units), latent(units), atol=0, rtol=0)
    assert sorted(path.name for path in (tmp_path / "voice").iterdir()) == ["config.json", "model.safetensors"]


def test_a_folder_that_holds_something_else_is_refused(latent: LatentVocoder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        LatentVocoder.from_folder(tmp_path)
    latent.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "net": {**config["net"], "num_units": 13}}))
    with pytest.raises(ValueError, match=r"model\.safetensors: does not fit .*mismatch for net\.embedding\.weight"):
        LatentVocoder.from_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: does not fit"):
        LatentVocoder.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"class": "Other"}))
    with pytest.raises(ValueError, match="no LatentVocoder"):
        LatentVocoder.from_folder(tmp_path)


def test_net_and_generator_have_to_fit() -> None:
    with pytest.raises(ValueError, match="makes 5 channels, the generator takes 6"):
        LatentVocoder(NET, {**GENERATOR, "in_dim": 6}, 800)


def test_expansion_gives_each_frame_its_place_in_the_unit(latent: LatentVocoder) -> None:
    net = latent.net
    states, durations = torch.randn(3, NET.dim), torch.tensor([2, 1, 40])
    frames = net.expand(states, durations)
    assert len(frames) == 43
    places = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (2, 0, 31), (2, 1, 31), (2, 31, 8), (2, 31, 0)]
    for index, (unit, after, before) in zip([0, 1, 2, 3, 4, 34, 42], places, strict=True):
        expected = states[unit] + net.from_start.weight[after] + net.to_end.weight[before]
        torch.testing.assert_close(frames[index], expected, atol=0, rtol=0)
    torch.testing.assert_close(net.expand(states, durations, 1, 5), frames[1:5], atol=0, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(latent: LatentVocoder) -> None:
    rows = [random_units(n, seed=n) for n in (17, 5, 9)]
    mask = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    states, logs = latent.net.encode(pad_sequence(rows, batch_first=True, padding_value=3), mask)
    frames = latent.net.latents(states, mask)
    for i, row in enumerate(rows):
        alone, alone_logs = latent.net.encode(row[None], torch.ones(1, len(row)))
        torch.testing.assert_close(states[i, : len(row)], alone[0])
        torch.testing.assert_close(logs[i, : len(row)], alone_logs[0])
        torch.testing.assert_close(frames[i, : len(row)], latent.net.latents(alone, torch.ones(1, len(row)))[0])


def test_latents_are_scaled_back(latent: LatentVocoder, tmp_path: Path) -> None:
    latent.save(tmp_path)
    moved, heard = LatentVocoder.from_folder(tmp_path), {}
    moved.mean.fill_(0.3)
    moved.scale.fill_(2.0)
    for name, model in (("plain", latent), ("moved", moved)):
        model.generator.conv_pre.register_forward_pre_hook(lambda _, inputs, name=name: heard.update({name: inputs[0]}))
        model(random_units(9))
    torch.testing.assert_close(heard["moved"], heard["plain"] * 2.0 + 0.3)
