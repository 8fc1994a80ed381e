"""The float model as ONNX, by torch.onnx.export, and where each site of the graph is in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from isobit.backend import NameMap, OnnxName
from isobit.errors import ModelError
from isobit.graph import (
    Graph,
    Input,
    Layout,
    Permute,
    Site,
    Take,
    Tensor,
    Weight,
    conv_transpose_layout,
    to_canonical,
    to_native,
)
from isobit.graph.free_name import take_name
from isobit.graph.layout import TRANSPOSED
from isobit_torch.export.float_onnx import float_onnx
from isobit_torch.export.marks import MARK, mark_constants, marked_graph
from isobit_torch.export.phases import as_quadrants
from isobit_torch.export.recurrent import as_onnx_nodes, as_operators, refuse_projections
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.program.program import Program
from isobit_torch.program.signature import Signature
from isobit_torch.simulate.simulator import Simulator
from isobit_torch.translate.translate import Translation

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto

#: Where each value of a symmetric constant (an identity, a Hadamard rotation, cosines) was before views were folded, by
#: name: the values themselves do not tell whether it has been transposed.
Places = dict[str, NDArray[np.int64]]

#: What the exporter writes between a constant and its reader and leaves the values as they are.
_VIEWS = frozenset(("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"))


def to_onnx(
    program: Program, translation: Translation, native: Simulator, quantized: Iterable[Site]
) -> tuple[ModelProto, NameMap]:
    """Export the float graph. Raises ModelError for what ONNX cannot say, and where a quantized site has no name."""
    import onnx_ir as ir

    refuse_projections(program.graph)
    graph, labels = marked_graph(program.graph, translation)
    as_operators(graph, native)
    as_quadrants(graph)
    exported = float_onnx(program, native, graph)
    _rename_clashes(exported)
    mark_constants(exported, translation, labels)
    _prepare(exported)
    marked = _take_out_marks(exported, labels)
    as_onnx_nodes(exported, marked)
    places = _fold_weight_views(exported)
    _name_outputs(exported, program.signature)
    names = _names(translation, native, exported, marked, places)
    missing = [site for site in quantized if site not in names]
    if missing:
        raise ModelError(f"the ONNX export lost {len(missing)} quantized site(s), {str(missing[0])!r} among them")
    return ir.to_proto(exported), names


def _take_out_marks(model: ir.Model, labels: dict[str, Site]) -> dict[Site, list[Any]]:
    """Remove the marks; for each site the marked value, and for an Input site its (node, index) readers."""
    import onnx_ir as ir

    marked: dict[Site, list[Any]] = {}
    for node in [n for n in model.graph if n.op_type == MARK]:
        site = labels[str(node.attributes["label"].value)]
        source, output = node.inputs[0], node.outputs[0]
        if isinstance(site, Input):
            several = len(output.uses()) > 1 and source is not None and not source.is_initializer()
            readers = [(_one_reader(model, node), 0)] if several else [(use.node, use.idx) for use in output.uses()]
            marked.setdefault(site, []).extend(readers)
        if output.is_graph_output():
            identity = ir.Node("", "Identity", [source], name=f"{node.name}_output")
            result = identity.outputs[0]
            result.name, result.type, result.shape = f"{output.name}_identity", output.type, output.shape
            model.graph.insert_before(node, [identity])
            for position, value in enumerate(model.graph.outputs):
                if value is output:
                    model.graph.outputs[position] = result
        if source is None:
            continue
        if output.uses():
            ir.convenience.replace_all_uses_with(output, source)
        model.graph.remove(node, safe=True)
        if not isinstance(site, Input):
            marked[site] = [source]
    return marked


def _one_reader(model: ir.Model, mark: ir.Node) -> ir.Node:
    """An Identity in place of a mark at one input that the exporter reads in several nodes (softplus, for example)."""
    import onnx_ir as ir

    output = mark.outputs[0]
    identity = ir.Node("", "Identity", [mark.inputs[0]], name=f"{mark.name}_input")
    read = identity.outputs[0]
    read.name, read.type, read.shape = f"{output.name}_input", output.type, output.shape
    model.graph.insert_before(mark, [identity])
    for use in list(output.uses()):
        use.node.replace_input_with(use.idx, read)
    return identity


def _rename_clashes(model: ir.Model) -> None:
    """The exporter names values after calls, which may be the name of a parameter too."""
    taken = {value.name or "" for value in model.graph.inputs} | set(model.graph.initializers)
    for node in model.graph:
        for value in node.outputs:
            if value.name:
                value.name = take_name(value.name, taken)


def _name_outputs(model: ir.Model, signature: Signature) -> None:
    """The user's names; an Identity before an output goes where its input can be the output itself."""
    import onnx_ir as ir

    names = [name for name in signature.outputs if name is not None]
    _separate_outputs(model)
    taken = {v.name for v in model.graph.inputs} | set(model.graph.initializers)
    for position, name in enumerate(names):
        output = model.graph.outputs[position]
        producer = output.producer()
        if producer is not None and producer.op_type == "Identity" and not output.uses():
            source = producer.inputs[0]
            free = source is not None and source.producer() is not None and not source.is_graph_output()
            if free and source is not None:
                model.graph.outputs[position] = source
                model.graph.remove(producer, safe=True)
                output = source
        for value in ir.convenience.create_value_mapping(model.graph).values():
            if value.name == name and value is not output and name not in taken:
                value.name = f"{name}_inner"
        output.name = name if name not in taken else f"{name}_out"


def _separate_outputs(model: ir.Model) -> None:
    """A tensor that is returned twice gets an Identity for each further name."""
    import onnx_ir as ir

    outputs = model.graph.outputs
    for position, value in enumerate(outputs):
        if not any(value is other for other in outputs[:position]):
            continue
        identity = ir.Node("", "Identity", [value], name=f"{value.name}_output_{position}")
        repeated = identity.outputs[0]
        repeated.name, repeated.type, repeated.shape = f"{value.name}_{position}", value.type, value.shape
        model.graph.append(identity)
        outputs[position] = repeated


def _prepare(model: ir.Model) -> None:
    """Fold shape arithmetic as the ONNX backend does for any file; nothing folds across the marks.

    Convolutions without a bias have zeros there from the exporter, those of volumes in a shape that no runtime takes.
    """
    from isobit_onnx.read.read_model import prepare

    model.graph.name = model.graph.name or "model"
    prepare(model, "the exported model")
    for node in model.graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) == 3 else None
        if bias is not None and bias.const_value is not None and len(bias.const_value.shape) == 2:
            node.replace_input_with(2, None)


def _fold_weight_views(model: ir.Model) -> Places:
    """A transposed weight is stored transposed: runtimes look for the constant right behind the operation."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    from isobit_onnx.read.initializers import describe
    from isobit_onnx.read.read_model import fold_views, infer_shapes

    constants = {name: v.const_value for name, v in model.graph.initializers.items() if v.const_value is not None}
    symmetric = {name: tensor for name, tensor in constants.items() if _is_symmetric(tensor)}
    for name, tensor in symmetric.items():
        numbered = np.arange(tensor.size, dtype=np.int64).reshape(tensor.shape.numpy())
        model.graph.initializers[name].const_value = ir.Tensor(numbered, name=name)
    fold_views(model)
    places: Places = {}
    for name, tensor in symmetric.items():
        value = model.graph.initializers[name]
        assert value.const_value is not None
        places[name] = value.const_value.numpy().astype(np.int64)
        value.const_value = ir.Tensor(tensor.numpy().reshape(-1)[places[name]], dtype=tensor.dtype, name=name)
        describe(value, value.const_value)
    passes.RemoveUnusedNodesPass()(model)
    infer_shapes(model)
    return places


def _is_symmetric(tensor: ir.TensorProtocol) -> bool:
    shape = tensor.shape.numpy()
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        return False
    array = tensor.numpy()
    return np.array_equal(array, array.swapaxes(-1, -2))


def _names(
    translation: Translation, native: Simulator, exported: ir.Model, marked: dict[Site, list[Any]], places: Places
) -> NameMap:
    names: dict[Site, OnnxName] = {}
    graph = translation.graph
    for site, entries in marked.items():
        if isinstance(site, Tensor) and entries[0].name:
            names[site] = OnnxName(entries[0].name)
        elif isinstance(site, Input):
            readers = [(node, index) for node, index in entries if node.graph is exported.graph]
            name = graph.node(site.node).input(site.index)
            if len(readers) != 1 or name is None:
                continue
            is_weight = name in graph.weights
            node, index = _constant_reader(*readers[0]) if is_weight else readers[0]
            layout = _layout(translation, native, name, node.inputs[index], places) if is_weight else ()
            if layout is not None and node.name:
                names[site] = OnnxName(node.name, layout, index)
    for name, info in graph.weights.items():
        entry = marked.get(Weight(info.source or name))
        if entry is None or entry[0].name not in exported.graph.initializers:
            continue
        layout = _layout(translation, native, name, entry[0], places)
        if layout is not None:
            names[Weight(name)] = OnnxName(entry[0].name, layout)
    _sole_readers(graph, exported, names)
    return names


def _constant_reader(node: ir.Node, index: int) -> tuple[ir.Node, int]:
    """Where the constant behind an input is read: a view of it that nothing else reads stands between the two."""
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in _VIEWS and len(producer.outputs[0].uses()) == 1:
        node, index = producer, 0
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    return node, index


def _sole_readers(graph: Graph, exported: ir.Model, names: dict[Site, OnnxName]) -> None:
    """An input that is the only reader of its tensor or constant is where that is read."""
    import onnx_ir as ir

    values = ir.convenience.create_value_mapping(exported.graph)
    for node in graph.nodes:
        for index, name in enumerate(node.inputs):
            site = Input(node.name, index)
            if name is None or site in names or len(graph.uses(name)) != 1:
                continue
            entry = names.get(Tensor(name) if name in graph.tensors else Weight(name))
            uses = list(values[entry.name].uses()) if entry is not None and entry.name in values else []
            if entry is not None and len(uses) == 1 and uses[0].node.name:
                names[site] = OnnxName(uses[0].node.name, entry.layout, uses[0].idx)


def _layout(translation: Translation, root: nn.Module, name: str, value: Any, places: Places) -> Layout | None:
    """How the exported constant becomes the canonical one: the layout under which the contents are equal."""
    if value is None or value.const_value is None:
        return None
    graph, info = translation.graph, translation.graph.weights[name]
    native, canonical = value.const_value.numpy(), translation.constant(name, root)
    source = translation.attributes.get(info.source or name)
    if value.name in places and source is not None:
        native, shape = places[value.name], attribute(root, str(source.target)).shape
        canonical = to_canonical(np.arange(native.size).reshape(shape), info.layout)
    candidates: list[Layout] = [info.layout, (), TRANSPOSED]
    if native.shape[:1] == (1,):
        candidates.append((Take(0),))
    if native.ndim > 2:
        last = native.ndim - 1
        candidates.append((Permute((*range(last - 1), last, last - 1)),))
        candidates += [
            conv_transpose_layout(native.shape, int(use.node.attributes.get("group", 1)))
            for use in graph.uses(name)
            if use.node.op == "ConvTranspose"
        ]
    for layout in candidates:
        try:
            values = to_canonical(native, layout)
        except (ValueError, IndexError):
            continue
        # A view accepts any shape of as many values: the layout fits only if it leads back as well.
        back = to_native(values, layout, native).shape == native.shape
        if back and values.shape == canonical.shape and np.array_equal(values, canonical):
            return layout
    return None
