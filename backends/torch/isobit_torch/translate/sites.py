"""Where the sites of the neutral graph are in the fx graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from isobit.errors import EncodingError
from isobit.graph import Layout, Site, Tensor, Use, Weight
from isobit_torch.program.fx_nodes import NAME, SHAPE, op_name
from isobit_torch.translate.ops import convert
from isobit_torch.translate.translate import Translation

_NONE: Layout = ()


@dataclass(frozen=True)
class NativeReader:
    """A node that reads a site's value directly or through views: `read` is what it reads, `index` which argument."""

    node: fx.Node
    read: fx.Node
    index: int | None = None


@dataclass(frozen=True)
class NativeSite:
    """A value and its readers, None for all; `layout` makes a constant canonical."""

    source: fx.Node
    readers: tuple[NativeReader, ...] | None = None
    layout: Layout = ()


def bind(translation: Translation, site: Site) -> NativeSite:
    """The native place of a site that the graph has. Raises EncodingError where no quantizer can reach it."""
    graph = translation.graph
    if isinstance(site, Tensor):
        return NativeSite(translation.values[site.name])
    if isinstance(site, Weight):
        info = graph.weights[site.name]
        source = info.source or site.name
        node = _attribute(translation, site, source)
        readers = tuple(r for use in graph.uses(site.name) for r in native_readers(translation, use, node))
        return NativeSite(node, None if len(graph.views(site.name)) == 1 else readers, info.layout)
    name = graph.node(site.node).inputs[site.index] or ""
    use = next(use for use in graph.uses(name) if use.node.name == site.node and use.index == site.index)
    if name in graph.tensors:
        node, layout = translation.values[name], _NONE
    else:
        info = graph.weights[name]
        node, layout = _attribute(translation, site, info.source or name), info.layout
    readers = native_readers(translation, use, node)
    if not readers:
        raise EncodingError(f"{site}: the input is a setting of the operation, which no quantizer can reach")
    return NativeSite(node, readers, layout)


def _attribute(translation: Translation, site: Site, source: str) -> fx.Node:
    if source not in translation.attributes:
        raise EncodingError(f"{str(site)!r} is a number in the code, which no quantizer can reach")
    return translation.attributes[source]


def native_readers(translation: Translation, use: Use, source: fx.Node) -> tuple[NativeReader, ...]:
    """The fx nodes through which a reader in the graph reads the value of `source`."""
    twice = sum(name == use.node.inputs[use.index] for name in use.node.inputs) > 1
    parts = [node for part in use.node.parts for node in translation.parts.get(part, ())]
    others = {translation.values[name] for name in use.node.inputs if name is not None and name in translation.values}
    others.discard(source)
    readers = [
        NativeReader(node, read, use.index if twice and len(parts) == 1 else None)
        for node in parts
        for read in dict.fromkeys(node.all_input_nodes)
        if read not in parts and _sees(read, source, others)
    ]
    return tuple(readers)


def _sees(read: fx.Node, source: fx.Node, others: set[fx.Node]) -> bool:
    """Whether a node is `source` or a view of it, and no view that the same node reads as a tensor of its own."""
    chain = view_chain(read)
    return source in chain and others.isdisjoint(chain[: chain.index(source)])


_VIEWS = frozenset(
    "view reshape _unsafe_view flatten unflatten squeeze unsqueeze transpose permute t numpy_T mT contiguous clone "
    "detach detach_ alias lift_fresh_copy dropout to _to_copy type_as slice expand".split()
)

_MAY_CHANGE_NOTHING = frozenset({"pad", "constant_pad_nd", *(f"adaptive_avg_pool{axes}d" for axes in (1, 2, 3))})


def is_view(node: fx.Node) -> bool:
    """Whether a node only shows its input in another way, or changes nothing: pads by 0, pools to the size that is."""
    if op_name(node) in _VIEWS or (node.op == "call_module" and len(node.args) == 1):
        return True
    call = convert(node) if op_name(node) in _MAY_CHANGE_NOTHING and SHAPE in node.meta else None
    return call is not None and call.op == "Identity"


def view_chain(node: fx.Node) -> list[fx.Node]:
    """The node and, up through views, the nodes it was made from."""
    chain = [node]
    while is_view(chain[-1]) and isinstance(chain[-1].args[0], fx.Node):
        chain.append(chain[-1].args[0])
    return chain


def read_instead(node: fx.Node, index: int | None, old: fx.Node, new: fx.Node) -> None:
    """Let a node read `new` where it reads `old`: at one place, where it has several and an index says which."""
    listed: Any = node.args[0] if node.args else None
    if index is None:
        node.replace_input_with(old, new)
    elif isinstance(listed, list | tuple) and index < len(listed) and listed[index] is old:
        node.args = ([*listed[:index], new, *listed[index + 1 :]], *node.args[1:])
    elif index < len(node.args) and isinstance(node.args[index], fx.Node):
        node.args = tuple(new if i == index else value for i, value in enumerate(node.args))
    else:
        node.replace_input_with(old, new)


def seen_through_views(read: fx.Node, source: fx.Node, result: fx.Node, reader: fx.Node) -> fx.Node:
    """`result` as `reader` shall read it: behind copies of the views that lie between `source` and `read`."""
    chain = view_chain(read)
    for view in reversed(chain[: chain.index(source)]):
        with reader.graph.inserting_before(reader):
            copied = reader.graph.node_copy(view, lambda n: n)
            copied.meta[NAME] = f"{view.meta.get(NAME, view.name)}.{reader.name}"  # names of nodes are unique
        copied.args = (result, *copied.args[1:])
        result = copied
    return result
