"""Where the sites of the neutral graph are in an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.backend import NameMap
from isobit.errors import ModelError
from isobit.graph import Input, Layout, Site, Tensor, Weight
from isobit_onnx.translate.translate import NativeNodes, Translation, native_readers


@dataclass(frozen=True)
class NativeSite:
    """A value and the (node, input) pairs that read it at this site, None for all; `layout` makes it canonical."""

    value: str
    readers: tuple[tuple[str, int], ...] | None = None
    layout: Layout = ()


def bind(nodes: NativeNodes, translation: Translation, site: Site) -> NativeSite:
    """The native place of a site that the graph has, among the nodes of the translated model or of a copy."""
    graph = translation.graph
    if isinstance(site, Tensor):
        return NativeSite(translation.values[site.name])
    if isinstance(site, Weight):
        info = graph.weights[site.name]
        source = info.source or site.name
        is_only_view = len(graph.views(site.name)) == 1
        readers = tuple(r for use in graph.uses(site.name) for r in native_readers(nodes, use, source))
        return NativeSite(source, None if is_only_view else readers, info.layout)
    return _bind_input(nodes, translation, site)


def _bind_input(nodes: NativeNodes, translation: Translation, site: Input) -> NativeSite:
    graph = translation.graph
    node = graph.node(site.node)
    name = node.inputs[site.index] or ""
    use = next(use for use in graph.uses(name) if use.node.name == site.node and use.index == site.index)
    layout: Layout = ()
    if name in graph.tensors:
        source = translation.values[name]
    else:
        info = graph.weights[name]
        source, layout = info.source or name, info.layout
    read_too = [translation.values[name] for name in node.inputs if name is not None and name in translation.values]
    readers = native_readers(nodes, use, source, read_too)
    native_index = [reader for reader in readers if reader[1] == site.index]
    same_twice = len([name for name in node.inputs if name == node.input(site.index)]) > 1
    return NativeSite(source, tuple(native_index) if same_twice and native_index else readers, layout)


def from_name_map(names: NameMap, site: Site) -> NativeSite:
    """The place of a site in the ONNX export of another backend. Raises ModelError when the map does not have it."""
    if site not in names:
        raise ModelError(f"the ONNX export has no name for {str(site)!r}: the backend's to_onnx must map every site")
    entry = names[site]
    if entry.input is not None:
        return NativeSite("", ((entry.name, entry.input),), entry.layout)
    return NativeSite(entry.name, None, entry.layout)
