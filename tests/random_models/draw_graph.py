"""A random ONNX model, its data and its settings, all of one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from draw_settings import Settings, draw_settings
from drawing import Array, Drawing, RejectedError, Value, run
from elementwise import ELEMENTWISE
from layers import LAYERS
from moves import MOVES
from norms import NORMS
from onnx import helper

OPSETS = range(7, 25)
_RULES = (LAYERS, LAYERS, MOVES, MOVES, ELEMENTWISE, ELEMENTWISE, NORMS)


@dataclass
class GraphCase:
    """A model, the batches that it is calibrated on, and how it is quantized."""

    seed: int
    model: onnx.ModelProto
    batches: list[dict[str, Array]]
    settings: Settings
    ops: list[str]
    opset: int


def draw_graph(seed: int) -> GraphCase:
    """The case of a seed."""
    rng = np.random.default_rng([17, seed])
    for _ in range(50):
        drawing = _drawn(rng)
        if drawing is not None:
            model, batches = drawing[1], drawing[2]
            return GraphCase(seed, model, batches, draw_settings(rng), drawing[0].ops, drawing[0].opset)
    raise RuntimeError(f"seed {seed} draws no graph")


def _drawn(rng: np.random.Generator) -> tuple[Drawing, onnx.ModelProto, list[dict[str, Array]]] | None:
    names, node_names = _names(rng)
    drawing = Drawing(
        rng,
        int(rng.choice(OPSETS)),
        names,
        node_names,
        fixed_batch=bool(rng.random() < 0.3),
        constant_nodes=float(rng.choice([0, 0, 0.5, 1])),
    )
    makers = dict(_input(drawing) for _ in range(drawing.one_of([1, 1, 1, 2, 2, 3])))
    _grow(drawing, drawing.integer(3, 14))
    model = _finish(drawing)
    if model is None:
        return None
    batch = drawing.inputs[0].shape[0]
    feeds = {value.name: value.array for value in drawing.inputs}
    sizes = [batch] if drawing.fixed_batch else [batch, int(rng.integers(1, 4))]
    batches = [feeds, *({v.name: makers[v.name](size) for v in drawing.inputs} for size in sizes)]
    try:
        for one in batches:
            if not all(map(_is_stable, run(model, one), run(model, one, "ORT_ENABLE_ALL"))):
                return None
    except Exception:  # the batch is baked in somewhere, or onnxruntime's own optimiser fails: no model that a user has
        return None
    return drawing, model, batches


def _is_stable(written: Array, optimised: Array) -> bool:
    """Whether an output is finite, and not the rounding of sums that cancel."""
    if written.dtype.kind != "f":
        return bool(np.mean(written != optimised) <= 0.05)
    noise = np.linalg.norm(written - optimised)
    return bool(np.isfinite(noise) and noise <= 1e-5 * np.linalg.norm(written))


def _input(d: Drawing) -> tuple[str, Callable[[int], Array]]:
    kind = d.one_of(["image", "image", "sequence", "flat", "flat", "signal", "tokens", "mask", "volume"])
    if not d.inputs and kind in ("tokens", "mask") and d.chance(0.6):
        kind = "image"
    sizes: tuple[int, ...] = {
        "image": (d.integer(1, 6), d.integer(4, 8), d.integer(4, 8)),
        "sequence": (d.integer(2, 6), d.integer(3, 8)),
        "flat": (d.integer(3, 12),),
        "signal": (d.integer(1, 4), d.integer(8, 16)),
        "tokens": (d.integer(2, 6),),
        "mask": (d.integer(2, 8),),
        "volume": (2, 4, 4, 3),
    }[kind]
    low, scale = d.one_of([(-1.0, 1.0), (0.0, 1.0), (0.0, 2.0), (-3.0, 3.0)]), d.one_of([1.0, 1.0, 0.1, 8.0])
    rng = d.rng

    def make(batch: int) -> Array:
        if kind == "tokens":
            return rng.integers(0, 40, (batch, *sizes))
        if kind == "mask":
            return rng.random((batch, *sizes)) < 0.5
        if low[0] < -2:
            return (rng.standard_normal((batch, *sizes)) * scale).astype(np.float32)
        return (rng.uniform(*low, (batch, *sizes)) * scale).astype(np.float32)

    batch = d.inputs[0].shape[0] if d.inputs else d.integer(1, 4)
    value = Value(d.fresh("input"), make(batch))
    d.inputs.append(value)
    d.keep(value)
    return value.name, make


def _grow(d: Drawing, length: int) -> None:
    tries = 0
    added = 0
    while added < length and tries < 40 * length:
        tries += 1
        rule = d.one_of(d.one_of(_RULES))
        nodes, initializers, ops = len(d.nodes), len(d.initializers), len(d.ops)
        weights, values = len(d.weights), len(d.values)
        try:
            value = rule(d)
            if value.constant or value.rank == 0:
                raise RejectedError("a constant")
            d.keep(value)
            added += 1
        except (RejectedError, ValueError):  # what it has drawn so far goes as well
            del d.nodes[nodes:], d.initializers[initializers:], d.ops[ops:]
            del d.weights[weights:], d.values[values:]


def _finish(d: Drawing) -> onnx.ModelProto | None:
    """The model: outputs are what nobody reads, and now and then what somebody does."""
    read = {name for node in d.nodes for name in node.input} | _read_inside(d.nodes)
    computed = [v for v in d.values if not v.constant and v not in d.inputs]
    outputs = [v for v in computed if v.name not in read]
    inner = [v for v in computed if v.name in read]
    if inner and d.chance(0.25):
        outputs.append(d.one_of(inner))
    if not outputs or not any(v.is_float for v in outputs):
        return None
    inputs = [v for v in d.inputs if v.name in read]
    if not inputs:
        return None
    d.inputs[:] = d.inputs if d.chance(0.1) else inputs  # an input that nobody reads stays now and then
    symbol = d.one_of(["N", "batch", "batch_size", "?"])
    opsets = [helper.make_opsetid("", d.opset)]
    graph = helper.make_graph(
        d.nodes,
        d.one_of(["g", "main graph", "torch-jit-export", "a/b"]),
        [_info(d, v, symbol) for v in d.inputs],
        [_info(d, v, symbol) for v in outputs],
        d.initializers,
    )
    least = helper.find_min_ir_version_for(opsets)
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(least, d.one_of([least, 10])))


def _read_inside(nodes: list[onnx.NodeProto]) -> set[str]:
    graphs = [a.g for node in nodes for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return {name for graph in graphs for node in graph.node for name in node.input}


def _info(d: Drawing, value: Value, symbol: str) -> onnx.ValueInfoProto:
    shape: list[int | str] = list(value.shape)
    if not d.fixed_batch and value.batched and shape:
        shape[0] = symbol
    elif not value.batched and not d.fixed_batch:
        return helper.make_tensor_value_info(
            value.name, helper.np_dtype_to_tensor_dtype(value.array.dtype), [None] * value.rank
        )
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.array.dtype), shape)


def _names(rng: np.random.Generator) -> tuple[Callable[[str, int], str], Callable[[str, int], str]]:
    styles: list[Callable[[str, int], str]] = [
        lambda kind, n: f"{kind}_{n}",
        lambda kind, n: f"/model/{kind}.{n}/{kind}_output_0",
        lambda kind, n: f"block {n} {kind}",
        lambda kind, n: f"größe/层{n}.{kind}",
        lambda kind, n: str(n),
        lambda kind, n: f"{kind}:{n}",
        lambda kind, n: f"StatefulPartitionedCall/{kind}_{n}/BiasAdd;{n}",
        lambda kind, n: f"{kind}_{n}_quantized" if n % 3 else f"{kind}_{n}_scale",
        lambda kind, n: f"#{n}[{kind}]*?",
    ]
    nodes: list[Callable[[str, int], str]] = [*styles, lambda kind, n: "", lambda kind, n: kind]
    return styles[int(rng.integers(len(styles)))], nodes[int(rng.integers(len(nodes)))]


def described(case: GraphCase) -> dict[str, Any]:
    """What a report of a case says."""
    return {"seed": case.seed, "opset": case.opset, "ops": case.ops, "settings": str(case.settings)}
