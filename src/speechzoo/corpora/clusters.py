"""k-means for units: trained on states, judged, and brought over from fairseq's pickled files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from speechzoo.units import KMeansUnits


def judge(
    kmeans: KMeansUnits, states: Sequence[Tensor], labels: Sequence[Sequence[str]] | None = None
) -> dict[str, Any]:
    """How good clusters are for some speech.

    Args:
        states: `[F, D]` per clip.
        labels: phones per frame ("" for none), for the measures of HuBERT's paper (arXiv 2106.07447, section IV-F).

    Returns:
        `frames`, `inertia` (mean squared distance to the nearest centroid), `used` (clusters with a frame),
        `perplexity` (of their use); with labels `phone_purity`, `cluster_purity` and `pnmi` (mutual information
        of phone and cluster over the entropy of phones).
    """
    units = [kmeans(state, merge=False) for state in states]
    flat = torch.tensor([unit for some in units for unit in some])
    frames = torch.cat([state.float() for state in states])
    share = torch.bincount(flat, minlength=kmeans.num_units).double() / len(flat)
    told: dict[str, Any] = {
        "frames": len(flat),
        "inertia": float((frames - kmeans.centroids[flat]).square().sum(1).mean()),
        "used": int((share > 0).sum()),
        "perplexity": float(_entropy(share).exp()),
    }
    if labels is not None:
        pairs = [
            (label, unit)
            for some, said in zip(units, labels, strict=True)
            for label, unit in zip(said, some, strict=True)
            if label
        ]
        told |= purity(pairs)
    return told


def purity(pairs: Iterable[tuple[str, int]]) -> dict[str, float]:
    """Phone purity, cluster purity and PNMI of frames with a phone and a cluster.

    Raises:
        ValueError: if there are none.
    """
    pairs = list(pairs)
    if not pairs:
        raise ValueError("no frame has a phone label: do the labels name the same clips?")
    phones = {phone: row for row, phone in enumerate(sorted({phone for phone, _ in pairs}))}
    joint = torch.zeros(len(phones), 1 + max(unit for _, unit in pairs), dtype=torch.float64)
    rows = torch.tensor([phones[phone] for phone, _ in pairs])
    columns = torch.tensor([unit for _, unit in pairs])
    joint.index_put_((rows, columns), torch.ones(len(pairs), dtype=torch.float64), accumulate=True)
    joint /= joint.sum()
    of_phones, of_units = _entropy(joint.sum(1)), _entropy(joint.sum(0))
    mutual = of_phones + of_units - _entropy(joint.flatten())
    return {
        "phone_purity": float(joint.max(0).values.sum()),
        "cluster_purity": float(joint.max(1).values.sum()),
        "pnmi": float(mutual / of_phones) if of_phones > 0 else 1.0,
    }


def _entropy(share: Tensor) -> Tensor:
    return -torch.xlogy(share, share).sum()


def phones_of_frames(phones: Sequence[Sequence[Any]], times: Tensor) -> list[str]:
    """The phone at each time of spans [start s, end s, phone]; "" between them."""
    found = [""] * len(times)
    for start, end, phone in phones:
        first, last = np.searchsorted(times.numpy(), [start, end])
        found[first:last] = [str(phone)] * (last - first)
    return found


# -- fairseq's files ---------------------------------------------------------------------------------------------------

ESTIMATORS = ("KMeans", "MiniBatchKMeans")
RANDOM = ("__randomstate_ctor", "__RandomState_ctor", "__bit_generator_ctor", "MT19937")
KNOWN: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
    **{
        (f"numpy.{core}.multiarray", "scalar"): lambda kind, data: np.frombuffer(data, kind)[0]
        for core in ("core", "_core")
    },
}


class _Plain:
    """Stands for an estimator or a random state of a pickle: keeps what it was told, does nothing."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def convert_pickle(source: Path) -> KMeansUnits:
    """The clusters of a file that scikit-learn and joblib pickled, as fairseq's `..._km1000.bin`.

    Pickles can run any code of whoever made them. This reads with an unpickler that knows only arrays and the names of
    k-means estimators, for which it puts empty objects, and refuses everything else; compressed files are not read.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if joblib is not installed.
        ValueError: if something else is pickled in it, or no clusters.
    """
    try:
        from joblib import numpy_pickle
    except ImportError as error:
        raise ImportError("fairseq's k-means files are joblib's: pip install joblib") from error
    content = source.read_bytes()

    class Wrapper(numpy_pickle.NumpyArrayWrapper):
        def read(self, unpickler: Any, *more: Any) -> Any:
            if np.dtype(self.dtype).hasobject:  # what is in such an array is a pickle of its own
                raise ValueError(f"{source}: holds an array of objects, which is not read")
            self.subclass, self.allow_mmap = np.ndarray, False
            return super().read(unpickler, *more)

    class Restricted(numpy_pickle.NumpyUnpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in KNOWN:
                return KNOWN[module, name]
            if module == "joblib.numpy_pickle" and name == "NumpyArrayWrapper":
                return Wrapper
            if (module.startswith("sklearn.cluster.") and name in ESTIMATORS) or (
                module.startswith("numpy.random") and name in RANDOM
            ):
                return _Plain
            raise ValueError(f"{source}: asks for {module}.{name}, which k-means does not need: it is not read")

    try:
        found = Restricted(str(source), io.BytesIO(content), True).load()
    except ValueError:
        raise
    except Exception as error:  # an unpickler fails in as many ways as there are bytes
        raise ValueError(f"{source}: is no joblib pickle, or compressed ({type(error).__name__}: {error})") from error
    centers = getattr(found, "cluster_centers_", None)
    if not isinstance(centers, np.ndarray) or centers.ndim != 2 or not np.isfinite(centers).all():
        raise ValueError(f"{source}: holds no clusters (cluster_centers_, [K, D])")
    return KMeansUnits(torch.from_numpy(np.ascontiguousarray(centers, dtype=np.float32)))
