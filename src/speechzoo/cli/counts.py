"""Whole numbers of a command line that have a least value."""

from __future__ import annotations

import argparse


def count(text: str, least: int = 1) -> int:
    """A number from 1, for `add_argument(type=...)`.

    Raises:
        ArgumentTypeError: it is smaller.
    """
    if (number := int(text)) < least:
        raise argparse.ArgumentTypeError(f"{number} is below {least}")
    return number


def whole(text: str) -> int:
    """A number from 0, in the same way."""
    return count(text, 0)
