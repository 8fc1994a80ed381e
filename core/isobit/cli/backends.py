"""`isobit backends`: which frameworks can be opened here, and what is missing or broken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from isobit.cli.guard import Debug
from isobit.cli.terminal import line, print_json, table, warn

if TYPE_CHECKING:
    from isobit.backend.contract import Backend
    from isobit.plugins import PluginRecord

Row = dict[str, str | None]


COLUMNS = ("name", "version", "distribution", "framework", "framework version", "device", "state")


def backends(
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
    _debug: Debug = False,
) -> None:
    """List the installed backends: framework, version, device, and how to repair what is missing or broken."""
    rows, warnings = survey()
    if as_json:
        print_json({"backends": rows, "warnings": warnings})
    else:
        show(rows, warnings)


def survey() -> tuple[list[Row], list[str]]:
    """A row for every plug-in or backend with its state, and warnings."""
    from isobit.plugins import registry

    plugins = registry()
    # The backends come before the records: to load one may show that its plug-in is broken.
    listed = list(plugins.backends().values())
    conflicts = plugins.conflicts()
    rows = _rows(plugins.records.values(), listed)
    return rows, [*conflicts, *runtime_warnings(_installed("onnxruntime"), _installed("onnxruntime-gpu"))]


def show(rows: Sequence[Row], warnings: Sequence[str]) -> None:
    """Print the table, and below it how to repair what is broken."""
    if rows:
        table(COLUMNS, [tuple(row[column] or "" for column in COLUMNS) for row in rows])
    else:
        line('no backend is installed; for ONNX models: pip install "isobit[onnx-cpu]"')
    for row in rows:
        if row["error"]:
            line(f"{row['name']} of {row['distribution']} {row['version']}: {row['error']}", style="red")
        if row["repair"]:
            line(f"to repair {row['name']!r}: {row['repair']}")
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
        own_backends = [
            backend for backend in remaining if record.error is None and _package(backend) == record.package
        ]
        remaining = [backend for backend in remaining if backend not in own_backends]
        rows += [_backend_row(record, backend) for backend in own_backends]
        if not own_backends and record.error:
            rows.append(_row(record, state="broken", error=record.error, repair=_repair(record)))
        elif not own_backends and not record.is_own:
            rows.append(_row(record, state="loaded, no backend in it"))
    return rows


def _package(backend: Backend) -> str:
    return type(backend).__module__.partition(".")[0]


def _backend_row(record: PluginRecord, backend: Backend) -> Row:
    from isobit.backend.optional import ReportsDevice

    name = record.name if record.name == backend.name else f"{record.name}: {backend.name}"
    try:
        framework, install = backend.framework, backend.install
        version = _framework_version(framework)
        if version is None:
            return _row(record, name, framework, "not installed", state="framework missing", repair=install)
        device = backend.device() if isinstance(backend, ReportsDevice) else "unknown"
    except Exception as error:  # a plug-in's code may raise anything
        return _row(record, name, state="broken", error=f"{type(error).__name__}: {error}", repair=_repair(record))
    return _row(record, name, framework, version, device, "ready")


def _repair(record: PluginRecord) -> str:
    distribution = record.distribution.rpartition(" ")[0]
    return f"pip install --upgrade {distribution}, or leave it out: ISOBIT_DISABLE_PLUGINS={record.name}"


def _row(
    record: PluginRecord,
    name: str | None = None,
    framework: str | None = None,
    framework_version: str | None = None,
    device: str | None = None,
    state: str = "",
    **problem: str,
) -> Row:
    distribution, _, version = record.distribution.rpartition(" ")
    return {
        "name": name or record.name,
        "version": version,
        "distribution": distribution,
        "framework": framework,
        "framework version": framework_version,
        "device": device,
        "state": state,
        "error": problem.get("error"),
        "repair": problem.get("repair"),
    }


def _framework_version(module: str) -> str | None:
    """The version of the distribution that holds an import name, without importing it; None where it is missing."""
    from importlib.metadata import packages_distributions
    from importlib.util import find_spec

    if find_spec(module) is None:
        return None
    names = packages_distributions().get(module, [module])
    return next((version for version in map(_installed, names) if version), "unknown version")


def _installed(distribution: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
