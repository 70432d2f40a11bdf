"""Unit decoders and unit extraction."""

from speechzoo.units.base import UnitDecoder, UnitOutput
from speechzoo.units.ctc import CTCUnitDecoder, collapse

__all__ = ["CTCUnitDecoder", "UnitDecoder", "UnitOutput", "collapse"]
