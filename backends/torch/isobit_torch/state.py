"""A TorchModel as bytes and back: the graph as JSON, tensors as safetensors, quantizers as encodings. No pickle.

Restoring needs neither the user's class nor its file: calls are written by their ATen names.
"""

from __future__ import annotations

import io
import json
import math
import operator
import zipfile
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load, save
from torch import fx, nn
from torch.utils import _pytree as pytree

from isobit.encoding import Encodings
from isobit.errors import ModelError
from isobit.formats import isobit_json
from isobit.sites import site_key, site_of
from isobit_torch.devices import follow
from isobit_torch.fxtools import attribute
from isobit_torch.modules import BatchNorm, Container, Dropout, Recurrent, container_path, set_tensor
from isobit_torch.program import Program
from isobit_torch.quantizers import QUANTIZERS
from isobit_torch.shapes import InputInfo, Symbols, propagate
from isobit_torch.signature import Argument, Signature

if TYPE_CHECKING:
    from isobit_torch.model import TorchModel

_FORMAT = 1
_GRAPH, _TENSORS, _QUANTIZERS, _OFF = "graph.json", "tensors.safetensors", "encodings.json", "off.json"
_NAMESPACES = ("aten", "prims")


def dump(model: TorchModel) -> bytes:
    """The bytes of a model."""
    program, native = model.program, model.native
    tensors, places = _tensors(native)
    header = {
        "format": _FORMAT,
        "nodes": [_node(node) for node in program.graph.nodes],
        "places": places,
        "modules": _modules(native),
        "signature": _signature(program.signature),
        "inputs": [[info.name, list(info.shape), info.dtype] for info in program.inputs],
        "symbols": {name: list(sizes) for name, sizes in program.symbols.sizes.items()},
        "notes": list(program.notes),
        "device": str(native.device()),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(_GRAPH, json.dumps(header))
        archive.writestr(_TENSORS, save(tensors))
        archive.writestr(_QUANTIZERS, isobit_json.dumps(model.encodings()))
        archive.writestr(_OFF, json.dumps([site_key(site) for site in model.disabled()]))
    return buffer.getvalue()


def restore(state: bytes) -> TorchModel:
    """The model that `dump` wrote. Raises ModelError for other bytes."""
    from isobit_torch.model import TorchModel

    try:
        with zipfile.ZipFile(io.BytesIO(state)) as archive:
            header = json.loads(archive.read(_GRAPH))
            tensors = load(archive.read(_TENSORS))
            encodings: Encodings = isobit_json.loads(archive.read(_QUANTIZERS).decode(), "state")
            off = [site_of(*key) for key in json.loads(archive.read(_OFF))]
        if header["format"] != _FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {_FORMAT}")
        program = _program(header, tensors)
    except ModelError:
        raise
    except Exception as error:  # broken bytes fail in many ways
        raise ModelError(f"these bytes are no state of a PyTorch model: {error}") from error
    model = TorchModel(program)
    model.set_state(encodings, off)
    return model


def _program(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Program:
    root = nn.Module()
    made: dict[str, Any] = {}
    for path, kind, settings in header["modules"]:
        parent, _, name = path.rpartition(".")
        classes: dict[str, Any] = {
            "BatchNorm": BatchNorm, "Dropout": Dropout, "Recurrent": Recurrent, "Container": Container
        }  # fmt: skip
        container_path(root, parent).add_module(name, classes[kind](**settings))
    for path, key, parameter, trainable, persistent in header["places"]:
        if key not in made:
            made[key] = nn.Parameter(tensors[key], trainable) if parameter else tensors[key]
        set_tensor(root, path, made[key], parameter=parameter, persistent=persistent)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in header["nodes"]:
        nodes[entry["id"]] = _make(graph, entry, nodes)
    follow(graph, torch.device(header["device"]), torch.device("cpu"))  # the tensors were written from there
    inputs = tuple(InputInfo(name, tuple(shape), dtype) for name, shape, dtype in header["inputs"])
    symbols = Symbols({name: (sizes[0], sizes[1]) for name, sizes in header["symbols"].items()})
    propagate(root, graph, inputs, symbols)
    return Program(root, graph, _read_signature(header["signature"]), inputs, symbols, tuple(header["notes"]))


# --- modules and tensors ---------------------------------------------------------------------------------------------


def _tensors(root: nn.Module) -> tuple[dict[str, torch.Tensor], list[list[Any]]]:
    """Every tensor once, and each path that holds it: ties are kept."""
    tensors: dict[str, torch.Tensor] = {}
    keys: dict[int, str] = {}
    places: list[list[Any]] = []
    for path, module in root.named_modules(remove_duplicate=False):
        if path.split(".")[0] == QUANTIZERS:
            continue
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(module, kind).items():
                if value is None:
                    continue
                full = f"{path}.{name}" if path else name
                key = keys.setdefault(id(value), full)
                tensors.setdefault(key, value.detach().cpu().contiguous().clone())
                parameter = kind == "_parameters"
                places.append(
                    [full, key, parameter, value.requires_grad, name not in module._non_persistent_buffers_set]
                )
    return tensors, places


def _modules(root: nn.Module) -> list[list[Any]]:
    found: list[list[Any]] = []
    for path, module in root.named_modules(remove_duplicate=False):
        if not path or path.split(".")[0] == QUANTIZERS:
            continue
        if isinstance(module, BatchNorm):
            found.append([path, "BatchNorm", {"momentum": module.momentum, "epsilon": module.epsilon}])
        elif isinstance(module, Dropout):
            found.append([path, "Dropout", {"probability": module.probability, "kind": module.kind}])
        elif isinstance(module, Recurrent):
            settings = {"kind": module.kind, "activation": module.activation, "reverse": module.reverse}
            found.append([path, "Recurrent", settings])
        else:
            found.append([path, "Container", {}])
    return found


def _signature(signature: Signature) -> dict[str, Any]:
    """Structures of the user's own classes come back as dicts and tuples."""
    return {
        "arguments": [[a.name, _spec(a.spec), list(a.leaves)] for a in signature.arguments],
        "out": _spec(signature.out_spec),
        "outputs": list(signature.outputs),
    }


def _spec(spec: pytree.TreeSpec) -> Any:
    """A structure of tuples, lists and dicts; any other container becomes a dict or a tuple."""
    if spec.is_leaf():
        return "*"
    children = [_spec(child) for child in spec.children()]
    if spec.type in (list, tuple):
        return [spec.type.__name__, children]
    keys = spec.context if isinstance(spec.context, list) else None
    if keys is None and isinstance(spec.context, tuple) and spec.context and isinstance(spec.context[0], list):
        keys = spec.context[0]
    if keys is not None and len(keys) == len(children):
        return ["dict", children, [str(key) for key in keys]]
    return ["tuple", children]


def plain_spec(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """A structure of tuples, lists and dicts alone, for files that are read where the user's classes are not."""
    return _read_spec(_spec(spec))


def _read_spec(data: Any) -> pytree.TreeSpec:
    def build(entry: Any) -> Any:
        if entry == "*":
            return 0
        children = [build(child) for child in entry[1]]
        if entry[0] == "dict":
            return dict(zip(entry[2], children, strict=True))
        return children if entry[0] == "list" else tuple(children)

    return pytree.tree_flatten(build(data))[1]


def _read_signature(data: dict[str, Any]) -> Signature:
    arguments = tuple(Argument(name, _read_spec(spec), tuple(leaves)) for name, spec, leaves in data["arguments"])
    return Signature(arguments, _read_spec(data["out"]), tuple(data["outputs"]))


# --- nodes -----------------------------------------------------------------------------------------------------------


def _node(node: fx.Node) -> dict[str, Any]:
    target: Any = node.target
    name = getattr(target, "__name__", "")
    if node.op == "call_function":
        if isinstance(target, torch._ops.OpOverload):
            target = f"{target._schema.name}.{target._overloadname}".replace("::", ".")
        elif getattr(operator, name, None) is target:
            target = f"operator.{name}"
        elif getattr(torch, name, None) is target:
            target = f"torch.{name}"
        else:
            raise ModelError(f"the call of {target!r} cannot be written to a file")
    meta = {key: node.meta[key] for key in ("name", "dtype") if key in node.meta}
    return {
        "id": node.name, "op": node.op, "target": target, "meta": meta,
        "args": [_encode(a) for a in node.args], "kwargs": {k: _encode(v) for k, v in node.kwargs.items()},
    }  # fmt: skip


def _make(graph: fx.Graph, entry: dict[str, Any], nodes: dict[str, fx.Node]) -> fx.Node:
    target: Any = entry["target"]
    if entry["op"] == "call_function":
        target = _function(target)
    elif entry["op"] not in ("placeholder", "get_attr", "call_module", "output"):
        raise ModelError(f"unknown kind of node {entry['op']!r}")
    args = tuple(_decode(a, nodes) for a in entry["args"])
    kwargs = {key: _decode(value, nodes) for key, value in entry["kwargs"].items()}
    node = graph.create_node(entry["op"], target, args, kwargs, name=entry["id"])
    node.meta.update(entry["meta"])
    return node


def _function(name: str) -> Any:
    """ATen calls and arithmetic on sizes only: a state runs no code of its own."""
    namespace, *path = name.split(".")
    arithmetic = {
        "getitem",
        "add",
        "sub",
        "mul",
        "floordiv",
        "mod",
        "neg",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "truediv",
    }
    if namespace == "operator" and path[0] in arithmetic:
        return getattr(operator, path[0])
    if namespace == "torch" and path[0].startswith("sym_"):
        return getattr(torch, path[0])
    if namespace in _NAMESPACES and len(path) == 2:
        return attribute(getattr(torch.ops, namespace), ".".join(path))
    raise ModelError(f"the state calls {name!r}, which is no operation of a model")


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(v) for v in value]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind in ("dtype", "device", "memory_format", "layout"):
        if isinstance(value, getattr(torch, kind)):
            return {kind: str(value).removeprefix("torch.")}
    if isinstance(value, slice):
        return {"slice": [_encode(v) for v in (value.start, value.stop, value.step)]}
    raise ModelError(f"an argument {value!r} of a call cannot be written to a file")


def _decode(data: Any, nodes: dict[str, fx.Node]) -> Any:
    if not isinstance(data, dict):
        return data
    ((kind, value),) = data.items()
    if kind == "node":
        return nodes[value]
    if kind in ("list", "tuple", "slice"):
        items = [_decode(v, nodes) for v in value]
        return items if kind == "list" else tuple(items) if kind == "tuple" else slice(*items)
    if kind == "float":
        return float(value)
    if kind == "device":
        return torch.device(value)
    if kind in ("dtype", "memory_format", "layout"):
        found = getattr(torch, value)
        if isinstance(found, getattr(torch, kind)):
            return found
    raise ModelError(f"unknown argument {data!r}")
