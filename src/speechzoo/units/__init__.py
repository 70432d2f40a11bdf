"""Unit decoders and unit extraction."""

from speechzoo.generation.units import UnitStream
from speechzoo.units.autoregressive import ARUnitDecoder
from speechzoo.units.base import UnitDecoder, UnitOutput
from speechzoo.units.ctc import CTCUnitDecoder, collapse
from speechzoo.units.kmeans import KMeansUnits
from speechzoo.units.schedule import Schedule

__all__ = [
    "ARUnitDecoder",
    "CTCUnitDecoder",
    "KMeansUnits",
    "Schedule",
    "UnitDecoder",
    "UnitOutput",
    "UnitStream",
    "collapse",
]
