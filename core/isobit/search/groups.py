"""Groups of quantizers that get one format: what one operation reads has one kernel, what is shared has one grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from isobit.graph.graph import Graph, Node
from isobit.graph.ops import WEIGHTED
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.plan import WITHOUT_GAIN, Placement, constant_name, is_inside_chain
from isobit.quantsim.simulation import Simulation
from isobit.search.formats import Candidate


@dataclass(frozen=True, eq=False)
class Group:
    """Quantizers that get one format, and the operations that read them.

    `kept` says why its format is not chosen: the user gave one; `frozen` are the weights whose encodings calibration
    keeps, since they were rounded to that grid.
    """

    name: str
    placements: tuple[Placement, ...]
    nodes: tuple[Node, ...]
    kept: str = ""
    frozen: frozenset[Site] = frozenset()

    def allows(self, candidate: Candidate, current: Candidate) -> bool:
        """Whether it can have a format."""
        return candidate is current if self.kept else not (self.frozen and candidate.is_float)

    def overrides(self, candidate: Candidate, least: int, graph: Graph) -> dict[str, str | None]:
        """The overrides of the plan that give it a format; none where it has that already."""
        found: dict[str, str | None] = {}
        if self.kept:
            return found
        lonely = self._lonely()
        for placement in self.placements:
            spec = candidate.spec(placement, least)
            if placement.site in self.frozen or (spec == placement.spec):
                continue
            if placement.kind != "activation":
                name = constant_name(graph, placement.site)
            elif spec is not None and placement.group in lonely:
                name = str(placement.site)
            else:
                name = placement.tensor
            found[name] = None if spec is None else str(spec)
        return found

    def _lonely(self) -> set[str]:
        """Grids of one reader alone: an override of the tensor would round it for the others too."""
        by_group: dict[str, list[Placement]] = {}
        for placement in self.placements:
            by_group.setdefault(placement.group, []).append(placement)
        return {name for name, members in by_group.items() if len(members) == 1 and isinstance(members[0].site, Input)}


class Groups:
    """All groups of a plan, and which of them each node and each tensor belongs to.

    `graph` is the simulation's unless given: the same one, with sizes that the model leaves open.
    """

    def __init__(self, simulation: Simulation, graph: Graph | None = None) -> None:
        graph, plan = simulation.graph if graph is None else graph, simulation.plan
        self.graph, self.plan = graph, plan
        self._parent: dict[str, str] = {}
        placed = [p for p in plan.placements.values() if p.kind != "bias"]
        keys = {placement.site: _key(placement, graph) for placement in placed}
        for placement in placed:
            self._join([keys[placement.site], *([f"grid {placement.group}"] if placement.kind == "activation" else [])])
        readers: dict[str, list[str]] = {}
        for node in graph.nodes:
            joined = [keys[site] for site in _sites(simulation, node)]
            joined += [key for name in node.inputs if name for key in readers.get(name, [])]
            self._join(joined)
            for output in node.outputs:
                if joined and is_inside_chain(plan.floats.get(output, "")):
                    readers[output] = joined[:1]  # what reads on belongs to the chain
        members: dict[str, list[Placement]] = {}
        for placement in placed:
            members.setdefault(self._root(keys[placement.site]), []).append(placement)
        nodes: dict[str, list[Node]] = {root: [] for root in members}
        for node in graph.nodes:
            found = [keys[site] for site in _sites(simulation, node)]
            found += [key for name in node.inputs if name for key in readers.get(name, [])]
            if found:
                nodes[self._root(found[0])].append(node)
        self.all: tuple[Group, ...] = tuple(
            _group(simulation, _name(placements, nodes[root]), placements, nodes[root])
            for root, placements in members.items()
        )
        self._of_node = {node.name: index for index, group in enumerate(self.all) for node in group.nodes}
        self._of_tensor = {
            placement.tensor: index
            for index, group in enumerate(self.all)
            for placement in group.placements
            if placement.kind == "activation"
        }
        #: Nodes that run in float on weights that are integers for their size alone.
        self.weights_only = frozenset(node.name for node in graph.nodes if _is_weights_only(simulation, node))
        self.whole = frozenset(p.tensor for p in placed if isinstance(p.site, Tensor))

    def of_node(self, node: Node) -> int | None:
        """The group whose format an operation runs in; None for one in float."""
        return self._of_node.get(node.name)

    def of_tensor(self, name: str) -> int | None:
        """The group of a tensor's quantizer; None for one in float."""
        return self._of_tensor.get(name)

    def end_of_chain(self, node: Node) -> str:
        """The tensor that a node hands on, behind the fused chain that begins with it."""
        name = node.outputs[0]
        while name not in self._of_tensor and is_inside_chain(self.plan.floats.get(name, "")):
            use = self.graph.sole_reader(name)
            if use is None:
                break
            name = use.node.outputs[0]
        return name

    def is_inside_chain(self, node: Node) -> bool:
        """Whether a node continues a fused chain: it costs nothing of its own."""
        return any(is_inside_chain(self.plan.floats.get(name or "", "")) for name in node.inputs)

    def overrides(self, chosen: Mapping[int, Candidate], least: int) -> dict[str, str | None]:
        """The overrides of the plan for a format each."""
        found: dict[str, str | None] = {}
        for index, candidate in chosen.items():
            found.update(self.all[index].overrides(candidate, least, self.graph))
        return found

    def _root(self, key: str) -> str:
        while self._parent.setdefault(key, key) != key:
            key = self._parent[key]
        return key

    def _join(self, keys: Iterable[str]) -> None:
        first: str | None = None
        for key in keys:
            root = self._root(key)
            first = root if first is None else first
            self._parent[root] = first


def _key(placement: Placement, graph: Graph) -> str:
    """What names the override of a placement: all that have it get one format."""
    if placement.kind == "activation":
        return f"tensor {placement.tensor}"
    return f"constant {constant_name(graph, placement.site)}"


def _sites(simulation: Simulation, node: Node) -> list[Site]:
    """The sites of what a node that runs on integers reads, biases left out; none where it reads a float tensor too."""
    graph, plan, sites = simulation.graph, simulation.plan, list[Site]()
    if not _runs_quantized(simulation, node):
        return []
    weights_only = _is_weights_only(simulation, node)
    for index, name in enumerate(node.inputs):
        if name is None or (weights_only and name in graph.tensors):
            continue
        options: tuple[Site, ...] = (Input(node.name, index), Tensor(name), Weight(name))
        site = next((s for s in options if s in plan.placements and plan.placements[s].kind != "bias"), None)
        if site is not None:
            sites.append(site)
        elif name in graph.tensors and graph.is_float(name) and not is_inside_chain(plan.floats.get(name, "")):
            return []
    return sites


def _runs_quantized(simulation: Simulation, node: Node) -> bool:
    """Whether the target runs an operation on integers, as far as its op and its results tell."""
    target = simulation.target
    if not target.quantizes(node.op) and node.op not in (
        target.same_encoding | target.joint_encoding | target.weights_only
    ):
        return False
    if simulation.config.excludes(node):
        return False
    return node.op in WEIGHTED or not _is_without_gain(simulation, node)


def _is_without_gain(simulation: Simulation, node: Node) -> bool:
    return any(simulation.plan.floats.get(name, "").startswith(WITHOUT_GAIN) for name in node.outputs)


def _is_weights_only(simulation: Simulation, node: Node) -> bool:
    """Whether a layer runs in float on weights that are kept as integers, as thin convolutions do."""
    return node.op in simulation.target.weights_only or (node.op in WEIGHTED and _is_without_gain(simulation, node))


def _name(placements: list[Placement], nodes: list[Node]) -> str:
    """The first layer with weights, else the first operation, else the tensor that nothing reads."""
    if not nodes:
        return f"output {placements[0].site}"
    weights = {str(p.site) for p in placements if p.kind == "weight"}
    return next(
        (node.name for node in nodes if weights.intersection(name or "" for name in node.inputs)), nodes[0].name
    )


def _group(simulation: Simulation, name: str, placements: list[Placement], nodes: list[Node]) -> Group:
    graph, config = simulation.graph, simulation.config
    frozen = frozenset(p.site for p in placements if p.site in simulation.frozen)
    kept = ""
    for placement in placements:
        is_activation = placement.kind == "activation"
        part = placement.tensor if is_activation else constant_name(graph, placement.site)
        if config.override(part)[0] or str(placement.site) in (config.overrides or {}):
            kept = f"you gave {part} its format"
        if placement.site in frozen and is_activation:
            kept = f"the encoding of {part} is frozen"
    return Group(name, tuple(placements), tuple(nodes), kept, frozen)
