"""A TorchModel from the bytes that `isobit_torch.export.state` wrote, without the user's class and its file."""

from __future__ import annotations

import io
import json
import operator
import zipfile
from typing import Any

import torch
from safetensors.torch import load
from torch import fx, nn

from isobit.backend import check_quantizers
from isobit.encodings import Encodings
from isobit.errors import ModelError
from isobit.formats import isobit_json
from isobit.graph import site_of
from isobit_torch.export.state import DISABLED_FILE, ENCODINGS_FILE, FORMAT, GRAPH_FILE, TENSORS_FILE
from isobit_torch.model import TorchModel
from isobit_torch.program.devices import follow
from isobit_torch.program.fx_nodes import attribute
from isobit_torch.program.modules import BatchNorm, Container, Dropout, Recurrent, container_path, set_tensor
from isobit_torch.program.program import Program
from isobit_torch.program.shapes import InputInfo, Symbols, propagate
from isobit_torch.program.signature import signature_from_record

_NAMESPACES = ("aten", "prims")


def restore(state: bytes) -> TorchModel:
    """The model that `isobit_torch.export.state.dump` wrote. Raises ModelError for other bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(state)) as archive:
            header = json.loads(archive.read(GRAPH_FILE))
            tensors = load(archive.read(TENSORS_FILE))
            encodings: Encodings = isobit_json.loads(archive.read(ENCODINGS_FILE).decode(), "state")
            off = [site_of(*key) for key in json.loads(archive.read(DISABLED_FILE))]
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']}, this version reads {FORMAT}")
        program = _program(header, tensors)
    except ModelError:
        raise
    except Exception as error:  # broken bytes fail in many ways
        raise ModelError(f"these bytes are no state of a PyTorch model: {error}") from error
    model = TorchModel(program)
    check_quantizers(model.graph, encodings)
    model.set_state(encodings, off)
    return model


def _program(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Program:
    root = nn.Module()
    values: dict[str, Any] = {}
    for path, kind, settings in header["modules"]:
        parent, _, name = path.rpartition(".")
        classes: dict[str, Any] = {
            "BatchNorm": BatchNorm, "Dropout": Dropout, "Recurrent": Recurrent, "Container": Container
        }  # fmt: skip
        container_path(root, parent).add_module(name, classes[kind](**settings))
    for path, key, parameter, trainable, persistent in header["places"]:
        if key not in values:
            values[key] = nn.Parameter(tensors[key], trainable) if parameter else tensors[key]
        set_tensor(root, path, values[key], parameter=parameter, persistent=persistent)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in header["nodes"]:
        nodes[entry["id"]] = _make(graph, entry, nodes)
    follow(graph, torch.device(header["device"]), torch.device("cpu"))  # the tensors were written from there
    inputs = tuple(InputInfo(name, tuple(shape), dtype) for name, shape, dtype in header["inputs"])
    symbols = Symbols({name: (sizes[0], sizes[1]) for name, sizes in header["symbols"].items()})
    propagate(root, graph, inputs, symbols)
    return Program(root, graph, signature_from_record(header["signature"]), inputs, symbols, tuple(header["notes"]))


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
        constant = getattr(torch, value)
        if isinstance(constant, getattr(torch, kind)):
            return constant
    raise ModelError(f"unknown argument {data!r}")
