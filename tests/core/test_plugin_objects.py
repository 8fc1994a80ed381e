"""What a plug-in's object must have is what its Protocol states: one that lacks a member is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from registries import own_registry

from isobit.formats import EncodingsFormat
from isobit.plugin_objects import PROTOCOLS, has_default, lacking, members
from isobit.plugins import Registry, hookimpl

CLASSES = ("isobit_calibrators", "isobit_techniques")


def protocol_of(hook: str) -> type:
    module, name = PROTOCOLS[hook]
    protocol: type = getattr(import_module(module), name)
    return protocol


def with_all_but(left_out: str | None, hook: str) -> Any:
    """What a hook could return: every member is there but one."""
    values = {name: f"a {name}" for name in members(protocol_of(hook)) if name != left_out}
    made = type("Strange", (), values)
    return made if hook in CLASSES else made()


def registry_with(hook: str, items: Sequence[Any]) -> Registry:
    implementation = hookimpl(lambda: items, specname=hook)
    module = SimpleNamespace(**{hook: implementation})
    return own_registry(SimpleNamespace(name="strange", value="strange.plugin", dist=None, load=lambda: module))


def named(registry: Registry, hook: str) -> dict[str, Any]:
    objects: dict[str, Any] = getattr(registry, hook.removeprefix("isobit_"))()
    return objects


MEMBERS = [(hook, name) for hook in PROTOCOLS for name in members(protocol_of(hook))]


@pytest.mark.parametrize(("hook", "member"), MEMBERS)
def test_an_object_that_lacks_a_member_is_refused_when_it_is_registered(hook: str, member: str) -> None:
    registry = registry_with(hook, [with_all_but(member, hook)])
    assert named(registry, hook).keys() == named(own_registry(), hook).keys()
    record = registry.records["strange"]
    assert record.error is not None
    assert record.error.startswith(f"{hook}: Strange lacks {member}, see {'.'.join(PROTOCOLS[hook])}")


@pytest.mark.parametrize("hook", PROTOCOLS)
def test_an_object_with_every_member_is_registered(hook: str) -> None:
    registry = registry_with(hook, [with_all_but(None, hook)])
    name = "Strange" if hook == "isobit_techniques" else "a name"
    assert name in named(registry, hook)
    assert registry.records["strange"].error is None


@pytest.mark.parametrize("hook", ["isobit_targets", "isobit_recipes"])
def test_files_are_paths(hook: str) -> None:
    registry = registry_with(hook, ["a/chip.toml"])
    assert "chip" not in named(registry, hook)
    assert registry.records["strange"].error == f"{hook}: 'a/chip.toml' is no pathlib.Path"


def test_classes_are_asked_for_where_settings_make_the_objects() -> None:
    registry = registry_with("isobit_techniques", [with_all_but(None, "isobit_techniques")()])
    registry.techniques()
    assert "Strange object" in (registry.records["strange"].error or "")
    assert "is no class" in (registry.records["strange"].error or "")


def test_a_name_is_a_text() -> None:
    nameless = with_all_but(None, "isobit_calibrators")
    nameless.name = property(lambda self: "late")  # known of an object, and not of its class
    registry = registry_with("isobit_calibrators", [nameless])
    registry.calibrators()
    assert "isobit_calibrators: the name of Strange is <property" in (registry.records["strange"].error or "")


class Contract(Protocol):
    """All ways to state a member."""

    size: int
    colour: str = "red"

    @property
    def name(self) -> str:
        """Required."""
        ...

    @property
    def weight(self) -> int:
        """Has a default."""
        return 3

    def read(self) -> int: ...

    @classmethod
    def make(cls) -> int:
        """Required."""
        ...

    def write(self) -> list[str]:
        """Has a default."""
        return [self.name]

    def fits(self) -> bool:
        """Has a default, of one constant."""
        return False

    def _inner(self) -> None: ...


def test_members_and_defaults_are_read_off_the_protocol() -> None:
    stated = members(Contract)
    assert sorted(stated) == ["colour", "fits", "make", "name", "read", "size", "weight", "write"]
    assert sorted(name for name in stated if has_default(stated[name])) == ["colour", "fits", "weight", "write"]


def test_a_class_that_derives_from_the_protocol_has_its_defaults_and_nothing_else_of_it() -> None:
    class Derived(Contract):
        pass

    assert lacking(Derived(), Contract) == (["size", "name", "read", "make"], [])
    assert lacking(SimpleNamespace(size=None), Contract)[0] == [
        "name",
        "read",
        "make",
    ]  # None is a value
    assert lacking(object(), Contract) == (["size", "name", "read", "make"], ["colour", "weight", "write", "fits"])


def test_a_format_says_what_may_be_left_out() -> None:
    """And how: a stranger is told which members it would inherit."""

    class Plain(EncodingsFormat):
        name = "plain"
        suffix = ".plain"
        recognises = read = write = lambda *_: None

    registry = registry_with("isobit_formats", [Plain()])
    assert registry.format("plain").omitted_types == ()
    registry = registry_with("isobit_formats", [with_all_but("uses_names", "isobit_formats")])
    registry.formats()
    error = registry.records["strange"].error or ""
    assert error.endswith("EncodingsFormat; derive from it, and uses_names may be left out"), error
