"""What a sound file holds is read to its real end, whatever its headers say; what is cut off is refused."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from speechzoo.audio import LOUDEST, SILENCE, SoundError, check_question, from_array, read_audio
from speechzoo.audio.streams import streams

FORMATS = {
    "wav": {"format": "WAV", "subtype": "PCM_16"},
    "wav24": {"format": "WAV", "subtype": "PCM_24"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "caf": {"format": "CAF"},
    "w64": {"format": "W64"},
    "rf64": {"format": "RF64"},
    "flac": {"format": "FLAC"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.5},
}


def tone(samples: int, rate: int = 16_000, channels: int = 1, loud: float = 0.3) -> np.ndarray:
    """Bursts, whose frames differ in size where the bit rate varies."""
    t = np.arange(samples) / rate
    one = loud * np.sin(2 * np.pi * 440 * t) * (np.sin(2 * np.pi * 3 * t) > 0) + 0.01
    noise = np.random.default_rng(samples).normal(0, 0.05, samples) * (t % 1 > 0.7)
    return np.stack([one + noise] * channels, axis=1)


def made(kind: str, samples: int, rate: int = 16_000, channels: int = 1) -> bytes:
    file = BytesIO()
    soundfile.write(file, tone(samples, rate, channels), rate, **FORMATS[kind])
    return file.getvalue()


def length(content: bytes) -> int:
    return len(read_audio(BytesIO(content), name="a.bin"))


def without_header(mp3: bytes) -> bytes:
    """An MP3 without its first frame, which holds the count."""
    assert b"Xing" in mp3[:200] or b"Info" in mp3[:200]
    second = next(at for at in range(40, 2000) if mp3[at : at + 2] == mp3[:2] and mp3[at + 3] & 0xC0 == mp3[3] & 0xC0)
    return mp3[second:]


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(parts=st.lists(st.integers(1600, 20_000), min_size=1, max_size=4))
def test_joined_files_are_read_one_after_the_other(kind: str, parts: list[int]) -> None:
    each = [read_audio(BytesIO(made(kind, samples)), name="one") for samples in parts]
    assert [len(one) for one in each] == parts
    both = read_audio(BytesIO(b"".join(made(kind, samples) for samples in parts)), name="all")
    assert len(both) == sum(parts)
    np.testing.assert_allclose(both.numpy(), np.concatenate(each), atol=1e-6)


@pytest.mark.parametrize("kind", FORMATS)
def test_parts_of_other_rates_and_channel_counts(kind: str) -> None:
    content = made(kind, 16_000, 16_000) + made(kind, 48_000, 48_000, 2) + made(kind, 8_000, 8_000)
    assert length(content) == pytest.approx(48_000, abs=6)


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(share=st.floats(0.35, 0.9))
def test_cut_files_are_refused(kind: str, share: float) -> None:
    content = made(kind, 24_000)
    with pytest.raises(SoundError, match=r"a\.bin: (cut off|cannot be decoded)"):
        length(content[: int(len(content) * share) | 1])


def test_how_much_of_a_cut_mp3_is_missing() -> None:
    content = made("mp3", 32_000)
    with pytest.raises(SoundError, match=r"cut off, [45]\d% of the declared sound is missing"):
        length(content[: len(content) // 2])


@settings(max_examples=10, deadline=None, derandomize=True)
@given(samples=st.integers(5_000, 60_000), rate=st.sampled_from([16_000, 24_000, 44_100]), channels=st.integers(1, 2))
def test_mp3_of_variable_bit_rate_without_a_count(samples: int, rate: int, channels: int) -> None:
    bare = without_header(made("mp3", samples, rate, channels))
    each = 1152 if rate > 24_000 else 576
    decoded = round(length(bare) * rate / 16_000)
    assert abs(decoded / each - round(decoded / each)) * each <= 2  # whole frames, and all of them:
    assert samples <= decoded <= samples + 4 * each
    twice = length(bare + bare)
    assert abs(twice - 2 * length(bare)) <= 2


def test_tags_around_mp3_are_no_sound() -> None:
    bare = without_header(made("mp3", 30_000))
    front = b"ID3\x04\x00\x00\x00\x00\x02\x00" + b"\xff\xfb\x90\x00" * 64
    back = b"TAG" + b"\xff\xfb\x90" * 41 + b"\0\0"
    assert len(front) == 10 + 256 and len(back) == 128
    assert length(front + bare + back) == length(bare) > 30_000
    whole = made("mp3", 30_000)
    assert length(front + whole + back) == 30_000
    assert length(front + whole + front + whole + back) == 60_000


def test_mp3_with_more_frames_than_it_promises() -> None:
    whole = made("mp3", 30_000)
    assert length(whole + without_header(whole)) == pytest.approx(60_000, abs=3 * 1152)


@pytest.mark.parametrize("channels", [1, 2])
def test_flac_that_does_not_know_its_length(channels: int) -> None:
    content = bytearray(made("flac", 29_728, channels=channels))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    assert length(bytes(content)) == 29_728
    assert length(bytes(content) + made("flac", 1_000)) == 30_728
    content[22:26] = (100).to_bytes(4, "big")  # promises less than there is
    assert length(bytes(content)) == 29_728


@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0x7FFF_F000, 0xFFFF_FFFF])
def test_wav_from_a_pipe(size: int) -> None:
    content = bytearray(made("wav", 20_001))
    content[4:8] = content[40:44] = size.to_bytes(4, "little")
    assert length(bytes(content)) == 20_001
    assert length(bytes(content) + made("wav", 500)) == 20_501


def test_lost_ogg_pages_are_told() -> None:
    content = made("ogg", 200_000)
    pages = [at for at in range(len(content)) if content[at : at + 4] == b"OggS"]
    assert len(pages) > 5
    with pytest.raises(SoundError, match="a.bin: cut off"):
        length(content[: pages[3]] + content[pages[4] :])


def test_one_stream_is_found_in_one_file() -> None:
    assert {kind: len(streams(made(kind, 30_000))) for kind in FORMATS} == dict.fromkeys(FORMATS, 1)


@pytest.mark.parametrize("rate", [44_100, 48_000, 192_000])
def test_no_sample_is_left_at_16_khz(rate: int) -> None:
    for samples in (1, 0):
        file = BytesIO()
        soundfile.write(file, np.full(samples, 0.5), rate, format="WAV")
        with pytest.raises(SoundError, match="are none at 16000 Hz|holds no samples"):
            length(file.getvalue())


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("scale", [128, 32768, 2.0**31])
@pytest.mark.parametrize("channels", [1, 2])
def test_float_files_of_whole_numbers_are_refused(subtype: str, scale: float, channels: int) -> None:
    file = BytesIO()
    soundfile.write(file, tone(16_000, channels=channels) * scale, 16_000, format="WAV", subtype=subtype)
    with pytest.raises(SoundError, match="holds samples up to .* full scale is 1"):
        length(file.getvalue())


def test_mastered_sound_may_go_beyond_full_scale() -> None:
    file = BytesIO()
    soundfile.write(file, tone(16_000, loud=1.9), 16_000, format="WAV", subtype="FLOAT")
    assert read_audio(BytesIO(file.getvalue())).abs().max() > 1.8
    assert SILENCE < 1 < LOUDEST


@pytest.mark.parametrize(("dtype", "full"), [(np.int8, 128), (np.int16, 32768), (np.int32, 2**31), (np.uint8, 128)])
def test_whole_numbers_are_divided_by_their_range(dtype: type, full: int) -> None:
    zero = 128 if dtype == np.uint8 else 0
    values = np.array([zero, zero + full // 2, zero - full], dtype=dtype)
    np.testing.assert_allclose(from_array(values, "x").numpy(), [0.0, 0.5, -1.0])


def test_arrays_that_are_no_sound() -> None:
    for wrong, message in [
        (np.array([0, 5, 7]), "int64 have no known full scale"),
        (np.array([True, False]), "bool have no known"),
        (np.zeros((2, 5)), r"not of shape \[2, 5\]"),
        (np.zeros(0), r"not of shape \[0\]"),
        (np.array([0.1, np.nan]), "not finite"),
        (np.array([0.1, 20_000.0]), "full scale is 1"),
    ]:
        with pytest.raises(SoundError, match=message):
            from_array(wrong, "x")
    with pytest.raises(SoundError, match="x: silent"):
        check_question(from_array(np.full(100, 1e-4), "x"), "x")


def test_mp3_that_ends_inside_the_header_of_a_joined_one() -> None:
    """Every such end is sound or a SoundError, whatever the header would have said."""
    one = made("mp3", 8000)
    mark = max(one.find(b"Xing", 0, 200), one.find(b"Info", 0, 200))
    assert mark > 0
    for more in range(mark + 4, mark + 16):
        assert length(one + one[:more]) == length(one)


@pytest.mark.parametrize("kind", ["wav", "aiff", "w64", "flac"])
@pytest.mark.parametrize("size", [10, 2000])
def test_tags_before_other_formats_take_no_sound(kind: str, size: int) -> None:
    front = b"ID3\x04\x00\x00\x00\x00" + bytes([size >> 7, size & 127]) + bytes(size)
    assert length(front + made(kind, 8_000)) == 8_000
