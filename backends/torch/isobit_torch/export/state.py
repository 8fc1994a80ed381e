"""A simulator as bytes: the graph as JSON, tensors as safetensors, quantizers as encodings. No pickle.

Calls are written by their ATen names, so that restoring needs neither the user's class nor its file.
"""

from __future__ import annotations

import io
import json
import math
import operator
import zipfile
from collections.abc import Iterable
from typing import Any

import torch
from safetensors.torch import save
from torch import fx, nn

from isobit.encodings import Encodings
from isobit.errors import ModelError
from isobit.formats import isobit_json
from isobit.graph import Site, site_key
from isobit_torch.program.modules import BatchNorm, Dropout, Recurrent
from isobit_torch.program.program import Program
from isobit_torch.program.signature import signature_to_record
from isobit_torch.simulate.quantizers import QUANTIZERS
from isobit_torch.simulate.simulator import Simulator

FORMAT = 1
GRAPH_FILE, TENSORS_FILE = "graph.json", "tensors.safetensors"
ENCODINGS_FILE, DISABLED_FILE = "encodings.json", "off.json"


def dump(program: Program, native: Simulator, encodings: Encodings, disabled: Iterable[Site]) -> bytes:
    """The bytes of a program with the tensors of its simulator, its quantizers, and which of them are off."""
    tensors, places = _tensors(native)
    header = {
        "format": FORMAT,
        "nodes": [_node(node) for node in program.graph.nodes],
        "places": places,
        "modules": _modules(native),
        "signature": signature_to_record(program.signature),
        "inputs": [[info.name, list(info.shape), info.dtype] for info in program.inputs],
        "symbols": {name: list(sizes) for name, sizes in program.symbols.sizes.items()},
        "notes": list(program.notes),
        "device": str(native.device()),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(GRAPH_FILE, json.dumps(header))
        archive.writestr(TENSORS_FILE, save(tensors))
        archive.writestr(ENCODINGS_FILE, isobit_json.dumps(encodings))
        archive.writestr(DISABLED_FILE, json.dumps([site_key(site) for site in disabled]))
    return buffer.getvalue()


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
    modules: list[list[Any]] = []
    for path, module in root.named_modules(remove_duplicate=False):
        if not path or path.split(".")[0] == QUANTIZERS:
            continue
        if isinstance(module, BatchNorm):
            modules.append([path, "BatchNorm", {"momentum": module.momentum, "epsilon": module.epsilon}])
        elif isinstance(module, Dropout):
            modules.append([path, "Dropout", {"probability": module.probability, "kind": module.kind}])
        elif isinstance(module, Recurrent):
            settings = {"kind": module.kind, "activation": module.activation, "reverse": module.reverse}
            modules.append([path, "Recurrent", settings])
        else:
            modules.append([path, "Container", {}])
    return modules


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
