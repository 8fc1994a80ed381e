"""The command: start a process for each framework, compare what they wrote, print a table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from isobit.cli.guard import Debug, GuardedGroup
from isobit.cli.terminal import line
from isobit.errors import IsobitError, PluginError
from isobit.files import write_atomically
from isobit.plugins import registry
from isobit.testing.networks import NETWORKS
from isobit.testing.parity.comparing import Comparison, broken_promises, compare, differing, shares
from isobit.testing.parity.results import STAGES, Result
from isobit.testing.parity.table import as_markdown, print_table
from isobit.testing.parity.worker import builders, work

app = typer.Typer(cls=GuardedGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def checks(_debug: Debug = False) -> None:
    """Checks of isobit's promises, for those who write backends."""


@app.command()
def parity(
    python: Annotated[
        list[str] | None,
        typer.Option("--python", metavar="BACKEND=PATH", help="The interpreter of a framework in another environment."),
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", metavar="NAME", help="Only this one; repeat for more.")
    ] = None,
    network: Annotated[
        list[str] | None, typer.Option("--network", metavar="NAME", help="Only this one; repeat for more.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", metavar="PATH", help="Write every count and difference here.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="PATH", help="Write the table as Markdown here.")
    ] = None,
    _debug: Debug = False,
) -> None:
    """Build the reference networks in every framework, and count what differs.

    Exit code 1 says that a promise is broken. Without --python, the frameworks of this environment are compared.
    """
    interpreters = _interpreters(python or [], backend or [])
    networks = _known_networks(network or list(NETWORKS))
    with tempfile.TemporaryDirectory(prefix="isobit-parity-") as folder:
        comparisons = _run(interpreters, networks, Path(folder))
    broken = broken_promises(comparisons)
    if json_path is not None:
        data = {
            "frameworks": list(interpreters),
            "comparisons": [c.as_data() for c in comparisons],
            "broken": broken,
        }
        with write_atomically(json_path) as temporary:
            temporary.write_text(json.dumps(data, indent=1), "utf-8")
    if markdown is not None:
        with write_atomically(markdown) as temporary:
            temporary.write_text(as_markdown(list(interpreters), comparisons, broken), "utf-8")
    print_table(comparisons)
    for scheme, counts in shares(comparisons).items():
        line(f"{scheme}: {counts.equal} of {counts.total} activation encodings equal, {counts.near} one step apart")
    line(f"differences: {dict(differing(comparisons)) or 'none'}")
    for promise in broken:
        line(f"broken: {promise}", style="red")
    raise typer.Exit(1 if broken else 0)


@app.command(hidden=True)
def parity_worker(
    backend: str, folder: Path, networks: str, schemes: str, reference: Path | None = None, _debug: Debug = False
) -> None:
    """What `parity` starts for each framework."""
    work(backend, folder, networks.split(","), schemes.split(","), reference)


def _interpreters(pairs: Sequence[str], only: Sequence[str]) -> dict[str, str]:
    """The interpreter of each backend that takes part; the first one is what the others are compared with."""
    given_paths = dict(pair.partition("=")[::2] for pair in pairs)
    for name, path in given_paths.items():
        if not Path(path).is_file():
            raise PluginError(f"--python {name}={path}: write a backend and the path of an interpreter")
    installed_builders = builders()
    importable = {
        name: sys.executable for name, backend in installed_builders.items() if find_spec(backend.framework) is not None
    }
    for name in only:
        if name not in installed_builders and name not in given_paths:
            raise PluginError(
                f"--backend {name}: those that build the reference networks are {', '.join(installed_builders)}"
            )
    interpreters = importable | given_paths
    interpreters = {name: path for name, path in interpreters.items() if not only or name in only}
    if len(interpreters) < 2:
        raise PluginError(
            f"parity compares two frameworks or more, and here is {', '.join(interpreters) or 'none'}: install "
            "another, or say where it is with --python torch=/path/to/python"
        )
    return interpreters


def _known_networks(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in NETWORKS]
    if unknown:
        raise IsobitError(f"no reference network {unknown[0]!r}: known are {', '.join(NETWORKS)}")
    return names


def _run(interpreters: Mapping[str, str], networks: list[str], folder: Path) -> list[Comparison]:
    reference, *others = interpreters
    schemes = sorted(registry().calibrators())
    for name in interpreters:
        (folder / name).mkdir()
    _wait([_start(reference, interpreters[reference], folder, networks, schemes, None)])
    _wait([_start(name, interpreters[name], folder, networks, schemes, folder / reference) for name in others])
    return [
        compare(network, stage, name, Result.read(folder / reference, network, stage), other)
        for network in networks
        for stage in STAGES
        for name in others
        for other in [Result.read(folder / name, network, stage)]
    ]


def _start(
    name: str, python: str, folder: Path, networks: list[str], schemes: list[str], reference: Path | None
) -> tuple[str, subprocess.Popen[bytes], Path]:
    arguments = [name, str(folder / name), ",".join(networks), ",".join(schemes)]
    if reference is not None:
        arguments += ["--reference", str(reference)]
    log = folder / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [python, "-m", "isobit.testing", "parity-worker", *arguments],
            stdout=stream, stderr=subprocess.STDOUT, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        )  # fmt: skip
    return name, process, log


def _wait(started: list[tuple[str, subprocess.Popen[bytes], Path]]) -> None:
    try:
        failed = [(name, log) for name, process, log in started if process.wait()]
    finally:
        for _, process, _ in started:
            if process.poll() is None:
                process.kill()
    for name, log in failed:
        last_line = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["it printed nothing"]
        raise PluginError(f"the process of {name!r} failed: {last_line[0]}")
