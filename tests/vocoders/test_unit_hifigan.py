"""A unit HiFi-GAN's folder: what is wrong with it is one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_vocoders import HIFIGAN, fairseq_folder, random_units

from speechzoo.vocoders import LatentVocoder, open_vocoder

WIDE = {**HIFIGAN["dur_predictor_params"], "var_pred_kernel_size": 5}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", "[]", "config.json: holds list"),
        ("config.json", "{}", "config.json: describes no unit HiFi-GAN ('num_embeddings')"),
        ("config.json", json.dumps({**HIFIGAN, "upsample_rates": 5}), "config.json: describes no unit HiFi-GAN"),
        ("config.json", json.dumps({**HIFIGAN, "dur_predictor_params": WIDE}), "config.json: with a var_pred_k"),
        ("g_00000001", "half of it", "g_00000001: damaged, or no checkpoint of a unit HiFi-GAN"),
    ],
)
def test_a_damaged_folder_is_named(file: str, content: str, message: str, tmp_path: Path) -> None:
    (fairseq_folder(tmp_path) / file).write_text(content)
    with pytest.raises(ValueError) as error:
        open_vocoder(tmp_path)
    assert f"{tmp_path}/{message}" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[]", "holds list"), ('{"class": "LatentVocoder", "foo": 1}', "describes no LatentVocoder")],
)
def test_so_is_that_of_a_latent_vocoder(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=rf"config\.json: {message}"):
        LatentVocoder.from_folder(tmp_path)


@pytest.mark.parametrize("hop", [20, None])
def test_the_layers_say_how_many_samples_a_frame_has(hop: int | None, tmp_path: Path) -> None:
    """`code_hop_size` is for fairseq's data loader."""
    whole = open_vocoder(fairseq_folder(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**HIFIGAN, "code_hop_size": hop}))
    units, again = random_units(30), open_vocoder(tmp_path)
    assert again.hop == 10
    torch.testing.assert_close(again(units), whole(units), atol=0, rtol=0)
