"""Putting quantizers into a copy of the float graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import fx

from isobit.encodings import Encoding
from isobit.graph import Input, Site, Tensor, to_canonical
from isobit.statistics import Request
from isobit_torch.program.convert import to_array
from isobit_torch.program.fx_nodes import NAME, attribute, behind, op_name
from isobit_torch.program.program import copy_graph
from isobit_torch.simulate.fed_observer import FedObserver
from isobit_torch.simulate.quantizers import QUANTIZERS, Quantizer, WeightQuantizer
from isobit_torch.translate.sites import NativeReader, NativeSite, bind, read_instead, seen_through_views
from isobit_torch.translate.translate import Translation

#: Calls whose result is memory of its own, which nothing else sees.
_FRESH = frozenset(
    "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear matmul bmm mm add "
    "addmm sub mul div relu relu6 hardtanh clamp clamp_min clamp_max gelu silu mish hardswish hardsigmoid sigmoid "
    "tanh elu leaky_relu prelu celu selu softplus softmax log_softmax layer_norm group_norm instance_norm "
    "rms_norm cat embedding max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool2d "
    "adaptive_avg_pool3d mean sum index_select exp sqrt reciprocal neg abs pow".split()
)


@dataclass(frozen=True, eq=False)
class Simulated:
    """A graph with quantizers: `copies` are its nodes by those of the float graph, `after` a site's quantizer node."""

    graph: fx.Graph
    copies: Mapping[fx.Node, fx.Node]
    after: Mapping[Site, fx.Node]

    def watched(self, translation: Translation, requests: Iterable[Request]) -> dict[fx.Node, list[FedObserver]]:
        """The observers of these requests, by the node whose result each is about."""
        found: dict[fx.Node, list[FedObserver]] = {}
        for request in requests:
            site, graph = request.site, translation.graph
            name = graph.node(site.node).input(site.index) or "" if isinstance(site, Input) else site.name
            node = self.copies[bind(translation, site).source]
            if request.stage != "before":
                node = next((self.after[place] for place in (site, Tensor(name)) if place in self.after), node)
            found.setdefault(node, []).append(FedObserver(request.observer, graph.tensors[name].channel_axis))
        return found


def insert_quantizers(
    graph: fx.Graph, translation: Translation, keys: Mapping[Site, str], quantizers: Mapping[str, Quantizer]
) -> Simulated:
    """A copy of `graph` with a call of its quantizer at each site; says which of them may overwrite their input."""
    simulated, copies = copy_graph(graph)
    after: dict[Site, fx.Node] = {}
    placed = [(site, bind(translation, site)) for site in keys]
    # Quantizers of single readers come first: one of all readers takes those that still read the float value.
    for site, native in sorted(placed, key=lambda item: item[1].readers is None):
        after[site] = _insert(simulated, copies, native, f"{QUANTIZERS}.{keys[site]}")
    for site, node in after.items():
        quantizers[keys[site]].in_place = _may_overwrite(node)
    simulated.lint()
    return Simulated(simulated, copies, after)


def _insert(graph: fx.Graph, copies: Mapping[fx.Node, fx.Node], native: NativeSite, target: str) -> fx.Node:
    source = copies[native.source]
    before = list(source.users)
    with graph.inserting_after(behind(source)):
        node = graph.call_module(target, (source,))
    if native.readers is None:
        for user in before:
            if op_name(user) != "sym_size" and not is_quantizer(user):
                user.replace_input_with(source, node)
    else:
        for reader in native.readers:
            _reread(copies, reader, native.source, node)
    return node


def is_quantizer(node: fx.Node) -> bool:
    """Whether a node of the simulator's graph is a call of a quantizer."""
    return node.op == "call_module" and str(node.target).startswith(f"{QUANTIZERS}.")


def quantized_weights(module: fx.GraphModule) -> Iterator[tuple[str, Encoding, NDArray[Any]]]:
    """Each weight that a quantizer of a simulator reads, its grid, and its values in canonical layout."""
    for node in module.graph.nodes:
        if not is_quantizer(node):
            continue
        quantizer, source = module.get_submodule(str(node.target)), node.all_input_nodes[0]
        if isinstance(quantizer, WeightQuantizer) and source.op == "get_attr":
            values = to_array(attribute(module, str(source.target)))
            yield str(source.target), quantizer.encoding, to_canonical(values, quantizer.layout)


def _reread(copies: Mapping[fx.Node, fx.Node], reader: NativeReader, source: fx.Node, result: fx.Node) -> None:
    """Let one reader read `result`; views between the value and the reader are copied for it."""
    node = copies[reader.node]
    result = seen_through_views(copies[reader.read], copies[source], result, node)
    read_instead(node, reader.index, copies[reader.read], result)


def _may_overwrite(node: fx.Node) -> bool:
    """Whether the quantizer alone sees its input's memory. Views and inputs of the model share theirs."""
    source = node.all_input_nodes[0]
    others = [user for user in source.users if user is not node and op_name(user) != "sym_size"]
    fresh = op_name(source) in _FRESH or (source.op == "call_module" and len(source.args) == 5)
    return fresh and not others and NAME in source.meta
