"""The weights of a plan that can be rounded by their layers' outputs, and why the others cannot."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace

from isobit.errors import ModelError
from isobit.graph.graph import Graph, Node
from isobit.graph.ops import WEIGHTED
from isobit.graph.sites import Input
from isobit.placement.plan import Placement, Plan, constant_name
from isobit.statistics.layer_rows.patches import Patches
from isobit.techniques.layers.weighted_layer import adapter_obstacle


@dataclass(frozen=True, eq=False)
class Layer:
    """A quantized weight and the nodes that multiply their input with it; the first names the layer.

    `sources` are the tensors that readers read and the groups whose grids they are rounded to: layers of one source
    meet the same rows.
    """

    weight: str
    placement: Placement
    readers: Mapping[str, Patches]
    sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def rows_of(self, reader: str) -> Hashable:
        """The same for readers, of any layer, whose weights meet the same rows."""
        patches = self.readers[reader]
        shape = patches.weight_shape
        outputs = 0 if patches.kernel else len(shape) - 2
        inner = (*shape[:outputs], 0, *shape[outputs + 1 :])
        return self.sources.get(reader, (reader, "")), replace(patches, weight_shape=inner)

    @property
    def name(self) -> str:
        """The first node's name."""
        return next(iter(self.readers))

    @property
    def patches(self) -> Patches:
        """The geometry of the weight as a matrix, which is that of every reader."""
        return next(iter(self.readers.values()))


def find_layers(graph: Graph, plan: Plan) -> tuple[list[Layer], dict[str, str]]:
    """The layers in execution order, and the weights that are left as they are with the reason."""
    layers: list[Layer] = []
    left: dict[str, str] = {}
    for placement in plan.of_kind("weight"):
        weight = constant_name(graph, placement.site)
        try:
            readers = _readers(graph, placement, weight)
            sources = {name: _source(graph, plan, name) for name in readers}
            layers.append(Layer(weight, placement, readers, sources))
        except ModelError as reason:
            left[weight] = str(reason)
    order = {node.name: index for index, node in enumerate(graph.nodes)}
    return sorted(layers, key=lambda layer: order[layer.name]), left


def _source(graph: Graph, plan: Plan, reader: str) -> tuple[str, str]:
    """The tensor that a reader's weight meets, and the group whose grid it is rounded to for that reader, if any."""
    own = plan.placements.get(Input(reader, 0))
    return graph.node(reader).input(0) or "", own.group if own is not None and own.simulated else ""


def _readers(graph: Graph, placement: Placement, weight: str) -> dict[str, Patches]:
    if not placement.spec.is_integer:
        raise ModelError(f"{placement.spec.type_name} has no integers to round to")
    nodes: list[Node] = [use.node for use in graph.uses(weight)]
    if str(placement.site) != weight and len(nodes) > 1:
        raise ModelError("its readers have formats of their own")
    other_readers = graph.source_readers(weight) - {node.name for node in nodes}
    if other_readers:
        raise ModelError(f"{', '.join(sorted(other_readers))} reads it in another layout")
    readers = {}
    for node in nodes:
        if node.op not in WEIGHTED or node.input(1) != weight:
            raise ModelError(f"{node.name} ({node.op}) does not multiply its input with it")
        if node.input(0) not in graph.tensors:
            raise ModelError(f"the input of {node.name} is a constant")
        if obstacle := adapter_obstacle(graph, node):
            raise ModelError(obstacle)
        readers[node.name] = Patches.of(graph, node)
    if len({(p.groups, p.columns) for p in readers.values()}) != 1:
        raise ModelError("its readers use it as different matrices")
    return readers


def can_absorb(graph: Graph, name: str) -> bool:
    """Whether a node has a bias of its own, or can have one."""
    node = graph.node(name)
    bias = node.input(2)
    if bias is None:
        return node.op != "MatMul"
    is_float_constant = bias in graph.weights and graph.weights[bias].dtype == "float32"
    return is_float_constant and len(graph.uses(bias)) == 1 and len(graph.source_readers(bias)) == 1
