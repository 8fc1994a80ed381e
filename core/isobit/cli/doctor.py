"""`isobit doctor`: is this installation sound? Exit code 1 where it is not."""

from __future__ import annotations

from typing import Annotated

import typer

from isobit.cli.backends import show, survey
from isobit.cli.exit_codes import USER_ERROR
from isobit.cli.guard import Debug
from isobit.cli.terminal import line, print_json, table


def doctor(
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """Check this installation: versions, device, every plug-in; leave with 1 if a plug-in is broken or names clash."""
    import os
    import platform
    from importlib.metadata import version

    from isobit.backend.devices import has_cuda_driver

    rows, warnings = survey()
    facts = {
        "isobit": version("isobit"),
        "Python": platform.python_version(),
        "NumPy": version("numpy"),
        "numba": version("numba"),
        "platform": platform.platform(),
        "NVIDIA driver": "found" if has_cuda_driver() else "none",
        "plug-ins left out": os.environ.get("ISOBIT_DISABLE_PLUGINS", "") or "none",
    }
    broken = [row for row in rows if row["state"] == "broken"]
    ready = [row for row in rows if row["state"] == "ready"]
    sound = bool(ready) and not broken and not any("two plug-ins" in warning for warning in warnings)
    if as_json:
        print_json({"facts": facts, "backends": rows, "warnings": warnings, "sound": sound})
    else:
        table(("", ""), list(facts.items()))
        show(rows, warnings)
        line("this installation is sound" if sound else "this installation needs repair", style="bold")
    if not sound:
        raise typer.Exit(USER_ERROR)
