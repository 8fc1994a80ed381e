"""Plug-ins: hooks that register, and the registry that finds what they registered.

A plug-in is a module named in the entry-point group ``isobit``. Its hooks return objects (backends, targets,
techniques, calibrators, formats); the contract is on the objects. isobit's own parts come through the same hooks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from isobit.errors import PluginError, RecipeError, TargetError, did_you_mean

if TYPE_CHECKING:
    from isobit.backend import Backend
    from isobit.calibration.scheme import Calibrator
    from isobit.formats.format import EncodingsFormat
    from isobit.recipe import Recipe
    from isobit.target import Target

GROUP = "isobit"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """What a plug-in can register. Each hook returns a list; none is required."""

    @hookspec
    def isobit_backends(self) -> Sequence[Backend]:  # type: ignore[empty-body]
        """Backends: objects that open a framework's models (`isobit.backend.Backend`)."""

    @hookspec
    def isobit_targets(self) -> Sequence[Path]:  # type: ignore[empty-body]
        """Target files (TOML); a file's stem is its name."""

    @hookspec
    def isobit_recipes(self) -> Sequence[Path]:  # type: ignore[empty-body]
        """Recipe files (TOML, `isobit.recipe`); a file's stem is its name."""

    @hookspec
    def isobit_calibrators(self) -> Sequence[type[Calibrator]]:  # type: ignore[empty-body]
        """Calibration schemes: classes with a ``name`` (`isobit.calibration.Calibrator`)."""

    @hookspec
    def isobit_techniques(self) -> Sequence[type[Any]]:  # type: ignore[empty-body]
        """Techniques: frozen dataclasses with one method, ``apply``."""

    @hookspec
    def isobit_formats(self) -> Sequence[EncodingsFormat]:  # type: ignore[empty-body]
        """Encodings formats: objects that read and write a kind of file (`isobit.formats.format.EncodingsFormat`)."""


@dataclass(frozen=True)
class PluginRecord:
    """One entry point: where it comes from and whether it loaded."""

    name: str
    module: str
    distribution: str
    error: str | None = None


class Registry:
    """The loaded plug-ins. One is made for the process on first use; tests make their own."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        from isobit import builtin  # it names this module's hookimpl

        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(Hooks)
        self._manager.register(builtin, name="isobit")
        self.records: dict[str, PluginRecord] = {}
        disabled = {name.strip() for name in os.environ.get("ISOBIT_DISABLE_PLUGINS", "").split(",")}
        for point in entry_points(group=GROUP) if points is None else points:
            if point.name not in disabled:
                self._load(point)

    def _load(self, point: EntryPoint) -> None:
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
        error = None
        if point.name in self.records:
            first = self.records[point.name].distribution
            error = f"two plug-ins are named {point.name!r}: one of {first}, one of {distribution}; uninstall one"
        else:
            try:
                self._manager.register(point.load(), name=point.name)
                self._manager.check_pending()
            except Exception as failure:  # a stranger's code may raise anything
                error = f"{type(failure).__name__}: {failure}"
                if self._manager.has_plugin(point.name):
                    self._manager.unregister(name=point.name)
        self.records[point.name] = PluginRecord(point.name, point.value, distribution, error)

    def _collect(self, hook: str) -> list[Any]:
        found: list[Any] = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            try:
                found += implementation.function()
            except Exception as failure:  # one broken plug-in must not take the others with it
                name = implementation.plugin_name
                record = self.records.get(name, PluginRecord(name, name, "unknown distribution"))
                self.records[name] = replace(record, error=f"{hook}: {type(failure).__name__}: {failure}")
        return found

    def backends(self) -> dict[str, Backend]:
        """Backends by name."""
        return _by_name("backend", self._collect("isobit_backends"))

    def backend(self, name: str) -> Backend:
        """The backend of that name. PluginError if there is none, or if its plug-in failed to load."""
        backends = self.backends()
        record = self.records.get(name)
        if record is not None and record.error:
            raise PluginError(f"plug-in {name!r} of {record.distribution} did not load: {record.error}")
        if name not in backends:
            known = ", ".join(sorted(backends)) or "none"
            raise PluginError(f"no backend {name!r}{did_you_mean(name, backends)}; installed: {known}")
        return backends[name]

    def backend_for(self, model: Any) -> Backend:
        """The backend that opens `model`, an object or a path. PluginError if none does, or two claim it equally."""
        votes = [(backend.accepts(model), backend) for backend in self.backends().values()]
        best = max((vote for vote, _ in votes), default=0)
        winners = [backend for vote, backend in votes if vote == best]
        if best == 0:
            raise PluginError(self._nobody_opens(model))
        if len(winners) > 1:
            names = " and ".join(repr(backend.name) for backend in winners)
            raise PluginError(f"backends {names} both open {type(model).__name__}: say which with backend=")
        return winners[0]

    def _nobody_opens(self, model: Any) -> str:
        suffixes = sorted({suffix for backend in self.backends().values() for suffix in backend.suffixes})
        broken = [f"{r.name} ({r.error})" for r in self.records.values() if r.error]
        hint = f"; plug-ins that did not load: {', '.join(broken)}" if broken else ""
        if isinstance(model, str | os.PathLike):
            return f"no backend opens {os.fspath(model)!r}: known endings are {', '.join(suffixes) or 'none'}{hint}"
        return f"no backend opens a {type(model).__module__}.{type(model).__name__}{hint}"

    def targets(self) -> dict[str, Path]:
        """Target files by name."""
        return _by_stem("target", self._collect("isobit_targets"))

    def target(self, name: str | os.PathLike[str] | Target) -> Target:
        """A target by name, or from a file when it ends in ``.toml``."""
        from isobit.target import Target, load_target

        if isinstance(name, Target):
            return name
        if not isinstance(name, str | os.PathLike):
            raise TargetError(f"a target is a name or the path of a .toml file, not {name!r}")
        if os.fspath(name).endswith(".toml"):
            return load_target(Path(name))
        targets, key = self.targets(), os.fspath(name)
        if key not in targets:
            known = ", ".join(sorted(targets))
            raise TargetError(f"unknown target {key!r}{did_you_mean(key, targets)}; known are {known}, or a .toml file")
        return load_target(targets[key])

    def recipes(self) -> dict[str, Path]:
        """Recipe files by name."""
        return _by_stem("recipe", self._collect("isobit_recipes"))

    def recipe(self, name: str | os.PathLike[str] | Recipe) -> Recipe:
        """A recipe by name, or from a file when it ends in ``.toml``."""
        from isobit.recipe import Recipe, load_recipe

        if isinstance(name, Recipe):
            return name
        if not isinstance(name, str | os.PathLike):
            raise RecipeError(f"a recipe is a name or the path of a .toml file, not {name!r}")
        if os.fspath(name).endswith(".toml"):
            return load_recipe(Path(name), self.techniques())
        recipes, key = self.recipes(), os.fspath(name)
        if key not in recipes:
            known = ", ".join(sorted(recipes))
            raise RecipeError(f"unknown recipe {key!r}{did_you_mean(key, recipes)}; known are {known}, or a .toml file")
        return load_recipe(recipes[key], self.techniques())

    def calibrators(self) -> dict[str, type[Calibrator]]:
        """Calibration schemes by name."""
        return _by_name("calibrator", self._collect("isobit_calibrators"))

    def techniques(self) -> dict[str, type[Any]]:
        """Techniques by class name."""
        found: dict[str, type[Any]] = {}
        for technique in self._collect("isobit_techniques"):
            name = technique.__name__
            if name in found:
                raise PluginError(
                    f"two plug-ins register a technique named {name!r}: {found[name]!r} and {technique!r}"
                )
            found[name] = technique
        return found

    def formats(self) -> dict[str, EncodingsFormat]:
        """Encodings formats by name."""
        return _by_name("format", self._collect("isobit_formats"))


def _by_stem(what: str, paths: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if path.stem in found:
            raise PluginError(f"two {what}s are named {path.stem!r}: {found[path.stem]} and {path}")
        found[path.stem] = path
    return found


def _by_name(what: str, items: Iterable[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        if item.name in found:
            raise PluginError(f"two plug-ins register a {what} named {item.name!r}: {found[item.name]!r} and {item!r}")
        found[item.name] = item
    return found


@cache
def registry() -> Registry:
    """The registry of this process."""
    return Registry()


def names() -> list[str]:
    """Names of the installed plug-ins, without importing any."""
    return sorted(point.name for point in entry_points(group=GROUP))


def records() -> Mapping[str, PluginRecord]:
    """How each installed plug-in loaded."""
    return registry().records
