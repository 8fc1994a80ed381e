"""Plug-ins: found, broken, duplicate, disabled; and what is asked for and not there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isobit.calibration import Entropy, MeanSquareError, MinMaxRange, MovingAverage, Percentile, SignalToNoise
from isobit.errors import PluginError
from isobit.plugins import Registry, hookimpl


@dataclass(frozen=True)
class FakeBackend:
    name: str
    vote: int = 1
    suffixes: tuple[str, ...] = ()

    def accepts(self, model: object) -> int:
        return self.vote


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
    return Registry(points)  # type: ignore[arg-type]


def backends(*found: FakeBackend, name: str = "mine") -> Point:
    return Point(name, lambda: plugin(isobit_backends=list(found)))


def fails() -> Any:
    raise ImportError("No module named 'missing_framework'")


def test_what_comes_with_isobit() -> None:
    own = registry()
    assert own.backends() == {}
    assert own.calibrators() == {
        "minmax": MinMaxRange,
        "moving-average": MovingAverage,
        "percentile": Percentile,
        "entropy": Entropy,
        "mse": MeanSquareError,
        "sqnr": SignalToNoise,
    }
    assert "FoldBatchNorms" in own.techniques()
    assert "isobit" in own.formats()
    assert {"default", "onnxruntime-cpu"} <= own.targets().keys()


def test_a_plug_in_adds_to_it() -> None:
    class Mine:
        name = "mine"

    found = registry(
        Point(
            "mine",
            lambda: plugin(
                isobit_backends=[FakeBackend("jax")],
                isobit_calibrators=[Mine],
                isobit_techniques=[Mine],
                isobit_formats=[Mine()],
                isobit_targets=[Path("a/chip.toml")],
            ),
        )
    )
    assert found.backend("jax") == FakeBackend("jax")
    assert found.calibrators()["mine"] is Mine
    assert found.techniques()["Mine"] is Mine
    assert found.formats()["mine"].name == "mine"
    assert found.targets()["chip"] == Path("a/chip.toml")
    record = found.records["mine"]
    assert (record.module, record.distribution, record.error) == ("somewhere.plugin", "some-package 1.2", None)


def test_unknown_backends_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        PluginError, match=re.escape("no backend 'torhc' (did you mean 'torch'?); installed: keras, torch")
    ):
        registry(backends(FakeBackend("torch"), FakeBackend("keras"))).backend("torhc")
    with pytest.raises(PluginError, match="installed: none"):
        registry().backend("torch")


def test_a_plug_in_that_does_not_import_is_recorded_and_raised_on_use() -> None:
    found = registry(Point("jax", fails), backends(FakeBackend("torch")))
    assert found.records["jax"].error == "ImportError: No module named 'missing_framework'"
    assert list(found.backends()) == ["torch"]
    with pytest.raises(
        PluginError, match=re.escape("plug-in 'jax' of some-package 1.2 did not load: ImportError: No mod")
    ):
        found.backend("jax")
    assert found.backend_for(object()).name == "torch"


def test_a_misspelt_hook_is_recorded() -> None:
    found = registry(Point("odd", lambda: plugin(isobit_backend=[FakeBackend("odd")])))
    assert "isobit_backend" in (found.records["odd"].error or "")
    assert found.backends() == {}


def test_a_hook_with_arguments_that_do_not_exist_is_recorded() -> None:
    def isobit_backends(framework: str) -> list[FakeBackend]:
        return [FakeBackend("odd")]

    found = registry(Point("odd", lambda: SimpleNamespace(isobit_backends=hookimpl(isobit_backends))))
    assert "framework" in (found.records["odd"].error or "")
    assert found.backends() == {}


def test_a_hook_that_raises_is_recorded_and_stops_nobody_else() -> None:
    def isobit_backends() -> list[FakeBackend]:
        raise RuntimeError("no device")

    broken = Point("odd", lambda: SimpleNamespace(isobit_backends=hookimpl(isobit_backends)))
    found = registry(broken, Point("good", lambda: plugin(isobit_backends=[FakeBackend("good")])))
    assert set(found.backends()) == {"good"}
    assert "no device" in (found.records["odd"].error or "")
    with pytest.raises(PluginError, match="no device"):
        found.backend("odd")


def test_two_plug_ins_of_one_name() -> None:
    found = registry(backends(FakeBackend("a")), backends(FakeBackend("b")))
    assert "two plug-ins are named 'mine'" in (found.records["mine"].error or "")
    with pytest.raises(PluginError, match="uninstall one"):
        found.backend("mine")


@pytest.mark.parametrize(
    ("hook", "make", "ask"),
    [
        ("isobit_backends", lambda: FakeBackend("same"), Registry.backends),
        ("isobit_calibrators", lambda: SimpleNamespace(name="same"), Registry.calibrators),
        ("isobit_formats", lambda: SimpleNamespace(name="same"), Registry.formats),
        ("isobit_techniques", lambda: type("same", (), {}), Registry.techniques),
        ("isobit_targets", lambda: Path("x/same.toml"), Registry.targets),
    ],
)
def test_two_things_of_one_name(hook: str, make: Callable[[], Any], ask: Callable[[Registry], Any]) -> None:
    points = [Point(name, lambda: plugin(**{hook: [make()]})) for name in ("one", "two")]
    with pytest.raises(PluginError, match=r"two .*named 'same'"):
        ask(registry(*points))


def test_disabled_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOBIT_DISABLE_PLUGINS", "jax, other")
    found = registry(Point("jax", fails), backends(FakeBackend("torch")))
    assert list(found.records) == ["mine"]
    with pytest.raises(PluginError, match="no backend 'jax'"):
        found.backend("jax")


def test_the_model_finds_its_backend() -> None:
    found = registry(backends(FakeBackend("sure", 2), FakeBackend("able", 1), FakeBackend("no", 0)))
    assert found.backend_for(object()).name == "sure"


def test_a_tie_names_both() -> None:
    found = registry(backends(FakeBackend("a"), FakeBackend("b")))
    with pytest.raises(PluginError, match=re.escape("backends 'a' and 'b' both open dict: say which with backend=")):
        found.backend_for({})


def test_nobody_opens_it() -> None:
    found = registry(
        backends(FakeBackend("a", 0, (".onnx",)), FakeBackend("b", 0, (".pt2", ".onnx"))), Point("jax", fails)
    )
    with pytest.raises(
        PluginError, match=r"no backend opens a builtins\.dict; plug-ins that did not load: jax \(Import"
    ):
        found.backend_for({})
    with pytest.raises(PluginError, match=re.escape("no backend opens 'a/b.bin': known endings are .onnx, .pt2")):
        found.backend_for(Path("a/b.bin"))
    with pytest.raises(PluginError, match="known endings are none"):
        registry().backend_for("x.onnx")
