"""Discrete units by k-means over encoder states: training targets of a unit decoder, made offline.

The papers use mHuBERT layer 11 and 1000 clusters. Any `Encoder` serves here; the quickstart takes layer 3 of Whisper,
whose units are ASR-supervised and must not be called HuBERT units.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from speechzoo.system.digests import read_tensors, sealed_tensors
from speechzoo.system.files import write_atomically


class KMeansUnits:
    """Nearest centroid of each encoder frame, runs of the same unit merged.

    Args:
        centroids: `[K, D]` float.
    """

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids.float()

    @property
    def num_units(self) -> int:
        return self.centroids.shape[0]

    @classmethod
    def fit(cls, states: Iterable[Tensor], num_units: int, seed: int = 0, max_frames: int = 200_000) -> KMeansUnits:
        """Cluster frames (scikit-learn's MiniBatchKMeans).

        Args:
            states: `[F, D]` per utterance.
            num_units: K.
            seed: of the initialisation and of the sample of frames.
            max_frames: frames kept, drawn at random.

        Raises:
            ValueError: if there are fewer frames than units.
        """
        from sklearn.cluster import MiniBatchKMeans

        frames = torch.cat([s.float() for s in states])
        if len(frames) < num_units:
            raise ValueError(f"{len(frames)} frames cannot make {num_units} units: give more speech or fewer units")
        order = torch.randperm(len(frames), generator=torch.Generator().manual_seed(seed))[:max_frames]
        model = MiniBatchKMeans(num_units, random_state=seed, batch_size=4096, n_init=1, max_iter=30)
        return cls(torch.from_numpy(model.fit(frames[order].numpy()).cluster_centers_))

    def __call__(self, states: Tensor, merge: bool = True) -> list[int]:
        """Units of one utterance. Shape: `[F, D] -> [U]`; `merge=False` keeps one unit a frame."""
        # cdist multiplies, and rounds away small distances far from the origin: the origin moves to the centroids.
        middle = self.centroids.mean(dim=0)
        units = torch.cdist(states.float() - middle, self.centroids - middle).argmin(dim=1)
        return (torch.unique_consecutive(units) if merge else units).tolist()

    def save(self, path: str | Path) -> None:
        """Write the centroids, as safetensors; whole or not at all."""
        write_atomically(Path(path), sealed_tensors({"centroids": self.centroids}))

    @classmethod
    def load(cls, path: str | Path) -> KMeansUnits:
        """Read centroids written by `save`.

        Raises:
            DamagedError: if the file is not what was written.
            ValueError: if it holds something else.
        """
        held = read_tensors(path)
        if "centroids" not in held:
            raise ValueError(f"{path}: holds no centroids of units, but {', '.join(sorted(held)[:3]) or 'nothing'}")
        return cls(held["centroids"])
