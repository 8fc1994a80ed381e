"""What the command's exit codes mean, and the signals behind two; 0 is success, 2 wrong usage (typer answers)."""

from __future__ import annotations

import signal
import sys
from types import FrameType

USER_ERROR = 1  # an IsobitError
BUG = 70  # any other exception
INTERRUPTED = 130  # Ctrl-C
TERMINATED = 143  # SIGTERM

_interruptions: list[int] = []


def watch_signals() -> None:
    """Let Ctrl-C be a KeyboardInterrupt that is remembered, and SIGTERM leave through every `finally`."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as behind nohup
        signal.signal(signal.SIGINT, _interrupt)


def was_interrupted() -> bool:
    """Whether Ctrl-C came: one that meets an extension in C while it is imported comes out as another exception."""
    return bool(_interruptions)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    _interruptions.append(signal_number)
    raise KeyboardInterrupt


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)
