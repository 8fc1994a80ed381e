"""The float model as ONNX, by torch.onnx.export, and where each site of the graph is in it."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn

from isobit.backend import NameMap, OnnxName
from isobit.backend.quiet_loggers import quiet_loggers
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
from isobit_torch.export.kept_translations import kept_translations
from isobit_torch.export.marks import MARK, mark_constants, marked_graph, onnx_translation
from isobit_torch.export.phases import as_quadrants
from isobit_torch.export.recurrent import as_onnx_nodes, as_operators, recurrent_translation, refuse_projections
from isobit_torch.program.devices import follow
from isobit_torch.program.program import Program
from isobit_torch.program.signature import Signature
from isobit_torch.simulate.quantizers import QUANTIZERS
from isobit_torch.simulate.simulator import Simulator
from isobit_torch.translate.translate import Translation

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnx import ModelProto

#: int4, int16 and blocks in QuantizeLinear exist from here on.
OPSET = 21

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
    exported = _export(program, native, graph)
    _rename_clashes(exported)
    mark_constants(exported, translation, labels)
    _prepare(exported)
    marked = _take_out_marks(exported, labels)
    as_onnx_nodes(exported, marked)
    _fold_weight_views(exported)
    _name_outputs(exported, program.signature)
    names = _names(translation, native, exported, marked)
    missing = [site for site in quantized if site not in names]
    if missing:
        raise ModelError(f"the ONNX export lost {len(missing)} quantized site(s), {str(missing[0])!r} among them")
    return ir.to_proto(exported), names


def _export(program: Program, native: Simulator, graph: Any) -> ir.Model:
    training = native.training
    feeds = tuple(
        torch.zeros(program.symbols.shape(info, 0), dtype=getattr(torch, info.dtype), device="cpu")
        for info in program.inputs
    )
    shapes = tuple(
        {axis: torch.export.Dim.AUTO for axis, n in enumerate(info.shape) if isinstance(n, str)} or None
        for info in program.inputs
    )
    native.eval()
    follow(graph, native.device(), torch.device("cpu"))
    module = fx.GraphModule(_flat_root(native), _tensors_only(graph))
    module.eval()
    try:
        with _quiet(), torch.no_grad(), kept_translations():
            exported = torch.export.export(module, feeds, dynamic_shapes=shapes, strict=False)
            result: Any = torch.onnx.export(
                exported,
                (),
                dynamo=True,
                optimize=False,
                opset_version=OPSET,
                custom_translation_table={**onnx_translation(), **recurrent_translation()},
                verbose=False,
            )
    except Exception as error:
        raise ModelError(f"torch.onnx.export cannot write this model: {_reason(error)}") from error
    finally:
        native.train(training)
    model: ir.Model = result.model
    return model


def _reason(error: BaseException) -> str:
    """What the innermost of a chain of errors says: the outer ones are advice for people who write exporters."""
    while error.__cause__ is not None:
        error = error.__cause__
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    if missing:
        return (
            f"ONNX has no operation for {missing[1]}: replace it in the model, or export what is before and behind it"
        )
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _tensors_only(graph: fx.Graph) -> fx.Graph:
    """Without the outputs that are no tensors, which ONNX cannot have; in place."""
    output = next(node for node in graph.nodes if node.op == "output")
    results: Any = output.args[0]
    output.args = (tuple(value for value in results if isinstance(value, fx.Node)),)
    return graph


def _flat_root(native: Simulator) -> nn.Module:
    """The parameters without the simulator around them, on the CPU: the file is the same wherever the model is."""
    root = nn.Module()
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        root.__dict__[name] = native.__dict__[name]
    root._modules = {name: module for name, module in native._modules.items() if name != QUANTIZERS}
    if native.device().type == "cpu":
        return root
    held: dict[int, Any] = {id(t): t.detach().cpu() for t in root.buffers()}
    held |= {id(t): nn.Parameter(t.detach().cpu(), requires_grad=False) for t in root.parameters()}
    return copy.deepcopy(root, held)


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


def _fold_weight_views(model: ir.Model) -> None:
    """A transposed weight is stored transposed: runtimes look for the constant right behind the operation."""
    import onnx_ir.passes.common as passes

    from isobit_onnx.read.read_model import fold_views, infer_shapes

    fold_views(model)
    passes.RemoveUnusedNodesPass()(model)
    infer_shapes(model)


def _names(translation: Translation, native: Simulator, exported: ir.Model, marked: dict[Site, list[Any]]) -> NameMap:
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
            layout = _layout(translation, native, name, node.inputs[index]) if is_weight else ()
            if layout is not None and node.name:
                names[site] = OnnxName(node.name, layout, index)
    for name, info in graph.weights.items():
        entry = marked.get(Weight(info.source or name))
        if entry is None or entry[0].name not in exported.graph.initializers:
            continue
        layout = _layout(translation, native, name, entry[0])
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


def _layout(translation: Translation, root: nn.Module, name: str, value: Any) -> Layout | None:
    """How the exported constant becomes the canonical one: the layout under which the contents are equal."""
    if value is None or value.const_value is None:
        return None
    native = value.const_value.numpy()
    graph, canonical = translation.graph, translation.constant(name, root)
    info = graph.weights[name]
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


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints and logs its progress, and traces each call back to lines of code that nobody reads here."""
    names = ("torch", "torch.onnx", "onnxscript", "onnx_ir")
    hidden = contextlib.redirect_stdout(io.StringIO())
    traces = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = True
    try:
        with warnings.catch_warnings(), hidden, quiet_loggers(*names, level=logging.CRITICAL):
            warnings.simplefilter("ignore")
            yield
    finally:
        fx.config.do_not_emit_stack_traces = traces
