"""``python -m isobit.testing parity``."""

from __future__ import annotations

from isobit.testing.parity.command import app

if __name__ == "__main__":
    app(prog_name="python -m isobit.testing")
