"""Where the streams of a sound file begin and end: files are joined, and headers promise more or less than there is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from struct import unpack_from


@dataclass(frozen=True)
class Stream:
    """One stream of a sound file, in a form that libsndfile reads to its end.

    Attributes:
        least: samples that have to come out of it, as far as that is known before it is decoded.
        missing: share of it that its header promises and the file lacks.
        cut: it ends in the middle of a frame or page, or lacks pages.
        endless: nothing in it says how long it is.
    """

    content: bytes
    least: int = 0
    missing: float = 0.0
    cut: bool = False
    endless: bool = False

    def open(self) -> BytesIO:
        """The content as a file that is read from front to back."""
        return _Endless(self.content) if self.endless else BytesIO(self.content)


class _Endless(BytesIO):
    """Says that it is very long, so that a length which is guessed from its size and its first bit rate is no limit."""

    asked = False

    def seek(self, offset: int, whence: int = 0) -> int:
        self.asked = whence == 2 and offset == 0
        return super().seek(offset, whence)

    def tell(self) -> int:
        asked, self.asked = self.asked, False
        return 1 << 40 if asked else super().tell()


HEADS = re.compile(
    rb"(?:RIFF|RIFX|RF64).{4}WAVE|FORM.{4}AIF[FC]|\.snd\x00\x00.{6}\x00\x00\x00[\x01-\x1b]|caff\x00\x01\x00\x00desc"
    rb"|riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00",
    re.DOTALL,
)
"""Beginnings of wav, AIFF, AU, CAF and Wave64 files: long enough to be no samples."""
FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")


def streams(content: bytes) -> list[Stream]:
    """The streams of a sound file, in order; all of it as one where its format is not known to be joined."""
    start = _skip_id3(content, 0)
    found: list[Stream] = []
    if HEADS.match(content, start):
        content = content[start:]  # libsndfile would count the tag's bytes to the sound
        found = [Stream(_sized(part), missing=_missing_of_rf64(part)) for part in _split(content, HEADS)]
    elif FLAC.match(content, start):
        found = [_flac(part) for part in _split(content[start:], FLAC)]
    elif content.startswith(b"OggS"):
        found = _ogg(content)
    elif start or _resume(content, start - 1, START) < min(len(content), start + START):
        found = _mpeg(content, start)
    return found or [Stream(content)]


START = 8192
"""Bytes within which the first two frames of MPEG audio begin; other formats may show the like further on."""


def _sized(content: bytes) -> bytes:
    """A wav whose header was written before its sound, and says 0, with the size of the sound that follows."""
    at = 12
    while content[:4] == b"RIFF" and at + 8 < len(content):
        size = unpack_from("<I", content, at + 4)[0]
        if content[at : at + 4] == b"data":
            whole = unpack_from("<I", content, 4)[0]
            if size == 0 and (whole <= at or whole >= 0x7FFF_0000):  # else there is none, and other chunks follow
                rest = min(len(content) - at - 8, 0xFFFF_FFFF)
                return content[: at + 4] + rest.to_bytes(4, "little") + content[at + 8 :]
            break
        at += 8 + size + size % 2
    return content


def _missing_of_rf64(content: bytes) -> float:
    """Share of a wav of 64-bit sizes that is not there (EBU Tech 3306); libsndfile does not tell."""
    if content[:4] != b"RF64" or content[12:16] != b"ds64" or len(content) < 28:
        return 0.0
    size = unpack_from("<Q", content, 20)[0] + 8
    return 1 - len(content) / size if len(content) < size < 1 << 48 else 0.0


def _split(content: bytes, mark: re.Pattern[bytes]) -> list[bytes]:
    """Parts that begin as the whole does: the four letters are found much faster than the pattern."""
    letters, starts, at = content[:4], [0], content.find(content[:4], 4)
    while at >= 0:
        if mark.match(content, at):
            starts.append(at)
        at = content.find(letters, at + 4)
    return [content[start:end] for start, end in zip(starts, [*starts[1:], len(content)], strict=True)]


def _flac(content: bytes) -> Stream:
    """With its number of samples marked as unknown (RFC 9639, 8.2), so that what is read does not depend on it."""
    if len(content) < 26:
        return Stream(content)
    promised = int.from_bytes(content[21:26], "big") & ((1 << 36) - 1)
    return Stream(content[:21] + bytes([content[21] & 0xF0]) + bytes(4) + content[26:], least=promised)


def _skip_id3(content: bytes, at: int) -> int:
    while content[at : at + 3] == b"ID3" and at + 10 <= len(content):
        size = content[at + 6 : at + 10]
        at += 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3]) + 10 * bool(content[at + 5] & 0x10)
    return at


def _ogg(content: bytes) -> list[Stream]:
    """The links of a chain: a first page after pages that are none begins the next (RFC 3533)."""
    links, start, at, begun, damaged = [], 0, 0, False, False
    pages: dict[bytes, int] = {}
    while True:
        at = content.find(b"OggS", at)
        if at < 0 or at + 27 > len(content):
            cut = at >= 0
            break
        table = content[at + 27 : at + 27 + content[at + 26]]
        end = at + 27 + content[at + 26] + sum(table)
        if end > len(content):
            cut = True
            break
        first = bool(content[at + 5] & 2)
        if first and begun:
            links.append(Stream(content[start:at], cut=damaged))
            start, begun, damaged, pages = at, False, False, {}
        serial, number = content[at + 14 : at + 18], unpack_from("<I", content, at + 18)[0]
        damaged |= serial in pages and number != pages[serial] + 1
        pages[serial] = number
        begun |= not first
        at = end
    return [*links, Stream(content[start:], cut=cut or damaged)]


@dataclass(frozen=True)
class _Frame:
    """One frame of MPEG audio. `kind` is version, layer, sampling rate and mono; a stream is all of one kind."""

    at: int
    size: int
    kind: tuple[int, int, int, bool]
    side: int  # bytes between its header and its data


RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version
KBITS = {  # by (version 1?, layer); ISO/IEC 11172-3 and 13818-3
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}

SAMPLES = {(True, 1): 384, (True, 2): 1152, (True, 3): 1152, (False, 1): 384, (False, 2): 1152, (False, 3): 576}
PADDING = 2 * 4095 + 1152
"""Samples of delay and padding that a header frame may have taken off, at most."""


def _frame(content: bytes, at: int) -> _Frame | None:
    head = content[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, bitrate, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hz, mono, padding = RATES[version][rate], head[3] >> 6 == 3, head[2] >> 1 & 1
    bits = 1000 * KBITS[version == 3, layer][bitrate - 1]
    samples = SAMPLES[version == 3, layer]
    size = 4 * (12 * bits // hz + padding) if layer == 1 else samples // 8 * bits // hz + padding
    side = (17 if mono else 32) if version == 3 else (9 if mono else 17)
    return _Frame(at, size, (version, layer, hz, mono), side)


def _mpeg(content: bytes, at: int) -> list[Stream]:
    """Streams of MPEG audio, counted frame by frame.

    Size and first bit rate say nothing of the length where the bit rate varies, and the count of a first header frame
    says nothing of what was joined to it. Empty if frames have no size of their own (free format).
    """
    found: list[Stream] = []
    run: list[_Frame] = []
    while at < len(content):
        frame = _frame(content, at)
        whole = frame is not None and at + frame.size <= len(content) + 1  # the last byte may be left out padding
        if frame is not None and run and frame.kind != run[-1].kind and not _follows(content, frame):
            frame = None
        if frame is not None and not run and not found and not _follows(content, frame):
            frame = None
        if frame is None:
            at = _resume(content, at)
            continue
        if run and (frame.kind != run[-1].kind or _promised(content, frame) is not None):
            found.append(_counted(content, run, False))
            run = []
        if not whole:
            return [*found, _counted(content, run, True)] if run else found
        run.append(frame)
        at += frame.size
    return [*found, _counted(content, run, False)] if run else found


def _follows(content: bytes, frame: _Frame) -> bool:
    """Whether another frame of the same kind, or the end, comes after this one."""
    end = frame.at + frame.size
    if end >= len(content) or content[end : end + 3] in (b"TAG", b"ID3"):
        return end <= len(content) + 1
    after = _frame(content, end)
    return after is not None and after.kind == frame.kind


def _resume(content: bytes, at: int, within: int | None = None) -> int:
    """The next place where a frame begins that another one follows, past tags and what is none.

    Args:
        within: bytes to look through; None for all.
    """
    if content[at : at + 3] == b"ID3" and at >= 0:
        return max(_skip_id3(content, at), at + 1)
    if content[at : at + 3] == b"TAG" and len(content) - at <= 128:
        return len(content)
    last = len(content) if within is None else min(len(content), at + 1 + within)
    while True:
        at = content.find(b"\xff", at + 1, last)
        if at < 0:
            return len(content)
        frame = _frame(content, at)
        if frame is not None and _follows(content, frame):
            return at


def _promised(content: bytes, frame: _Frame) -> int | None:
    """Frames that a header frame (Xing, Info, VBRI) promises; 0 if it does not say; None for a frame of sound."""
    mark = frame.at + 4 + frame.side
    if frame.kind[1] == 3 and content[mark : mark + 4] in (b"Xing", b"Info"):
        flags, frames = content[mark + 4 : mark + 8], content[mark + 8 : mark + 12]  # shorter at the end of a cut file
        return int.from_bytes(frames, "big") if int.from_bytes(flags, "big") & 1 else 0
    if frame.kind[1] == 3 and content[frame.at + 36 : frame.at + 40] == b"VBRI":
        return int.from_bytes(content[frame.at + 50 : frame.at + 54], "big")
    return None


def _counted(content: bytes, run: list[_Frame], cut: bool) -> Stream:
    first, end = run[0], run[-1].at + run[-1].size
    promised = _promised(content, first)
    sound = run if promised is None else run[1:]
    count, each = len(sound), SAMPLES[first.kind[0] == 3, first.kind[1]]
    least = count * each - PADDING
    if first.kind[1] != 3:  # no header frames there, and hardly ever a variable bit rate
        return Stream(content[first.at : end], least, cut=cut, endless=True)
    missing = 1 - count / promised if promised else 0.0
    mark = first.at + 4 + first.side
    if not promised or content[mark : mark + 4] not in (b"Xing", b"Info"):
        if promised and promised - count == 1:
            missing = 0.0  # programs disagree on whether VBRI counts itself
        return Stream(content[sound[0].at : end] if sound else b"", least, missing, cut and not promised, True)
    head = bytearray(content[first.at : first.at + first.size])  # it may also tell the encoder's delay
    if count > promised:
        head[mark - first.at + 8 : mark - first.at + 12] = count.to_bytes(4, "big")
    if content[mark + 7] & 2:  # else mpg123 warns on standard error
        head[mark - first.at + 12 : mark - first.at + 16] = (end - first.at).to_bytes(4, "big")
    return Stream(bytes(head) + content[first.at + first.size : end], least, missing, cut and count < promised)
