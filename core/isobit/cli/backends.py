"""`isobit backends`: which frameworks can be opened here, and what is missing or broken."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from isobit.cli.guard import Debug
from isobit.cli.terminal import line, print_json, table, warn

if TYPE_CHECKING:
    from isobit.backend import Backend
    from isobit.plugins import PluginRecord

Row = dict[str, str | None]


def backends(
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """List the installed backends: framework, version, and the command that installs what is missing."""
    from isobit.plugins import registry

    found = registry()
    rows = _rows(found.records.values(), found.backends().values())
    warnings = runtime_warnings(_installed("onnxruntime"), _installed("onnxruntime-gpu"))
    if as_json:
        print_json({"backends": rows, "warnings": warnings})
        return
    if rows:
        columns = ("plug-in", "distribution", "framework", "version", "state")
        table(columns, [tuple(row[column] or "" for column in columns) for row in rows])
    else:
        line('no backend is installed; for ONNX models: pip install "isobit[onnx-cpu]"')
    for row in rows:
        if row["install"]:
            line(f"to install what {row['plug-in']!r} needs: {row['install']}")
        if row["error"]:
            line(f"{row['plug-in']}: {row['error']}", style="red")
    for warning in warnings:
        warn(warning)


def runtime_warnings(cpu: str | None, gpu: str | None) -> list[str]:
    """What is wrong with the installed versions (None: not there) of onnxruntime and onnxruntime-gpu."""
    if cpu and gpu:
        return [
            f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed and overwrite each other's files: "
            "run pip uninstall -y onnxruntime onnxruntime-gpu, then install isobit[onnx-cpu] or isobit[onnx-cuda]"
        ]
    if not cpu and not gpu:
        return [
            "onnxruntime is not installed: ONNX models cannot be run, and exports are not checked: "
            'pip install "isobit[onnx-cpu]"'
        ]
    return []


def _rows(records: Iterable[PluginRecord], backends: Iterable[Backend]) -> list[Row]:
    """One row a plug-in (and backend, where a plug-in has several)."""
    rows: list[Row] = []
    remaining = list(backends)
    for record in records:
        package = record.module.split(":")[0].split(".")[0]
        own = [b for b in remaining if record.error is None and type(b).__module__.split(".")[0] == package]
        remaining = [b for b in remaining if b not in own]
        rows += [_backend_row(record.name, record.distribution, backend) for backend in own]
        if not own:
            state = "broken" if record.error else "loaded, no backend in it"
            rows.append(_row(record.name, record.distribution, state=state, error=record.error))
    return rows + [_backend_row(backend.name, "unknown distribution", backend) for backend in remaining]


def _backend_row(plugin: str, distribution: str, backend: Backend) -> Row:
    try:
        framework, install = backend.framework, backend.install
        version = _framework_version(framework)
    except Exception as error:  # a stranger's code may raise anything
        return _row(plugin, distribution, state="broken", error=f"{type(error).__name__}: {error}")
    name = plugin if plugin == backend.name else f"{plugin}: {backend.name}"
    if version is None:
        return _row(name, distribution, framework, "not installed", "framework missing", install)
    return _row(name, distribution, framework, version, "ready")


def _row(
    plugin: str,
    distribution: str,
    framework: str | None = None,
    version: str | None = None,
    state: str = "",
    install: str | None = None,
    error: str | None = None,
) -> Row:
    return {
        "plug-in": plugin,
        "distribution": distribution,
        "framework": framework,
        "version": version,
        "state": state,
        "install": install,
        "error": error,
    }


def _framework_version(module: str) -> str | None:
    """The version of the distribution that holds an import name, without importing it; None where it is missing."""
    from importlib.metadata import packages_distributions
    from importlib.util import find_spec

    if find_spec(module) is None:
        return None
    names = packages_distributions().get(module, [module])
    return next((found for found in map(_installed, names) if found), "unknown version")


def _installed(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
