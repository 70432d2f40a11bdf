"""`speechzoo ask`: put spoken or written questions to a model; hear and read the answers, while they are being made."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import soundfile

from speechzoo.data.parts import is_data
from speechzoo.system.files import keep_inputs, same_file
from speechzoo.system.terminal import quiet
from speechzoo.talk.options import generation
from speechzoo.talk.questions import check_audible, question, read_history, sounds_of, write_history
from speechzoo.talk.session import Session
from speechzoo.talk.sources import open_talker
from speechzoo.text import Message
from speechzoo.types import AudioChunk, StreamEnd, TextDelta


def ask(args: argparse.Namespace) -> int:
    """Answer what the arguments of `speechzoo ask` ask; returns the exit code."""
    # Questions first: a wrong name should not cost the loading of a model.
    history = read_history(args.history) if args.history else []
    keep_inputs(*_paths(args, history))
    kind = ".wav" if args.out is None or args.out.is_dir() else args.out.suffix
    if kind[1:].upper() not in soundfile.available_formats() or kind.lower() == ".raw":  # which says nothing of itself
        raise ValueError(f"--out {args.out}: names no kind of sound file: .wav, .flac, .mp3 or .ogg")
    spoken = [] if args.questions == ["-"] else [(name, question(name, args.text)) for name in args.questions]
    if not args.questions:
        spoken = [("text", question(text=args.text))]
    quiet(results_only=True)
    talker = open_talker(args.model, args.vocoder, args.device, args.trust_code)
    if args.out is not None and not talker.sounds:
        raise ValueError(f"--out: {talker.missing_sound()}")
    for _, message in spoken:
        check_audible(talker.model, [*history, message])
    session = Session(talker, history, **generation(args))
    mute = 0
    for name, message in spoken or _lines(sys.stdin):
        if not args.chat:
            session = Session(talker, history, **generation(args))
        target = args.out
        if target is not None and target.is_dir():
            target = target / f"{Path(name).stem}.wav"
        end = tell(session, message, sys.stdout, args.stream, target)
        if args.verbose:
            print(f"{name}: {times(end)}", file=sys.stderr)
        if target is not None and not end.audio_seconds:
            print(f"speechzoo ask: {name}: the answer has no units, so {target} was not written", file=sys.stderr)
            mute += 1
        if args.save_history:  # now, as the next question may be no good
            write_history(args.save_history, session.history)
    return int(mute > 0)


def _paths(args: argparse.Namespace, history: Sequence[Message]) -> tuple[list[Path], list[Path]]:
    """The files that will be written, and those that are read."""
    heard = [Path(part["path"]) for part in sounds_of(history) if not is_data(part["path"])]
    told = [Path(name) for name in args.questions if name != "-"]
    read = [*told, *heard, *([Path(args.history)] if args.history else [])]
    written = [Path(args.save_history)] if args.save_history else []
    if args.save_history and args.history and same_file(Path(args.save_history), Path(args.history)):
        read.remove(Path(args.history))  # it is to go on: what is written begins with what was read
    if args.out is not None and not args.out.is_dir():
        written.append(args.out)
    elif args.out is not None and told:
        written += [args.out / f"{name.stem}.wav" for name in told]
    elif args.out is not None:
        # One of line-1.wav, line-2.wav, ...: how many is not known yet.
        written += [path for path in args.out.iterdir() if path.name.lower().startswith("line-")]
    return written, [*read, *(path for path in (Path(args.model), Path(args.vocoder or "")) if path.is_file())]


def _lines(source: TextIO) -> Iterator[tuple[str, Message]]:
    """Questions of a text, one a line.

    Raises:
        ValueError: if a line is not in the text's encoding.
    """
    number = 0
    try:
        for number, line in enumerate(source, start=1):
            # Windows' editors begin files with a byte-order mark, which a tokenizer would read.
            if text := line.removeprefix("\ufeff").strip():
                yield f"line-{number}", question(text=text)
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input, after line {number}: not a text in {error.encoding} ({error})") from error


def times(end: StreamEnd) -> str:
    """How long an answer took, in one line."""
    firsts = {"text": end.first_text_seconds, "unit": end.first_units_seconds, "audio": end.first_audio_seconds}
    parts = [f"first {name} {seconds:.3f} s" for name, seconds in firsts.items() if seconds is not None]
    parts += [f"total {end.seconds:.3f} s", f"{len(end.ids)} tokens"]
    if end.audio_seconds:
        parts.append(f"{end.audio_seconds:.2f} s of sound, {end.seconds / end.audio_seconds:.2f} x its length")
    if end.heard:
        parts.append(f"heard {' / '.join(end.heard)!r}")
    if not end.stopped:
        parts.append("cut off by --max-new-tokens")
    return ", ".join(parts)


def tell(session: Session, message: Message, out: TextIO, live: bool, target: Path | None) -> StreamEnd:
    """Ask, print the text, write the sound; returns the answer's last event.

    Args:
        live: print text as it comes, not at the end.
        target: sound file; it grows while the answer is being made.

    Raises:
        ValueError, FileNotFoundError: see `Session.ask`; also if the file cannot be written.
    """
    sound = None
    try:
        for event in session.ask(message):
            if isinstance(event, TextDelta) and live:
                print(event.text, end="", file=out, flush=True)
            elif isinstance(event, AudioChunk) and target is not None:
                sound = sound or _open_sound(target, event.sample_rate)
                sound.write(event.audio.detach().float().cpu().clamp(-1.0, 1.0).numpy())
                sound.flush()
            elif isinstance(event, StreamEnd):
                end = event
    finally:
        if sound is not None:
            sound.close()
    print("" if live else end.text, file=out, flush=True)
    return end


def _open_sound(target: Path, sample_rate: int) -> soundfile.SoundFile:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return soundfile.SoundFile(target, "w", sample_rate, 1, subtype="PCM_16" if _pcm(target) else None)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{target}: cannot be written ({error})") from error


def _pcm(target: Path) -> bool:
    return target.suffix.lower() in (".wav", ".flac", ".aiff")
