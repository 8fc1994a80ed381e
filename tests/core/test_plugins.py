"""Plug-ins: found, broken, duplicate, disabled; and what is asked for and not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from registries import own_registry

from isobit.calibration import (
    Auto,
    Entropy,
    MeanSquareError,
    MinMaxRange,
    MovingAverage,
    Percentile,
    ReaderError,
    SignalToNoise,
)
from isobit.errors import PluginError
from isobit.plugins import Registry, hookimpl


@dataclass(frozen=True)
class FakeBackend:
    name: str
    vote: int = 1
    suffixes: tuple[str, ...] = ()
    framework: str = "math"
    install: str = "pip install nothing"

    def accepts(self, model: object) -> int:
        if self.vote < 0:
            raise RuntimeError("cannot look")
        return self.vote

    def open(self, model: object, example_inputs: object = None) -> Any:
        raise KeyError("weights")

    def restore(self, state: bytes) -> Any:
        raise NotImplementedError


class Scheme:
    """As much of a scheme, technique and format as the registry looks at."""

    name = "mine"
    range = from_text = apply = read = write = recognises = suffix = None
    uses_names = omits_moved_tensors = False
    omitted_types = ()


class Same(Scheme):
    name = "same"


@dataclass(frozen=True)
class Point:
    """What the registry asks of an entry point."""

    name: str
    make: Callable[[], Any]
    value: str = "somewhere.plugin"

    @property
    def dist(self) -> Any:
        return SimpleNamespace(name="some-package", version="1.2")

    def load(self) -> Any:
        return self.make()


def plugin(**hooks: Sequence[Any]) -> SimpleNamespace:
    """A plug-in whose hooks return these lists."""

    def hook(items: Sequence[Any]) -> Any:
        return lambda: items

    return SimpleNamespace(**{name: hookimpl(hook(items), specname=name) for name, items in hooks.items()})


def registry(*points: Point) -> Registry:
    return own_registry(*points)


def backends(*items: FakeBackend, name: str = "mine") -> Point:
    return Point(name, lambda: plugin(isobit_backends=list(items)))


def fails() -> Any:
    raise ImportError("No module named 'missing_framework'")


def test_what_comes_with_isobit() -> None:
    own = registry()
    assert own.backends() == {}
    assert not own.records["isobit"].error
    assert own.calibrators() == {
        "minmax": MinMaxRange,
        "moving-average": MovingAverage,
        "percentile": Percentile,
        "entropy": Entropy,
        "mse": MeanSquareError,
        "sqnr": SignalToNoise,
        "auto": Auto,
        "reader-error": ReaderError,
    }
    assert "FoldBatchNorms" in own.techniques()
    assert "isobit" in own.formats()
    assert {"default", "onnxruntime-cpu"} <= own.targets().keys()


def test_a_plug_in_adds_to_it() -> None:
    plugins = registry(
        Point(
            "mine",
            lambda: plugin(
                isobit_backends=[FakeBackend("jax")],
                isobit_calibrators=[Scheme],
                isobit_techniques=[Scheme],
                isobit_formats=[Scheme()],
                isobit_targets=[Path("a/chip.toml")],
            ),
        )
    )
    assert plugins.backend("jax") == FakeBackend("jax")
    assert plugins.calibrators()["mine"] is Scheme
    assert plugins.techniques()["Scheme"] is Scheme
    assert plugins.formats()["mine"].name == "mine"
    assert plugins.targets()["chip"] == Path("a/chip.toml")
    record = plugins.records["mine"]
    assert (record.module, record.distribution, record.error) == ("somewhere.plugin", "some-package 1.2", None)


def test_unknown_backends_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        PluginError, match=re.escape("no backend 'torhc' (did you mean 'torch'?); installed: keras, torch")
    ):
        registry(backends(FakeBackend("torch"), FakeBackend("keras"))).backend("torhc")
    with pytest.raises(PluginError, match="installed: none"):
        registry().backend("torch")


def test_a_plug_in_that_does_not_import_is_recorded_and_raised_on_use() -> None:
    plugins = registry(Point("jax", fails), backends(FakeBackend("torch")))
    assert plugins.records["jax"].error == "ImportError: No module named 'missing_framework'"
    assert list(plugins.backends()) == ["torch"]
    with pytest.raises(
        PluginError, match=re.escape("plug-in 'jax' of some-package 1.2 did not load: ImportError: No mod")
    ):
        plugins.backend("jax")
    assert plugins.backend_for(object()).name == "torch"


def test_a_misspelt_hook_is_recorded() -> None:
    plugins = registry(Point("odd", lambda: plugin(isobit_backend=[FakeBackend("odd")])))
    assert "isobit_backend" in (plugins.records["odd"].error or "")
    assert plugins.backends() == {}


def test_a_hook_with_arguments_that_do_not_exist_is_recorded() -> None:
    def isobit_backends(framework: str) -> list[FakeBackend]:
        return [FakeBackend("odd")]

    plugins = registry(Point("odd", lambda: SimpleNamespace(isobit_backends=hookimpl(isobit_backends))))
    assert "framework" in (plugins.records["odd"].error or "")
    assert plugins.backends() == {}


def test_a_hook_that_raises_is_recorded_and_stops_nobody_else() -> None:
    def isobit_backends() -> list[FakeBackend]:
        raise RuntimeError("no device")

    broken = Point("odd", lambda: SimpleNamespace(isobit_backends=hookimpl(isobit_backends)))
    plugins = registry(broken, Point("good", lambda: plugin(isobit_backends=[FakeBackend("good")])))
    assert set(plugins.backends()) == {"good"}
    assert "no device" in (plugins.records["odd"].error or "")
    with pytest.raises(PluginError, match="no device"):
        plugins.backend("odd")


def test_two_plug_ins_of_one_name() -> None:
    plugins = registry(backends(FakeBackend("a")), backends(FakeBackend("b")))
    assert "two plug-ins are named 'mine'" in (plugins.records["mine"].error or "")
    with pytest.raises(PluginError, match="uninstall one"):
        plugins.backend("mine")


@pytest.mark.parametrize(
    ("hook", "item", "ask", "name"),
    [
        ("isobit_backends", FakeBackend("same"), Registry.backends, "same"),
        ("isobit_calibrators", Same, Registry.calibrators, "same"),
        ("isobit_formats", Same(), Registry.formats, "same"),
        ("isobit_techniques", Same, Registry.techniques, "Same"),
        ("isobit_targets", Path("x/same.toml"), Registry.targets, "same"),
    ],
)
def test_two_things_of_one_name(hook: str, item: Any, ask: Callable[[Registry], Any], name: str) -> None:
    """Asking for it names both plug-ins; whatever else there is works."""
    plugins = registry(*(Point(point, lambda: plugin(**{hook: [item]})) for point in ("one", "two")))
    conflict = rf"named '{name}': plug-in 'one' of some-package 1.2 and plug-in 'two' of some-package 1.2"
    assert name in ask(plugins)
    with pytest.raises(PluginError, match=conflict):
        ask(plugins)[name]
    assert name not in list(ask(plugins))
    assert re.search(conflict, plugins.conflicts()[0])
    assert "minmax" in plugins.calibrators()


def test_a_name_of_isobit_itself_is_a_conflict_too() -> None:
    second_min_max = type("MinMax", (Scheme,), {"name": "minmax"})
    plugins = registry(Point("mine", lambda: plugin(isobit_calibrators=[second_min_max])))
    with pytest.raises(PluginError, match=r"named 'minmax': plug-in 'isobit' of isobit .* and plug-in 'mine' of some"):
        plugins.calibrators()["minmax"]
    assert plugins.calibrators()["percentile"] is Percentile


@pytest.mark.parametrize(("contract", "mend"), [(0, "some-package"), (2, "isobit"), ("1", "isobit")])
def test_another_contract_is_refused(contract: Any, mend: str) -> None:
    def make() -> Any:
        module = plugin(isobit_backends=[FakeBackend("old")])
        module.ISOBIT_CONTRACT = contract
        return module

    plugins = registry(Point("old", make))
    message = f"for contract {contract!r} of isobit, and this isobit has contract 1: install a newer version of {mend}"
    with pytest.raises(PluginError, match=re.escape(message)):
        plugins.backend("old")
    assert plugins.backends() == {}


def test_a_hook_without_its_mark_is_recorded() -> None:
    def isobit_backends() -> list[FakeBackend]:
        return [FakeBackend("odd")]

    plugins = registry(Point("odd", lambda: SimpleNamespace(isobit_backends=isobit_backends)))
    assert "mark it with @isobit.plugins.hookimpl" in (plugins.records["odd"].error or "")


@pytest.mark.parametrize("items", [None, [object()], [SimpleNamespace(name="half", accepts=None)]])
def test_what_is_no_backend_is_recorded(items: Any) -> None:
    plugins = registry(Point("odd", lambda: plugin(isobit_backends=items)), backends(FakeBackend("good")))
    assert list(plugins.backends()) == ["good"]
    assert "isobit_backends: " in (plugins.records["odd"].error or "")


def test_a_backend_that_raises_is_named_and_stops_nobody_else() -> None:
    plugins = registry(backends(FakeBackend("bad", -1), name="bad"), backends(FakeBackend("good")))
    assert plugins.backend_for(object()).name == "good"
    assert plugins.records["bad"].error == "accepts: RuntimeError: cannot look"
    with pytest.raises(PluginError, match=r"plug-in 'mine' of some-package 1\.2 failed to open a dict: KeyError"):
        plugins.open({})
    with pytest.raises(KeyError) as caught:
        FakeBackend("good").open({})
    assert plugins.at_fault(caught.value) is None  # this test's module is no plug-in's


def test_disabled_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_DISABLE_PLUGINS", "jax, other")
    plugins = registry(Point("jax", fails), backends(FakeBackend("torch")))
    assert list(plugins.records) == ["isobit", "mine"]
    with pytest.raises(PluginError, match="no backend 'jax'"):
        plugins.backend("jax")


def test_the_model_finds_its_backend() -> None:
    plugins = registry(backends(FakeBackend("sure", 2), FakeBackend("able", 1), FakeBackend("no", 0)))
    assert plugins.backend_for(object()).name == "sure"


def test_a_tie_names_both() -> None:
    plugins = registry(backends(FakeBackend("a"), FakeBackend("b")))
    with pytest.raises(PluginError, match=re.escape("backends 'a' and 'b' both open dict: say which with backend=")):
        plugins.backend_for({})


def test_nobody_opens_it() -> None:
    plugins = registry(
        backends(FakeBackend("a", 0, (".onnx",)), FakeBackend("b", 0, (".pt2", ".onnx"))), Point("jax", fails)
    )
    with pytest.raises(PluginError, match=r"no backend opens a dict: .*; plug-ins that did not load: jax \(Import"):
        plugins.backend_for({})
    with pytest.raises(PluginError, match=re.escape("no backend opens 'a/b.bin': known endings are .onnx, .pt2")):
        plugins.backend_for(Path("a/b.bin"))
    with pytest.raises(PluginError, match="known endings are none"):
        registry().backend_for("x.onnx")
