"""Sites: the places of a graph where a quantizer can sit."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.errors import EncodingError


@dataclass(frozen=True, order=True)
class Tensor:
    """An activation, for all its readers."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, order=True)
class Input:
    """One input of one node; it overrides the tensor's or weight's own site for this reader alone."""

    node: str
    index: int

    def __str__(self) -> str:
        return f"{self.node}[{self.index}]"


@dataclass(frozen=True, order=True)
class Weight:
    """A constant (weight, bias, table), for all its readers."""

    name: str

    def __str__(self) -> str:
        return self.name


Site = Tensor | Input | Weight


def site_key(site: Site) -> tuple[str, str, int]:
    """A key that sorts sites of all kinds together, by kind, name and index."""
    if isinstance(site, Input):
        return ("input", site.node, site.index)
    return ("tensor" if isinstance(site, Tensor) else "weight", site.name, 0)


def site_of(kind: str, name: str, index: int = 0) -> Site:
    """The site of a kind (``tensor``, ``weight`` or ``input``); the inverse of `site_key`."""
    if kind == "tensor":
        return Tensor(name)
    if kind == "weight":
        return Weight(name)
    if kind == "input":
        return Input(name, index)
    raise EncodingError(f"unknown kind of site {kind!r}: known are tensor, weight and input")
