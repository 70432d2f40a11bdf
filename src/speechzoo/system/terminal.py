"""What a command says on the terminal: one line for an error, and none of the advice that libraries give."""

from __future__ import annotations

import linecache
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PACKAGE = Path(__file__).parents[1]
DEBUG = "SPEECHZOO_DEBUG"
TAIL = 32_768  # bytes of a log that are read for its last lines
INTERRUPTED, BROKEN_PIPE, TERMINATED = 130, 141, 143  # as shells count them: 128 + the signal's number

NO_GPU = "this machine has no GPU that torch can use: give --trainer.accelerator=cpu (`ask`, `demo`: --device cpu)"
HINTS = [
    (r"No supported gpu backend|Accelerator` can not run on your system", NO_GPU),
    (r"not compiled with CUDA|no NVIDIA driver", NO_GPU),
    (r"CUDA out of memory", "the GPU's memory is too small: lower data.init_args.batch_size"),
    (
        r"(?i)api[_ ]key|wandb login",
        "W&B has no API key: run `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline",
    ),
]
"""What a library's error means for the user of a command."""

ADVERTS = re.compile(r"\s*(💡|(GPU|TPU|HPU) available: False|Detected KeyboardInterrupt)")
ADVICE = [
    "LightningCLI's args parameter",  # Python users and the quickstart give arguments that are not sys.argv: meant so
    ".*does not have many workers",
    ".*in eval mode at the start of training",  # frozen parts: the model sees to it
    r".*isinstance\(treespec, LeafSpec\)",
    ".*You have overridden `transfer_batch_to_device` in `LightningModule`",  # sizes are taken before a batch moves
]


def run_command(work: Callable[[list[str]], int], argv: Sequence[str]) -> int:
    """Run a command; whatever ends it becomes one line on standard error and an exit code.

    `--debug`, anywhere among the arguments, prints the traceback too, and so does $SPEECHZOO_DEBUG=1.
    """
    if "--debug" in argv:
        os.environ[DEBUG] = "1"  # in the environment, for the processes that a command starts
    try:
        code = work([word for word in argv if word != "--debug"])
        sys.stdout.flush()  # here, where a reader that left can still be forgiven
        return code
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # else Python complains again when it closes the stream
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends with 1 after Ctrl-C
            return tell_error(end.__context__)
        if type(end).__name__ == "SIGTERMException":  # Lightning's, which would end with 0 as a finished run does
            print("speechzoo: ended by SIGTERM before it was done", file=sys.stderr)
            return TERMINATED
        raise
    except (Exception, KeyboardInterrupt) as error:
        return tell_error(error)


def tell_error(error: BaseException, command: str = "speechzoo") -> int:
    """Print what ended a command, one line for whoever typed it; returns the exit code."""
    if debugging():
        traceback.print_exception(error)
    rank = os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"
    print(f"{command}{'' if rank == '0' else f' (rank {rank})'}: {explain(error)}", file=sys.stderr)
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def debugging() -> bool:
    """Whether tracebacks are asked for."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def explain(error: BaseException) -> str:
    """What an error means. Our own errors keep their words, which may be a list with a line for each bad record."""
    text, kind = str(error).strip(), type(error).__name__
    line = re.sub(r"\s+", " ", text)[:600] or kind
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if kind == "ProcessRaisedException":  # torch's, whose text is the traceback of the process it started
        return text.splitlines()[-1].split(": ", 1)[-1]
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if _deliberate(error.__traceback__):
        return text or kind
    if found := re.search(r"^Does not validate .*?^Errors:\s+- (.*?[^:\n])$", text, re.DOTALL | re.MULTILINE):
        return re.sub(r"\s+", " ", found[1])  # jsonargparse's words around those of a constructor
    for pattern, meaning in HINTS:
        if re.search(pattern, text):
            return meaning
    if kind == "MisconfigurationException":
        return line
    if type(error).__module__.startswith("omegaconf."):
        key = getattr(error, "full_key", None) or "the configuration"
        return f"{re.sub(r'^(fit|validate|test|predict)[.]', '', key)}: {text.splitlines()[0]}"
    if isinstance(error, (ValueError, OSError, ImportError)):
        return f"{line} ({kind} {_place(error.__traceback__)}; --debug shows the traceback)"
    return f"internal error: {kind}: {line} ({_place(error.__traceback__)}); run again with --debug for the traceback"


def _deliberate(trace: TracebackType | None) -> bool:
    """Whether a `raise` of this package made the error, and no mistake in it or in a library."""
    frame = traceback.extract_tb(trace)[-1:]
    if not frame or not Path(frame[0].filename).is_relative_to(PACKAGE):
        return False
    return linecache.getline(frame[0].filename, frame[0].lineno or 0).lstrip().startswith("raise ")


def _place(trace: TracebackType | None) -> str:
    """`at torch/_tensor.py:1153`."""
    frame = traceback.extract_tb(trace)[-1:]
    if not frame:
        return "at an unknown place"
    file = Path(frame[0].filename)
    inside = [
        file.relative_to(root) for root in map(Path, sys.path) if root.is_absolute() and file.is_relative_to(root)
    ]
    return f"at {min(inside, key=lambda path: len(path.parts), default=file)}:{frame[0].lineno}"


def last_lines(log: Path, number: int = 1, start: int = 0) -> str:
    """The last lines with text of a log from byte `start` on, as a terminal would show them; empty without any."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    # Of a bar that was drawn again and again the last state.
    lines = [line.rstrip().rpartition("\r")[2] for line in plain.split("\n")]
    return "\n".join([line for line in lines if line][-number:])


def quiet(results_only: bool = False) -> None:
    """Leave out libraries' adverts, and advice that is wrong here.

    Args:
        results_only: also what libraries tell about their own work, for commands that show progress themselves.
    """
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logger = logging.getLogger(name)
        if _no_advert not in logger.filters:
            logger.addFilter(_no_advert)
    for message in ADVICE:
        warnings.filterwarnings("ignore", message=message)
    from transformers.utils import logging as transformers_logging

    if results_only or not sys.stderr.isatty():  # a bar in a log file is a line for each redraw
        transformers_logging.disable_progress_bar()
    if results_only:
        import torch

        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
        torch.set_warn_always(False)
        transformers_logging.set_verbosity_error()


def _no_advert(record: logging.LogRecord) -> bool:
    return not ADVERTS.match(record.getMessage())
