"""Plug-ins: hooks that register, and the registry that finds what they registered.

A plug-in is a module named in the entry-point group ``isobit``. Its hooks return objects (backends, targets,
techniques, calibrators, formats); the contract is on the objects. isobit's own parts come through the same hooks.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from isobit.errors import EncodingError, IsobitError, PluginError, RecipeError, TargetError, did_you_mean
from isobit.plugin_objects import name_of, problem_of
from isobit.version import __version__

if TYPE_CHECKING:
    from isobit.backend.checked_model import CheckedModel
    from isobit.backend.contract import Backend
    from isobit.calibration.scheme import Calibrator
    from isobit.formats.format import EncodingsFormat
    from isobit.recipes.recipe import Recipe
    from isobit.targets.target import Target

logger = logging.getLogger(__name__)

GROUP = "isobit"

#: The distribution of isobit itself, as an entry point names it.
_OWN = f"isobit {__version__}"

T = TypeVar("T")

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """What a plug-in can register. Each hook returns a list; none is required. `CONTRACT` is their version."""

    @hookspec
    def isobit_backends(self) -> Sequence[Backend]:  # type: ignore[empty-body]
        """Backends: objects that open a framework's models (`isobit.backend.Backend`)."""

    @hookspec
    def isobit_targets(self) -> Sequence[Path]:  # type: ignore[empty-body]
        """Target files (TOML); a file's stem is its name."""

    @hookspec
    def isobit_recipes(self) -> Sequence[Path]:  # type: ignore[empty-body]
        """Recipe files (TOML): which techniques in which order; a file's stem is its name."""

    @hookspec
    def isobit_calibrators(self) -> Sequence[type[Calibrator]]:  # type: ignore[empty-body]
        """Calibration schemes: classes with a ``name`` (`isobit.calibration.Calibrator`)."""

    @hookspec
    def isobit_techniques(self) -> Sequence[type[Any]]:  # type: ignore[empty-body]
        """Techniques: frozen dataclasses with one method, ``apply``."""

    @hookspec
    def isobit_formats(self) -> Sequence[EncodingsFormat]:  # type: ignore[empty-body]
        """Encodings formats: objects that read and write a kind of file (`isobit.formats.format.EncodingsFormat`)."""


#: The version of the contract between isobit and its plug-ins: the hooks above and the objects that they return.
#: A plug-in says which one it was written for with ``ISOBIT_CONTRACT = 1`` in its module; unsaid it is 1.
CONTRACT = 1

_HOOKS = tuple(name for name in vars(Hooks) if name.startswith("isobit_"))


@dataclass(frozen=True)
class PluginRecord:
    """One entry point: where it comes from and whether it works. `distribution` is a name and a version."""

    name: str
    module: str
    distribution: str
    error: str | None = None

    def __str__(self) -> str:
        return f"plug-in {self.name!r} of {self.distribution}"

    @property
    def is_own(self) -> bool:
        """Whether it is a part of isobit itself, by its distribution."""
        return self.distribution == _OWN

    @property
    def package(self) -> str:
        """The import package that holds its module."""
        return self.module.split(":")[0].split(".")[0]


class Named(dict[str, T]):
    """Objects by name. A name that two plug-ins claim is in it, but raises PluginError when it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conflicts: dict[str, str] = {}

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.conflicts

    def __missing__(self, name: str) -> T:
        if name in self.conflicts:
            raise PluginError(self.conflicts[name])
        raise KeyError(name)


class Registry:
    """The loaded plug-ins. One is made for the process on first use; tests make their own.

    A plug-in that fails, in whatever way, is recorded and stops no other one.
    """

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(Hooks)
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
            if self._manager.has_plugin(point.name):  # nobody can say which of the two is meant
                self._manager.unregister(name=point.name)
        else:
            try:
                module = point.load()
                error = _refusal(module, distribution)
                if error is None:
                    self._manager.register(module, name=point.name)
                    self._manager.check_pending()
            except (Exception, SystemExit) as failure:  # a stranger's code may raise anything
                error = _said(failure)
                if self._manager.has_plugin(point.name):
                    self._manager.unregister(name=point.name)
        self.records[point.name] = PluginRecord(point.name, point.value, distribution, error)
        logger.info("plug-in %s of %s: %s", point.name, distribution, error or "loaded")

    def _collect(self, hook: str) -> list[tuple[PluginRecord, Any]]:
        """What the hook's implementations return, each with its plug-in."""
        registered: list[tuple[PluginRecord, Any]] = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            record = self.records[implementation.plugin_name]
            try:
                items = list(implementation.function())
                problems = [problem for problem in (problem_of(item, hook) for item in items) if problem]
            except (Exception, SystemExit) as failure:  # one broken plug-in must not take the others with it
                items, problems = [], [_said(failure)]
                logger.debug("plug-in %s failed in %s", record.name, hook, exc_info=failure)
            if problems:
                self.records[record.name] = replace(record, error=f"{hook}: {'; '.join(problems)}")
            else:
                registered += [(record, item) for item in items]
        return registered

    def _named(self, hook: str) -> Named[Any]:
        named: Named[Any] = Named()
        owners: dict[str, PluginRecord] = {}
        what = hook.removeprefix("isobit_").removesuffix("s")
        for record, item in self._collect(hook):
            name = name_of(item, hook)
            if name in owners:
                named.pop(name, None)
                named.conflicts[name] = (
                    f"two plug-ins register a {what} named {name!r}: {owners[name]} and {record}; uninstall one, or "
                    "leave it out with ISOBIT_DISABLE_PLUGINS"
                )
                continue
            owners[name] = record
            named[name] = item
        return named

    def conflicts(self) -> list[str]:
        """Names that two plug-ins claim, in words."""
        return [text for hook in _HOOKS for text in self._named(hook).conflicts.values()]

    def backends(self) -> Named[Backend]:
        """Backends by name."""
        return self._named("isobit_backends")

    def owner(self, backend: Backend) -> PluginRecord | None:
        """The plug-in that registered a backend."""
        pairs = self._collect("isobit_backends")  # a hook may return new objects each time, so names are compared
        return next((record for record, item in pairs if item.name == backend.name), None)

    def backend(self, name: str) -> Backend:
        """The backend of that name. PluginError if there is none, or if its plug-in failed to load."""
        backends = self.backends()
        record = self.records.get(name)
        if record is not None and record.error:
            raise PluginError(f"{record} did not load: {record.error}")
        if name not in backends:
            known = ", ".join(sorted(backends)) or "none"
            raise PluginError(f"no backend {name!r}{did_you_mean(name, backends)}; installed: {known}")
        return backends[name]

    def open(self, model: Any, example_inputs: Any = None, backend: str | Backend | None = None) -> CheckedModel:
        """Open a model with the backend that is asked for, else with the one that claims it.

        A stranger's backend that raises anything but an IsobitError is answered with a PluginError that names its
        distribution.
        """
        from isobit.backend.checked_model import CheckedModel

        if backend is None:
            opener = self.backend_for(model)
        else:
            opener = self.backend(backend) if isinstance(backend, str) else backend
        logger.info("opening a %s with backend %s", type(model).__name__, opener.name)
        try:
            return CheckedModel.of(opener.open(model, example_inputs))
        except IsobitError:
            raise
        except Exception as failure:
            record = self.owner(opener)
            if record is None or record.is_own:
                raise
            raise PluginError(f"{record} failed to open a {type(model).__name__}: {_said(failure)}") from failure

    def backend_for(self, model: Any) -> Backend:
        """The backend that opens `model`, an object or a path. PluginError if none does, or two claim it equally."""
        backends = self.backends()
        votes = [(self._vote(backend, model), backend) for backend in backends.values()]
        best = max((vote for vote, _ in votes), default=0)
        if best == 0 and backends.conflicts:
            raise PluginError("; ".join(backends.conflicts.values()))
        winners = [backend for vote, backend in votes if vote == best]
        if best == 0:
            raise PluginError(self._nobody_opens(model))
        if len(winners) > 1:
            names = " and ".join(repr(backend.name) for backend in winners)
            raise PluginError(f"backends {names} both open {type(model).__name__}: say which with backend=")
        return winners[0]

    def _vote(self, backend: Backend, model: Any) -> int:
        try:
            return int(backend.accepts(model))
        except Exception as failure:
            record = self.owner(backend)
            if record is not None:
                self.records[record.name] = replace(record, error=f"accepts: {_said(failure)}")
            return 0

    def _nobody_opens(self, model: Any) -> str:
        suffixes = sorted({suffix for backend in self.backends().values() for suffix in backend.suffixes})
        hint = self._hint()
        if isinstance(model, str | os.PathLike):
            from isobit.backend.foreign_files import advice

            is_there = os.path.exists(model)
            missing = "" if is_there else ", and there is no such file"
            folder = "it is a folder, and a model is a file: " if os.path.isdir(model) else ""
            endings = f"{folder}known endings are {', '.join(suffixes) or 'none'}{missing}"
            detail = (is_there and advice(model)) or endings
            return f"no backend opens {os.fspath(model)!r}: {detail}{hint}"
        from isobit.backend import foreign_objects

        kind = f"{type(model).__module__}.{type(model).__name__}".removeprefix("builtins.")
        return f"no backend opens a {kind}: {foreign_objects.advice(model)}{hint}"

    def _hint(self) -> str:
        """The end of an error that something is not there: the plug-ins that could have brought it and are broken."""
        broken = [f"{r.name} ({r.error})" for r in self.records.values() if r.error]
        return f"; plug-ins that did not load: {', '.join(broken)}" if broken else ""

    def targets(self) -> Named[Path]:
        """Target files by name."""
        return self._named("isobit_targets")

    def target(self, name: str | os.PathLike[str] | Target) -> Target:
        """A target by name, or from a file when it ends in ``.toml``."""
        from isobit.targets.target import Target, load_target

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

    def recipes(self) -> Named[Path]:
        """Recipe files by name."""
        return self._named("isobit_recipes")

    def recipe(self, name: str | os.PathLike[str] | Recipe) -> Recipe:
        """A recipe by name, or from a file when it ends in ``.toml``."""
        from isobit.recipes.recipe import Recipe, load_recipe

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

    def calibrators(self) -> Named[type[Calibrator]]:
        """Calibration schemes by name."""
        return self._named("isobit_calibrators")

    def techniques(self) -> Named[type[Any]]:
        """Techniques by class name."""
        return self._named("isobit_techniques")

    def formats(self) -> Named[EncodingsFormat]:
        """Encodings formats by name."""
        return self._named("isobit_formats")

    def format(self, name: str) -> EncodingsFormat:
        """An encodings format by name. Raises EncodingError."""
        formats = self.formats()
        if name not in formats:
            near, known = did_you_mean(str(name), formats), ", ".join(sorted(formats))
            raise EncodingError(f"no encodings format {name!r}{near}; known are {known}{self._hint()}")
        return formats[name]

    def format_of(self, path: str | os.PathLike[str]) -> EncodingsFormat:
        """The encodings format that recognises a file. Raises EncodingError when none or several do."""
        from isobit.formats.choosing import format_of

        formats = self.formats()  # first: it may show that a plug-in is broken
        return format_of(path, formats, if_none=self._hint())

    def at_fault(self, error: BaseException) -> PluginRecord | None:
        """The stranger's plug-in in whose code an error was raised, from the traceback; None where it was isobit's."""
        records = [r for r in self.records.values() if not r.is_own]
        frame, culprit = error.__traceback__, None
        while frame is not None:
            package = str(frame.tb_frame.f_globals.get("__name__", "")).split(".")[0]
            culprit = next((record for record in records if record.package == package), culprit)
            frame = frame.tb_next
        return culprit


def _refusal(module: Any, distribution: str) -> str | None:
    """Why a module is no plug-in for this isobit, in words; None where it is one."""
    contract = getattr(module, "ISOBIT_CONTRACT", 1)
    if contract != CONTRACT:
        older = isinstance(contract, int) and contract < CONTRACT
        newer = distribution.rpartition(" ")[0] if older else "isobit"
        here = f"this isobit has contract {CONTRACT}"
        return f"it was written for contract {contract!r} of isobit, and {here}: install a newer version of {newer}"
    for name in dir(module):
        options = pluggy.PluginManager(GROUP).parse_hookimpl_opts(module, name)
        hook = (options.get("specname") or name) if options else name
        if options and hook not in _HOOKS:
            return f"unknown hook {hook!r}{did_you_mean(hook, _HOOKS)}; known are {', '.join(_HOOKS)}"
        if not options and name.startswith("isobit_") and inspect.isfunction(getattr(module, name)):
            return f"{name!r} looks like a hook and is none: mark it with @isobit.plugins.hookimpl"
    return None


def _said(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}"


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
