"""From a matching of two graphs to sites of the target with encodings of the source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from isobit.encoding_transfer.content import Side, content_classes
from isobit.encoding_transfer.grids import GridAtSites, SourceGrids
from isobit.encoding_transfer.matching import Matching
from isobit.encoding_transfer.report import Transfer
from isobit.encoding_transfer.skeleton import Reader, Skeleton
from isobit.encodings.encoding import Encoding, Encodings
from isobit.errors import EncodingError
from isobit.graph.graph import Node
from isobit.graph.sites import Input, Site, Tensor, Weight


def place_encodings(
    encodings: Mapping[Site, Encoding], source: Side, target: Side, quantized: Iterable[Site] | None = None
) -> Transfer:
    """The encodings at the target's sites: at those `quantized`, or at those that correspond to the source's."""
    classes = content_classes(source, target)
    matching = Matching(Skeleton(source.graph, classes[0]), Skeleton(target.graph, classes[1]))
    placer = _Placer(matching, encodings)
    sites = list(quantized) if quantized is not None else placer.corresponding()
    grids = {site: grid for site in sites for grid in [placer.grid(site)] if grid is not None}
    missing = {site: placer.why_missing(site) for site in sites if site not in grids} if quantized is not None else {}
    used = {site for grid in grids.values() for site in grid.sites}
    used |= placer.redundant_sites(used)
    left = [site for site in encodings if site not in used]
    needless = [site for site in left if placer.is_needless(site)]
    unmapped = {site: placer.why_unmapped(site) for site in left if site not in needless}
    notes = tuple(f"bias {str(site)!r} of the source is zero, and the target has none there" for site in needless)
    mapped = {site: tuple(sorted(grid.sites, key=str)) for site, grid in grids.items()}
    return Transfer(Encodings({site: grid.encoding for site, grid in grids.items()}), mapped, unmapped, missing, notes)


class _Placer:
    """Answers for one site of the target at a time."""

    def __init__(self, matching: Matching, encodings: Mapping[Site, Encoding]) -> None:
        self.matching = matching
        self.source, self.target = matching.source, matching.target
        self.grids = SourceGrids(self.source, encodings)
        self.encodings = encodings
        self._settle()
        self.open_source = {name for names, _ in matching.open for name in names}
        self.open_target = {name for _, names in matching.open for name in names}
        self.movers = self._matched_movers()

    def _settle(self) -> None:
        """Pair the nodes of an open group where all have the same encodings, so that any pairing is right."""
        for group in list(self.matching.open):
            if len({self._profile(name) for name in group[0]}) == 1:
                self.matching.settle(group)
        for target, source in self.matching.to_source.items():
            reads = {self._read(source, index) for index in self.source.operands(self.source.nodes[source])}
            if target not in self.matching.order and len(reads) == 1:
                self.matching.settle_order(target)

    def _profile(self, name: str) -> tuple[object, ...]:
        """All encodings that the source has around a node."""
        node = self.source.nodes[name]
        reads = [self._read(name, index) for index in range(len(node.inputs))]
        outputs = [self.encodings.get(Tensor(tensor)) for tensor in node.outputs]
        movers = [mover for tensor in node.outputs for mover in self.source.movers.get(tensor, ())]
        moved = [self.encodings.get(site) for m in movers for site in (Input(m.name, 0), Tensor(m.outputs[0]))]
        return (*reads, *outputs, *moved)

    def _read(self, node: str, index: int) -> Encoding | None:
        grid = self.grids.read(Reader(node, index))
        return None if grid is None else grid.encoding

    # --- what corresponds ------------------------------------------------------------------------------------------

    def _matched_movers(self) -> dict[str, Node]:
        """Transposes and the like that both sides have alike behind one value, target to source."""
        matched: dict[str, Node] = {}
        for target, source in self.matching.values.items():
            free = list(self.source.movers.get(source, ()))
            for mover in self.target.movers.get(target, ()):
                candidates = [
                    m for m in free if m.op == mover.op and _shape(self.source, m) == _shape(self.target, mover)
                ]
                if len(candidates) == 1:
                    matched[mover.name] = candidates[0]
                    free.remove(candidates[0])
        return matched

    def _tensor(self, name: str) -> str | None:
        """The source's tensor of one of the target's."""
        root = self.target.root.get(name)
        if root == name:
            return self.matching.values.get(name)
        mover = self.target.graph.producer(name)
        matched = self.movers.get(mover.name) if mover is not None else None
        return None if matched is None else matched.outputs[0]

    def _reader(self, reader: Reader) -> Reader | None:
        """The source's reader of one of the target's that computes."""
        name = self.matching.to_source.get(reader.node)
        if name is None:
            return None
        node, matched, index = self.target.graph.node(reader.node), self.source.graph.node(name), reader.index
        if node.input(index) in self.target.root:
            index = self.matching.order.get(node.name, {}).get(index, -1)
        elif matched.input(index) in self.source.root:  # ``constant * x`` against ``x * constant``
            index = next((i for i, constant in enumerate(matched.inputs) if constant in self.source.classes), -1)
        return Reader(name, index) if index >= 0 else None

    def corresponding(self) -> list[Site]:
        """The sites of the target that stand where the source has encodings."""
        sites: list[Site] = []
        for root in self.matching.values:
            for name in [root, *(m.outputs[0] for m in self.target.movers.get(root, ()))]:
                if self._on_tensor(name) is not None:
                    sites.append(Tensor(name))
            sites += [
                Input(mover.name, 0)
                for mover in self.target.movers.get(root, ())
                if mover.name in self.movers and Input(self.movers[mover.name].name, 0) in self.encodings
            ]
            sites += self._single_readers(root, set(sites))
        return sites + self._constants()

    def _single_readers(self, root: str, sites: set[Site]) -> list[Site]:
        """Readers whose value is on another grid than the sites so far give it."""
        single: list[Site] = []
        for reader in self.target.readers.get(root, ()):
            matched = self._reader(reader)
            grid = self.grids.read(matched) if matched is not None else None
            if grid is not None and self._given(reader, sites) != grid.encoding:
                single.append(Input(reader.node, reader.index))
        return single

    def _given(self, reader: Reader, sites: set[Site]) -> Encoding | None:
        node, index = self.target.graph.node(reader.node), reader.index
        while True:
            name = node.inputs[index] or ""
            for site in (Input(node.name, index), Tensor(name)):
                if site in sites:
                    grid = self.grid(site)
                    return None if grid is None else grid.encoding
            mover = self.target.graph.producer(name)
            if mover is None or mover.name in self.target.nodes:
                return None
            node, index = mover, 0

    def _constants(self) -> list[Site]:
        sites: list[Site] = []
        for name in self.target.graph.weights:
            uses = [Reader(use.node.name, use.index) for use in self.target.graph.uses(name)]
            if self.grid(Weight(name)) is not None:
                sites.append(Weight(name))
            else:
                single = [Input(reader.node, reader.index) for reader in uses]
                sites += [site for site in single if self.grid(site) is not None]
        return sites

    # --- encodings -------------------------------------------------------------------------------------------------

    def grid(self, site: Site) -> GridAtSites | None:
        """The encoding of one site of the target, and where it comes from."""
        if isinstance(site, Weight):
            return self._on_weight(site.name)
        if isinstance(site, Tensor):
            return self._on_tensor(site.name) or self._on_readers(site.name)
        node = self.target.graph.node(site.node)
        if site.node in self.target.nodes:
            name = node.input(site.index) or ""
            matched = self._reader(Reader(site.node, site.index))
            if matched is None or (name in self.target.classes and not self._holds_same(name, matched)):
                return None
            return self._fitting(name, self.grids.read(matched))
        mover = self.movers.get(site.node)
        if mover is not None:
            return self.grids.read(Reader(mover.name, 0))
        return self._on_tensor(node.inputs[0] or "") or self._on_readers(node.outputs[0])

    def _on_tensor(self, name: str) -> GridAtSites | None:
        source_tensor = self._tensor(name)
        if source_tensor is not None and Tensor(source_tensor) in self.encodings:
            return self._fitting(name, self.grids.tensor(source_tensor))
        root = self.target.root.get(name, name)
        moved = self.matching.values.get(root) if source_tensor is None and root != name else None
        grid = self.grids.tensor(moved) if moved is not None else None
        # Only a grid of the whole tensor goes through a transpose that the source does not have.
        return grid if grid is not None and grid.encoding.axis is None else None

    def _on_readers(self, name: str) -> GridAtSites | None:
        """The one encoding on which all that read the tensor, also through movers, read it."""
        readers = [self._reader(reader) for reader in self._readers_behind(name)]
        return self.grids.common([reader for reader in readers if reader is not None]) if all(readers) else None

    def _readers_behind(self, name: str) -> list[Reader]:
        readers = []
        for use in self.target.graph.uses(name):
            if use.node.name in self.target.nodes:
                readers.append(Reader(use.node.name, use.index))
            else:
                readers += self._readers_behind(use.node.outputs[0])
        return readers

    def _on_weight(self, name: str) -> GridAtSites | None:
        readers = [self._reader(Reader(use.node.name, use.index)) for use in self.target.graph.uses(name)]
        same_readers = [reader for reader in readers if reader is not None and self._holds_same(name, reader)]
        if not same_readers or len(same_readers) < len(readers):
            return None
        return self._fitting(name, self.grids.common(same_readers))

    def _holds_same(self, name: str, reader: Reader) -> bool:
        """Whether the source's constant holds what the target's does; a folded bias may differ in last bits."""
        constant = self.source.graph.node(reader.node).input(reader.index)
        if constant is None or constant not in self.source.classes:
            return False
        return self.source.classes[constant] == self.target.classes[name] or self._is_bias(reader)

    def _is_bias(self, reader: Reader) -> bool:
        uses = self.source.graph.uses(self.source.graph.node(reader.node).input(reader.index) or "")
        return any(use.node.name == reader.node and use.role == "bias" for use in uses)

    def _fitting(self, name: str, grid: GridAtSites | None) -> GridAtSites | None:
        """The grid, if it fits the shape of what it is for."""
        info = self.target.graph.weights.get(name)
        if grid is not None and info is not None:
            try:
                grid.encoding.broadcast(tuple(info.shape))
            except EncodingError:
                return None
        return grid

    def redundant_sites(self, used: Iterable[Site]) -> set[Site]:
        """Sites of the source with the same encoding of the same values as a used site, beside a transpose."""
        value_encodings = {(self._value(site), self.encodings[site]) for site in used}
        return {
            s
            for s, e in self.encodings.items()
            if self._value(s) is not None and (self._value(s), e) in value_encodings
        }

    def _value(self, site: Site) -> str | None:
        """The value of the source that a site quantizes; None for constants and for readers that compute."""
        if isinstance(site, Tensor):
            return self.source.root.get(site.name)
        if isinstance(site, Input) and site.node not in self.source.nodes and self.source.graph.has_site(site):
            return self.source.root.get(self.source.graph.node(site.node).inputs[site.index] or "")
        return None

    def is_needless(self, site: Site) -> bool:
        """Whether it is a bias of zeros that the target's layer does without."""
        info = self.source.graph.weights.get(site.name) if isinstance(site, Weight) else None
        if info is None or info.magnitude != 0:
            return False
        uses = self.source.graph.uses(site.name if isinstance(site, Weight) else "")
        layers = [self.matching.to_target.get(use.node.name) for use in uses if use.role == "bias"]
        return len(layers) == len(uses) and all(
            layer is not None and self.target.graph.node(layer).input(2) is None for layer in layers
        )

    # --- reasons ---------------------------------------------------------------------------------------------------

    def why_unmapped(self, site: Site) -> str:
        """Why a site of the source has none in the target."""
        if not self.source.graph.has_site(site):
            return "the source has no such site"
        node = self._node_of(site)
        if node is None:
            return "no input of the target corresponds to this one"
        return self._why(node.name, node.op, self.open_source, self.matching.to_target, "target", site)

    def why_missing(self, site: Site) -> str:
        """Why a site of the target has no encoding."""
        graph = self.target.graph
        node = graph.node(site.node) if isinstance(site, Input) else None
        if isinstance(site, Tensor):
            node = graph.producer(self.target.root.get(site.name, site.name))
        elif isinstance(site, Weight):
            node = graph.uses(site.name)[0].node
        if node is None:
            return "no input of the source corresponds to this one"
        return self._why(node.name, node.op, self.open_target, self.matching.to_source, "source", site)

    def _why(
        self, node: str, op: str, unsure: Iterable[str], matched: Mapping[str, str], other_side: str, site: Site
    ) -> str:
        if node in unsure:
            return f"node {node!r} ({op}) is one of several that nothing tells apart in the {other_side}"
        if node not in matched:
            return f"node {node!r} ({op}) has no counterpart in the {other_side}, by content or by place"
        if isinstance(site, Weight):
            return f"node {matched[node]!r} of the {other_side} holds other values there, or has no such constant"
        return f"node {matched[node]!r} of the {other_side} has no such site of its own"

    def _node_of(self, site: Site) -> Node | None:
        graph = self.source.graph
        if isinstance(site, Input):
            return graph.node(site.node)
        if isinstance(site, Weight):
            return next((use.node for use in graph.uses(site.name)), None)
        return graph.producer(self.source.root.get(site.name, site.name))


def _shape(side: Skeleton, mover: Node) -> tuple[object, ...] | None:
    """What a mover makes, axes of unknown size alike."""
    shape = side.graph.tensors[mover.outputs[0]].shape
    return None if shape is None else tuple(n if isinstance(n, int) else None for n in shape)
