"""Unit decoders and unit extraction."""

from speechzoo.generation.units import UnitStream
from speechzoo.units.base import UnitDecoder, UnitOutput
from speechzoo.units.ctc import CTCUnitDecoder, collapse
from speechzoo.units.kmeans import KMeansUnits

__all__ = ["CTCUnitDecoder", "KMeansUnits", "UnitDecoder", "UnitOutput", "UnitStream", "collapse"]
