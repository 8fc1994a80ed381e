"""The `isobit` command. One file per group of verbs; importing it loads typer, and nothing heavier."""

from __future__ import annotations

import sys

from isobit.cli.exit_codes import INTERRUPTED, was_interrupted, watch_signals


def main() -> None:
    """Run the command line of this process; the entry point of ``isobit``."""
    watch_signals()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a character that the terminal's encoding lacks must not be an error
    try:
        from isobit.cli.application import app

        app(prog_name="isobit")
    except (KeyboardInterrupt, Exception) as error:  # before or after the verb; during it, the guard handles it
        if not was_interrupted() and not isinstance(error, KeyboardInterrupt):
            raise
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        if was_interrupted():
            # Where Ctrl-C ended code that was compiled from a string, as in dataclasses, CPython remembers that and
            # ends `python -m` by a signal, whatever the exit code; code that ends well makes it forget.
            exec("")
