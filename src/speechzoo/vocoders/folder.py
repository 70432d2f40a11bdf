"""A vocoder by its folder, whichever of the two kinds it is."""

from __future__ import annotations

from pathlib import Path

from speechzoo.names.published import is_name, published
from speechzoo.vocoders.base import Vocoder
from speechzoo.vocoders.latent import LatentVocoder
from speechzoo.vocoders.unit_hifigan import UnitHiFiGAN

VOCODER_FOLDERS = (
    "the folder of a LatentVocoder (recipes/quickstart/vocoder.yaml trains one) or of fairseq's unit HiFi-GAN "
    "(config.json and g_00500000)"
)


def open_vocoder(folder: str | Path) -> Vocoder:
    """A vocoder of either kind, by its folder or its name in the zoo, in eval mode.

    Raises:
        FileNotFoundError: if the folder holds none.
        ValueError: if its files do not fit together.
    """
    folder = published(str(folder)) if is_name(folder) else Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a vocoder is {VOCODER_FOLDERS}")
    if any(folder.glob("g_*")):
        return UnitHiFiGAN(str(folder)).eval()
    return LatentVocoder.from_folder(folder)
