"""Where tokens and units stand in the sequence that a speech LM reads, against the sequence written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechzoo.units import Schedule


def written_out(tokens: int, units: int, read: int, write: int) -> list[str]:
    """The sequence up to the end, step by step: t0 t1 ... tokens, | the separator, u0 u1 ... units, . the end."""
    text, speech, out = [f"t{i}" for i in range(tokens)], [f"u{i}" for i in range(units)] + ["."], []
    while speech:
        rest = len(text) <= read
        out += text[:read] + ["|"] * rest
        text = text[read:]
        part = speech if rest else speech[:write]
        out += part
        speech = speech[len(part) :]
    return out


@pytest.mark.parametrize(
    ("tokens", "units", "expected"),
    [
        (1, 2, "t0 | u0 u1 ."),
        (3, 5, "t0 t1 t2 | u0 u1 u2 u3 u4 ."),  # the last tokens are followed by the separator at once
        (4, 6, "t0 t1 t2 u0 u1 u2 u3 t3 | u4 u5 ."),
        (7, 9, "t0 t1 t2 u0 u1 u2 u3 t3 t4 t5 u4 u5 u6 u7 t6 | u8 ."),
        (7, 8, "t0 t1 t2 u0 u1 u2 u3 t3 t4 t5 u4 u5 u6 u7 t6 | ."),
        (7, 5, "t0 t1 t2 u0 u1 u2 u3 t3 t4 t5 u4 ."),  # units ran out first: t6 is not read
        (7, 4, "t0 t1 t2 u0 u1 u2 u3 t3 t4 t5 ."),
        (7, 0, "t0 t1 t2 ."),
    ],
)
def test_by_hand(tokens: int, units: int, expected: str) -> None:
    assert written_out(tokens, units, 3, 4) == expected.split()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_places_and_sources_give_the_sequence(data) -> None:
    """For rows of any length side by side; what stands past a row's end is nobody's business."""
    schedule = Schedule(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)))
    rows = data.draw(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=4))
    lens, unit_lens = (torch.tensor(column) for column in zip(*rows, strict=True))
    width, most = int(lens.max()), int(unit_lens.max())
    names = [f"t{i}" for i in range(width)] + ["|"] + [f"u{i}" for i in range(most)]
    places = schedule.places(lens, most + 1)
    sources = schedule.sources(lens, 40, width)
    for row, (tokens, units) in enumerate(rows):
        expected = written_out(tokens, units, schedule.read, schedule.write)
        assert [names[i] for i in sources[row, : len(expected) - 1]] == expected[:-1]
        assert places[row, units] == len(expected) - 1
        assert places[row, :units].tolist() == [expected.index(f"u{i}") for i in range(units)]


def test_reading_or_writing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="Schedule.*write"):
        Schedule(3, 0)
