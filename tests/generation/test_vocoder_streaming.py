"""Sound in pieces is the sound of the whole: any pieces, any chunk size, no clicks, bounded work."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vocoders import KINDS, NUM_UNITS, random_units, vocoder
from torch import Tensor

from speechzoo.vocoders import Vocoder, VocoderStream
from speechzoo.vocoders.window import STEP


@cache
def made(kind: str) -> Vocoder:
    return vocoder(kind, Path(mkdtemp()))


def spoken(stream: VocoderStream, units: Tensor, cuts: list[int]) -> list[Tensor]:
    """All chunks of an answer whose units come in pieces that end at the cuts; empty ones left out."""
    ends = sorted({min(cut, len(units)) for cut in cuts} | {len(units)})
    pieces = [units[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    chunks = [*(stream.push(piece) for piece in pieces), stream.flush()]
    return [chunk for chunk in chunks if len(chunk)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(
    units=st.lists(st.integers(0, NUM_UNITS - 1), max_size=90),
    cuts=st.lists(st.integers(0, 90), max_size=30),
    chunk=st.integers(1, 25),
)
def test_any_pieces_equal_the_whole(kind: str, units: list[int], cuts: list[int], chunk: int) -> None:
    sequence = torch.tensor(units, dtype=torch.long)
    chunks = spoken(made(kind).stream(chunk), sequence, cuts)
    whole = made(kind)(sequence)
    torch.testing.assert_close(torch.cat([whole[:0], *chunks]), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_unit_by_unit_sound_comes_before_the_end_and_in_chunks_of_the_size(kind: str) -> None:
    units, omega = random_units(120), 10
    model = made(kind)
    stream = model.stream(omega)
    _, durations = model.encode(units)
    ends = durations.cumsum(0) * model.hop
    told, first = 0, None
    for number, unit in enumerate(units, start=1):
        chunk = stream.push(unit[None])
        if not len(chunk):
            continue
        first = first or number
        told += len(chunk)
        count = int((ends <= told).sum())
        assert int(ends[count - 1]) == told  # whole units
        assert len(chunk) >= int(durations[count - omega : count].sum()) * model.hop  # at least omega of them
    worst = omega + model.unit_reach.right + model.frame_reach.right  # a unit has a frame at least
    assert first is not None and omega < first <= worst
    assert 0 < told < int(ends[-1])
    assert told + len(stream.flush()) == int(ends[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_no_chunk_waits_longer_than_its_context(kind: str) -> None:
    """The same units one earlier are not enough: what a chunk waits for it also needs."""
    model, units = made(kind), random_units(60, seed=2)
    stream = model.stream(5)
    first = next(n for n, unit in enumerate(units, start=1) if len(stream.push(unit[None])))
    _, durations = model.encode(units)
    ends = durations.cumsum(0)
    known = first - 1 - model.unit_reach.right
    assert int(ends[known - 1]) - model.frame_reach.right < int(ends[4])


@pytest.mark.parametrize("kind", KINDS)
def test_seams_are_as_smooth_as_the_rest(kind: str) -> None:
    """At the seams nothing differs from the whole, in samples, steps between samples, and spectrum."""
    model, units = made(kind), random_units(80, seed=4)
    whole = model(units)
    chunks = spoken(model.stream(10), units, list(range(0, 80, 5)))
    assert len(chunks) > 3
    seams = torch.tensor([len(chunk) for chunk in chunks]).cumsum(0)[:-1]
    wave = torch.cat(chunks)
    assert (wave - whole).abs().max() < 1e-5
    torch.testing.assert_close(wave[seams] - wave[seams - 1], whole[seams] - whole[seams - 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(spectrum(wave), spectrum(whole), atol=1e-4, rtol=0)
    # The same measure finds the seams of chunks that were made alone.
    alone = spoken(model.stream(10, context_units=0), units, list(range(0, 80, 5)))
    first = torch.cat(alone)[: len(alone[0])]
    assert (first - whole[: len(first)])[-model.hop :].abs().max() > 1e-2


def spectrum(wave: Tensor) -> Tensor:
    """Magnitudes of short windows."""
    return torch.stft(wave, 32, 8, window=torch.hann_window(32), return_complex=True).abs()


@pytest.mark.parametrize("kind", KINDS)
def test_less_context_is_sooner_and_less_exact(kind: str) -> None:
    model, units = made(kind), random_units(80, seed=5)
    whole, firsts, errors = model(units), [], []
    for context in (1, None):
        stream, chunks = model.stream(6, context), []
        for number, unit in enumerate(units, start=1):
            chunks.append(stream.push(unit[None]))
            if len(firsts) == len(errors) and len(chunks[-1]):
                firsts.append(number)
        wave = torch.cat([*chunks, stream.flush()])
        shared = min(len(wave), len(whole))
        errors.append(float((wave[:shared] - whole[:shared]).abs().max()) + abs(len(wave) - len(whole)))
    assert firsts[0] == 7 < firsts[1]
    assert errors[0] > 1e-3 and errors[1] < 1e-5


def test_more_context_than_needed_waits_no_longer() -> None:
    model, units = made("latent"), random_units(60, seed=6)
    exact, patient = model.stream(4), model.stream(4, 1000)
    for unit in units:
        torch.testing.assert_close(patient.push(unit[None]), exact.push(unit[None]), atol=0, rtol=0)


def test_without_context_each_chunk_is_made_alone() -> None:
    """The released demo's way: cut when there are omega units, forget what came before."""
    model, units = made("unit_hifigan"), random_units(25, seed=7)
    stream = model.stream(10, context_units=0)
    chunks = [stream.push(units[a : a + 4]) for a in range(0, 24, 4)] + [stream.push(units[24:]), stream.flush()]
    expected = {2: units[:12], 5: units[12:24], 7: units[24:]}
    for index, chunk in enumerate(chunks):
        alone = model(expected[index]) if index in expected else torch.zeros(0)
        torch.testing.assert_close(chunk, alone, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_work_and_memory_do_not_grow_with_the_answer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rendered, encoded = made(kind), [], []
    encode = model.encode
    model.generator.conv_pre.register_forward_hook(lambda _, args, out: rendered.append(args[0].shape[-1]))
    monkeypatch.setattr(model, "encode", lambda units: encoded.append(len(units)) or encode(units))
    stream, held, chunks = model.stream(10), [], 0
    units = random_units(600, seed=8)
    for unit in units:
        chunks += len(stream.push(unit[None])) > 0
        held.append(len(stream._units))
    stream.flush()
    _, durations = encode(units)
    reach, ahead = model.frame_reach, model.unit_reach.right + model.frame_reach.right
    assert sum(rendered) <= int(durations.sum()) + (chunks + 1) * (reach.left + reach.right + STEP)
    most = model.unit_reach.left + reach.left + 10 + ahead
    assert max(held) <= most and max(encoded) <= most


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_rows(kind: str) -> None:
    model = made(kind)
    rows = [random_units(n, seed=n) for n in (7, 0, 31, 1)]
    for wave, row in zip(model(rows), rows, strict=True):
        torch.testing.assert_close(wave, model(row), atol=0, rtol=0)
        assert len(wave) == int(model.encode(row)[1].sum()) * model.hop if len(row) else not len(wave)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_gives_nothing_out(kind: str) -> None:
    stream = made(kind).stream(3)
    none = torch.zeros(0, dtype=torch.long)
    assert not len(made(kind)(none)) and not len(stream.push(none)) and not len(stream.flush())


@pytest.mark.parametrize("kind", KINDS)
def test_after_flush_the_stream_speaks_another_answer(kind: str) -> None:
    model, stream = made(kind), made(kind).stream(5)
    for seed in (1, 2):
        units = random_units(33, seed)
        wave = torch.cat([stream.push(units[:20]), stream.push(units[20:]), stream.flush()])
        torch.testing.assert_close(wave, model(units), atol=1e-5, rtol=0)
        assert not len(stream.flush())


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_units_are_refused_and_leave_the_stream_as_it_was(kind: str) -> None:
    model, stream, units = made(kind), made(kind).stream(5), random_units(9)
    start = stream.push(units)
    for bad in (torch.tensor([0, NUM_UNITS]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=f"knows 0 ... {NUM_UNITS - 1}"):
            stream.push(bad)
        with pytest.raises(ValueError, match=f"knows 0 ... {NUM_UNITS - 1}"):
            model(bad)
    with pytest.raises(ValueError, match="a list for several"):
        model(torch.zeros(2, 3, dtype=torch.long))
    torch.testing.assert_close(torch.cat([start, stream.flush()]), model(units), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("chunk", "context", "word"), [(0, None, "chunk_units"), (3, -1, "context_units")])
def test_senseless_sizes_are_refused(chunk: int, context: int | None, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        made("latent").stream(chunk, context)
