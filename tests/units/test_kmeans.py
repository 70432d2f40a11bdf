"""Units by k-means: nearest centroid, runs merged, the same for the same seed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from speechzoo.units import KMeansUnits

CORNERS = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])


def speech(seed: int = 0) -> list[torch.Tensor]:
    """Utterances whose frames lie around three corners."""
    generator = torch.Generator().manual_seed(seed)
    return [CORNERS[torch.arange(60) % 3] + 0.1 * torch.randn(60, 2, generator=generator) for _ in range(4)]


def test_each_frame_takes_its_nearest_centroid_and_runs_are_merged():
    units = KMeansUnits(CORNERS)
    states = torch.tensor([[0.1, 0.2], [0.0, 0.1], [8.0, 1.0], [1.0, 8.0], [0.0, 8.0], [1.0, 0.0]])
    assert units(states, merge=False) == [0, 0, 1, 2, 2, 0]
    assert units(states) == [0, 1, 2, 0]
    assert units(states.to(torch.bfloat16)) == [0, 1, 2, 0] and units.num_units == 3


def test_far_from_the_origin_a_frame_takes_its_nearest_centroid_too():
    """Where one channel is large throughout, as some encoders have them; in any company."""
    corners = CORNERS + torch.tensor([50_000.0, 0.0])
    states = torch.tensor([[0.0, 4.0], [0.0, 5.0], [5.0, 0.0]]).repeat(20, 1) + corners[0]
    assert KMeansUnits(corners)(states, merge=False) == [0, 2, 1] * 20


def test_clusters_are_found_and_the_seed_decides():
    pytest.importorskip("sklearn")
    found = KMeansUnits.fit(speech(), 3)
    assert torch.cdist(CORNERS, found.centroids).min(dim=1).values.max() < 0.1
    assert KMeansUnits.fit(speech(), 3).centroids.equal(found.centroids)
    assert KMeansUnits.fit(speech(), 3, max_frames=50).centroids.shape == (3, 2)


def test_too_few_frames_are_refused():
    pytest.importorskip("sklearn")
    with pytest.raises(ValueError, match="60 frames cannot make 61 units"):
        KMeansUnits.fit(speech()[:1], 61)


def test_saved_centroids_come_back(tmp_path):
    KMeansUnits(CORNERS).save(tmp_path / "units.safetensors")
    assert KMeansUnits.load(tmp_path / "units.safetensors").centroids.equal(CORNERS)


def test_weights_of_something_else_are_refused(tmp_path):
    save_file({"adaptor.weight": CORNERS}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: holds no centroids of units, but adaptor\.weight"):
        KMeansUnits.load(tmp_path / "model.safetensors")
