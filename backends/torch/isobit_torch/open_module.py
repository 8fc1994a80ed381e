"""Opening: capture, load, prepare, translate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.export import ExportedProgram

from isobit.errors import ModelError
from isobit_torch.capture.capture import Aid, Capture, capture
from isobit_torch.capture.dropout import restore_dropout
from isobit_torch.capture.errors import DependsOnValuesError, explain, refuse_data_dependence
from isobit_torch.capture.fold_constants import fold_constants
from isobit_torch.capture.free_names import NewNames, moved, new_names, notes
from isobit_torch.capture.functionalize import functionalize, written_buffers
from isobit_torch.capture.given import Given
from isobit_torch.capture.inline_branches import inline_branches
from isobit_torch.capture.load_graph import build_root, load_graph, note_dtype
from isobit_torch.capture.naming import make_unique, name_by_module
from isobit_torch.capture.second_sizes import follows_sizes
from isobit_torch.decompose.complex_numbers import in_pairs
from isobit_torch.decompose.decompose import decompose
from isobit_torch.model import TorchModel
from isobit_torch.program import adapters
from isobit_torch.program.fx_nodes import DTYPE, NAME, arguments, attribute, erase_unread, op_name
from isobit_torch.program.modules import BatchNorm, Dropout, add_functional
from isobit_torch.program.program import Program
from isobit_torch.program.shapes import read_inputs, require_float, settle_sizes
from isobit_torch.program.torch_export import quiet, without_autocast
from isobit_torch.simulate.simulator import Simulator, own_names

_DROPOUT_CALLS = {"dropout": "dropout", "feature_dropout": "dropout2d", "alpha_dropout": "alpha_dropout"}


def open_module(model: Any, example: Any) -> TorchModel:
    """Open a copy of a module. Raises ModelError."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"the PyTorch backend opens torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, Simulator) and model.quantizers:
        raise ModelError(
            "the model is a simulator that isobit has made: pass your own module, or the QuantSim that it is of"
        )
    with without_autocast():  # the caller may be in such a block
        return _open(model, example)


def _open(model: nn.Module, example: Any) -> TorchModel:
    try:
        return _at_any_size(model, example)
    except DependsOnValuesError as error:
        failure: ModelError = error
    except ModelError as error:
        _tell_of_adapters(model, error)
        raise
    tries: list[tuple[Aid, bool]] = [("rules", False), ("rules", True), ("example", False), ("example", True)]
    for aid, is_fixed in tries:  # a size may have to be known as well
        try:
            return _at_any_size(model, example, is_fixed=is_fixed, aid=aid)
        except DependsOnValuesError as error:  # what could not be helped, rather than what came first
            failure = error
        except ModelError:
            continue
    _tell_of_adapters(model, failure)
    raise failure


def _tell_of_adapters(model: nn.Module, error: ModelError) -> None:
    """Raise ModelError with what there is to say of the model's adapters, if anything."""
    told = "; ".join(adapters.notes(model))
    if told:
        raise ModelError(f"{told}. As it is, it cannot be captured: {error}") from error


def _at_any_size(model: nn.Module, example: Any, *, is_fixed: bool = False, aid: Aid = "none") -> TorchModel:
    """The model with its sizes open; with those of the example, where it does not follow them or `is_fixed`."""
    captured = capture(model, example, is_fixed=is_fixed, aid=aid)
    program = program_of(captured)
    opened, given = _opened(captured, program), Given(model, captured)
    opened.given = given
    run: Any = opened.native.run_flat
    is_doubled = captured.is_doubled and "batch" not in program.symbols.sizes
    if not is_doubled and follows_sizes(given, captured, program, run):
        return opened
    captured = capture(model, example, is_fixed=True, aid=aid)
    opened = _opened(captured, program_of(captured))
    opened.given = Given(model, captured)
    return opened


def _opened(captured: Capture, program: Program) -> TorchModel:
    return TorchModel(program, adapters.PeftAdapters.of(captured.module, program.graph))


def program_of(captured: Capture) -> Program:
    """The prepared program of a capture."""
    root = nn.Module()
    names = new_names(captured.module, own_names(), captured.signature.inputs)
    canonical = build_root(captured.module, root, names)
    canonical |= {constant: canonical[path] for constant, path in captured.reached.items()}
    exported = captured.program
    chosen = inline_branches(exported)
    if any(_is_transform(node) for node in exported.graph.nodes):
        exported = _lowered(exported, captured.module)
    graph = load_graph(exported, root, canonical)
    changed = written_buffers(graph)
    blocking = functionalize(graph)
    if blocking is not None:  # torch's own functionalisation replaces more, but splits some calls on the way
        exported = _lowered(exported, captured.module)
        graph = load_graph(exported, root, canonical)
        if functionalize(graph) is not None:
            raise ModelError(f"the model changes a tensor in place that others share ({blocking}): assign a new one")
    erase_unread(graph, lambda node: node.op != "get_attr")
    refuse_data_dependence(graph, captured.module)
    leaves = frozenset(path for path, module in captured.module.named_modules() if not list(module.children()))
    name_by_module(graph, leaves)
    inputs, symbols = read_inputs(graph, exported)
    require_float(inputs)
    restore_dropout(graph, captured.module, captured.call)
    in_pairs(graph, root)
    folded = fold_constants(graph, root, keep_trained=bool(getattr(captured.module, "peft_config", None)))
    composed = decompose(graph, root)
    dropped = restore_modules(graph, root, captured.module, names)
    erase_unread(graph)
    make_unique(graph)
    strip(graph)
    inputs, symbols, fixed = settle_sizes(root, graph, inputs, symbols)
    told = (*captured.notes, *notes(names, captured.signature.inputs), *adapters.notes(captured.module))
    told = (*told, *chosen, *changed, *folded, *composed, *dropped, *fixed)
    return Program(root, graph, captured.signature, inputs, symbols, told)


def _lowered(program: ExportedProgram, module: nn.Module) -> ExportedProgram:
    """The program in plainer calls. Raises ModelError."""
    for node in list(program.graph.nodes):
        if node.op == "call_module" and not node.users:  # torch's checks of sizes, which it does not always run itself
            program.graph.erase_node(node)
    program.graph_module.recompile()
    with quiet():
        try:
            lowered: ExportedProgram = program.run_decompositions({})
        except Exception as error:
            raise explain(error, module) from error
    return lowered


def _is_transform(node: fx.Node) -> bool:
    """Calls around others that torch lowers to plain ones: vmap (HuggingFace's masks), blocks with gradients on."""
    return node.op == "call_function" and (
        "functorch" in str(getattr(node.target, "__module__", ""))
        or getattr(node.target, "__name__", "") in ("wrap_with_set_grad_enabled", "wrap_with_autocast")
    )


def restore_modules(graph: fx.Graph, root: nn.Module, original: nn.Module, names: NewNames) -> list[str]:
    """Batch norm and dropout become calls of modules again, which follow train() and eval(); returns notes."""
    said: list[str] = []
    places = {path: moved(path, names) for path, _ in original.named_modules() if path}
    for node in list(graph.nodes):
        name = op_name(node)
        args: tuple[Any, ...]
        if name == "batch_norm":
            a = arguments(node)
            args = (a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"])
            path = _path_of(node, places, root, BatchNorm)
            if path is None:
                path = add_functional(root, BatchNorm(a["momentum"], a["eps"]))
        elif name in _DROPOUT_CALLS:
            a = arguments(node)
            args = (a["input"],)
            if a["train"] and a["p"]:
                said.append(
                    f"the dropout at {node.meta[NAME]!r} drops in evaluation too; here it drops in training alone"
                )
            path = _path_of(node, places, root, Dropout)
            if path is None:
                path = add_functional(root, Dropout(float(a["p"]), _DROPOUT_CALLS[name]))
        else:
            continue
        with graph.inserting_before(node):
            call = graph.call_module(path, args)
        call.meta.update({key: node.meta[key] for key in (NAME, DTYPE, "val") if key in node.meta})
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    return said


def _path_of(node: fx.Node, places: Mapping[str, str], root: nn.Module, kind: type[nn.Module]) -> str | None:
    path = places.get(node.meta[NAME])
    return path if path is not None and isinstance(attribute(root, path), kind) else None


def strip(graph: fx.Graph) -> None:
    """Keep only the backend's own metadata: traced values would keep the whole capture in memory."""
    for node in graph.nodes:
        if node.op not in ("output", "placeholder", "get_attr") and DTYPE not in node.meta:
            note_dtype(node, node.meta.get("val"))
        meta = {key: node.meta[key] for key in (NAME, DTYPE) if key in node.meta}
        node.meta.clear()
        node.meta.update(meta)
