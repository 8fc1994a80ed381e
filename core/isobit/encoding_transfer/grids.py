"""The grid that a value is on where a node of the source reads it, and where it leaves the node that makes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from isobit.encoding_transfer.skeleton import Reader, Skeleton
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph, Node
from isobit.graph.sites import Input, Site, Tensor, Weight


@dataclass(frozen=True)
class GridAtSites:
    """An encoding and the sites of the source that say it."""

    encoding: Encoding
    sites: frozenset[Site]


class SourceGrids:
    """Looks encodings up as the simulator applies them: a reader's own site, else the tensor's, else further up."""

    def __init__(self, skeleton: Skeleton, encodings: Mapping[Site, Encoding]) -> None:
        self.skeleton = skeleton
        self.encodings = encodings

    @property
    def graph(self) -> Graph:
        """The source's graph."""
        return self.skeleton.graph

    def read(self, reader: Reader) -> GridAtSites | None:
        """What `reader` reads its input on; None for float."""
        return self._read(self.graph.node(reader.node), reader.index)

    def _read(self, node: Node, index: int) -> GridAtSites | None:
        name = node.input(index)
        if name is None:
            return None
        own_site = Input(node.name, index)
        if own_site in self.encodings:
            return self._grid(own_site, *self._behind(node))
        if name in self.graph.weights:
            return self._grid(Weight(name)) if Weight(name) in self.encodings else None
        if Tensor(name) in self.encodings:
            return self._grid(Tensor(name), *self._equal_above(name))
        mover = self._mover(name)
        return None if mover is None else self._read(mover, 0)

    def tensor(self, name: str) -> GridAtSites | None:
        """What a tensor is on for readers without a site of their own."""
        if Tensor(name) in self.encodings:
            return self._grid(Tensor(name), *self._equal_above(name))
        mover = self._mover(name)
        return None if mover is None else self._read(mover, 0)

    def common(self, readers: Iterable[Reader]) -> GridAtSites | None:
        """What all of `readers` read on, where that is one encoding."""
        grids = [self.read(reader) for reader in readers]
        present = [grid for grid in grids if grid is not None]
        if not present or len(present) < len(grids) or any(grid.encoding != present[0].encoding for grid in present):
            return None
        return GridAtSites(present[0].encoding, frozenset(site for grid in present for site in grid.sites))

    def _mover(self, name: str) -> Node | None:
        """The node that only moved the tensor's values here."""
        producer = self.graph.producer(name)
        return producer if producer is not None and producer.name not in self.skeleton.nodes else None

    def _behind(self, node: Node) -> list[Site]:
        """The site of what a mover makes: it repeats the encoding of the mover's input."""
        return [] if node.name in self.skeleton.nodes else [Tensor(node.outputs[0])]

    def _equal_above(self, name: str) -> list[Site]:
        """Sites before a tensor with the same encoding of the same values."""
        sites: list[Site] = []
        encoding, mover = self.encodings[Tensor(name)], self._mover(name)
        while mover is not None:
            source = mover.inputs[0] or ""
            above = (Input(mover.name, 0), Tensor(source))
            sites += [site for site in above if self.encodings.get(site) == encoding]
            mover = self._mover(source)
        return sites

    def _grid(self, site: Site, *other_sites: Site) -> GridAtSites:
        encoding = self.encodings[site]
        return GridAtSites(encoding, frozenset({site, *(o for o in other_sites if self.encodings.get(o) == encoding)}))
