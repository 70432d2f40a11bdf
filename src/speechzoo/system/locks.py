"""A folder belongs to one process at a time: who comes second is told who has it."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
import warnings
from contextlib import suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_held: dict[Path, Claim] = {}


class Claim:
    """What `claim` gives: the folder is this process's until `release`, or until it ends, however it does."""

    def __init__(self, folder: Path, lock: BaseFileLock | None) -> None:
        self.folder, self._lock, self._pid = folder, lock, os.getpid()

    def release(self) -> None:
        """Let the folder go; a second time does nothing, nor does it in a forked child."""
        if self._pid != os.getpid():
            return
        if _held.get(self.folder) is self:
            del _held[self.folder]
        if self._lock is not None:
            with suppress(OSError):
                _note(self.folder).unlink(missing_ok=True)
            self._lock.release()
            self._lock = None


def claim(folder: str | Path, what: str) -> Claim:
    """Make a folder this process's own, and the folder itself if there is none.

    The lock (`.lock`, a hidden file that stays) is the operating system's, so it dies with the process; `.lock.held`
    beside it says who has it. Claims of one process do not exclude each other. Of several ranks let one call it. Where
    the file system knows no locks a warning says so, and nobody is refused.

    Args:
        what: what the process does there, for the message another one gets, e.g. `speechzoo fit`.

    Raises:
        ValueError: if another process has it, naming process, machine and since when.
        OSError: if the folder cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    before = _held.get(folder)
    if before is not None and before._pid == os.getpid():
        return before
    folder.mkdir(parents=True, exist_ok=True)
    # Not thread-local: it may be taken in one thread and let go in another.
    lock: BaseFileLock | None = None
    file = FileLock(folder / ".lock", timeout=0, thread_local=False)
    try:
        file.acquire()
    except Timeout:
        raise ValueError(
            f"{folder}: in use by {_holder(folder)}: wait for it, end it, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in UNSUPPORTED:
            raise
        text = f"{folder}: this file system has no locks: see to it that no other process uses the folder"
        warnings.warn(text, stacklevel=2)
    else:
        lock = file
    taken = _held[folder] = Claim(folder, lock)
    if lock is not None:
        since = time.strftime("%Y-%m-%d %H:%M:%S %z")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "what": what}
        with suppress(OSError):  # a full disk: the lock holds without it
            _note(folder).write_text(json.dumps(note) + "\n", encoding="utf-8")
    return taken


def _note(folder: Path) -> Path:
    return folder / ".lock.held"  # apart from the lock, which some versions of filelock empty when they try it


def _holder(folder: Path) -> str:
    try:
        note = json.loads(_note(folder).read_text(encoding="utf-8"))
        return f"process {note['pid']} on {note['host']} since {note['since']} ({note['what']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has not said who it is"
