"""Unit decoders and unit extraction."""

from speechzoo.units.base import UnitDecoder, UnitOutput, UnitStream
from speechzoo.units.ctc import CTCUnitDecoder, collapse
from speechzoo.units.kmeans import KMeansUnits

__all__ = ["CTCUnitDecoder", "KMeansUnits", "UnitDecoder", "UnitOutput", "UnitStream", "collapse"]
