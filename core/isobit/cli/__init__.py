"""The `isobit` command. One file per group of verbs; importing it loads typer, and nothing heavier."""

from __future__ import annotations

import signal
import sys
from types import FrameType

from isobit.cli.exit_codes import INTERRUPTED, TERMINATED


def main() -> None:
    """Run the command line of this process; the entry point of ``isobit``."""
    signal.signal(signal.SIGTERM, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character that the terminal's encoding lacks must not be an error
    try:
        from isobit.cli.application import app

        app(prog_name="isobit")
    except KeyboardInterrupt:  # before or after the verb; during it, the guard handles it
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _terminate(signal_number: int, frame: FrameType | None) -> None:
    """Leave through every `finally`, so that temporary files go."""
    sys.exit(TERMINATED)
