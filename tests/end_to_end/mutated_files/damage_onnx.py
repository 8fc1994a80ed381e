"""ONNX models with one to three changed fields: dims, types, bytes, names, attributes, external data, operations."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import onnx
from mutated_files.damage_bytes import damage

_INTEGERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 7, 64, 1000, 2**31, 2**40, 2**62)
_FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-40, 1e38)
_NAMES = ("", "a\0b", "n" * 5000, "x/../y", "logits", "ü", " ", "\n")
_OPS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Relu", "Clip", "Add", "Mul", "Div", "Reshape",
    "Transpose", "Slice", "Pad",
    "Gather", "Concat", "Split", "Resize", "Expand", "Tile", "TopK", "Where", "Einsum", "LSTM", "GRU",
    "RNN", "If", "Loop",
    "Softmax", "LayerNormalization", "BatchNormalization", "MaxPool", "AveragePool", "GlobalAveragePool", "Flatten",
    "ReduceMean", "Squeeze", "Unsqueeze", "Cast", "Constant", "ConstantOfShape", "Identity", "Shape", "Range", "OneHot",
    "QuantizeLinear", "DequantizeLinear", "DepthToSpace", "PRelu", "Gelu", "Dropout", "NonZero", "Nonsense",
)  # fmt: skip
_LOCATIONS = (
    "",
    "weights.bin",
    "missing.bin",
    "../weights.bin",
    "/dev/zero",
    "/dev/null",
    "a\0b",
    "n" * 5000,
    ".",
    "/",
)
_OFFSETS = ("0", "-1", "1", "4", str(2**31), str(2**62), str(2**70), "abc", "", "1e3", " 8 ")


def damage_onnx(content: bytes, random: Random) -> bytes:
    """The bytes of a changed model."""
    if random.random() < 0.12:
        return damage(content, random)
    model = onnx.ModelProto.FromString(content)
    for _ in range(random.randint(1, 3)):
        random.choice(_DAMAGES)(model, random)
    return model.SerializeToString()


def _tensor(model: onnx.ModelProto, random: Random) -> onnx.TensorProto | None:
    attributes = [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    tensors = [*model.graph.initializer, *attributes]
    return random.choice(tensors) if tensors else None


def _dims(model: onnx.ModelProto, random: Random) -> None:
    tensor = _tensor(model, random)
    if tensor is None:
        return
    action = random.random()
    if action < 0.5 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice(_INTEGERS)
    elif action < 0.7 and tensor.dims:
        place = random.randrange(len(tensor.dims))
        tensor.dims[place] = max(0, tensor.dims[place] + random.choice((-1, 1)))
    elif action < 0.85:
        tensor.dims.append(random.choice((1, 2, -1, 2**40)))
    else:
        del tensor.dims[-1:]


def _data_type(model: onnx.ModelProto, random: Random) -> None:
    tensor = _tensor(model, random)
    if tensor is not None:
        tensor.data_type = random.choice((*range(27), 999, -1))


def _data(model: onnx.ModelProto, random: Random) -> None:
    tensor = _tensor(model, random)
    if tensor is None:
        return
    raw = tensor.raw_data
    action = random.randrange(6)
    if action == 0:
        tensor.raw_data = raw[: random.randint(0, len(raw))]
    elif action == 1:
        tensor.raw_data = raw + bytes(random.randint(1, 9))
    elif action == 2:
        tensor.ClearField("raw_data")
    elif action == 3:
        tensor.float_data.extend([1.0, 2.0])
    elif action == 4:
        tensor.ClearField("raw_data")
        random.choice((tensor.int64_data, tensor.int32_data)).extend([1, -1, 2**30])
    else:
        tensor.raw_data = damage(raw, random)


def _external(model: onnx.ModelProto, random: Random) -> None:
    tensor = _tensor(model, random)
    if tensor is None:
        return
    tensor.data_location = onnx.TensorProto.EXTERNAL
    if random.random() < 0.5:
        tensor.ClearField("raw_data")
    entries = {e.key: e.value for e in tensor.external_data} or {
        "location": "weights.bin",
        "offset": "0",
        "length": "64",
    }
    for _ in range(random.randint(0, 2)):
        key = random.choice(("location", "offset", "length", "checksum", "other"))
        entries[key] = random.choice(_LOCATIONS if key == "location" else _OFFSETS)
    if random.random() < 0.1:
        entries.pop(random.choice(list(entries)))
    del tensor.external_data[:]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _name(model: onnx.ModelProto, random: Random) -> None:
    holders: list[Any] = [*model.graph.initializer, *model.graph.node, *model.graph.input, *model.graph.output]
    holder = random.choice(holders or [model.graph])
    others = [other.name for other in holders] or [""]
    holder.name = random.choice((*_NAMES, random.choice(others)))


def _node(model: onnx.ModelProto, random: Random) -> onnx.NodeProto | None:
    nodes = list(model.graph.node)
    nested = [n for node in nodes for a in node.attribute if a.HasField("g") for n in a.g.node]
    return random.choice([*nodes, *nested]) if nodes else None


def _operation(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node is not None:
        node.op_type = random.choice((*_OPS, *_NAMES[:3]))
        if random.random() < 0.1:
            node.domain = random.choice(("com.microsoft", "ai.onnx.ml", "ai.onnx", "x", "a\0b"))


def _operand(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if node is None:
        return
    names = [value.name for value in (*model.graph.initializer, *model.graph.input)]
    names += [output for other in model.graph.node for output in other.output]
    ends = random.choice((node.input, node.input, node.output))
    name = random.choice((*names, *_NAMES[:3]))
    action = random.random()
    if action < 0.5 and ends:
        ends[random.randrange(len(ends))] = name
    elif action < 0.75:
        ends.append(name)
    else:
        del ends[-1:]


def _attribute(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    with_attributes = [n for n in model.graph.node if n.attribute]
    if node is None or not with_attributes:
        return
    if not node.attribute:
        node = random.choice(with_attributes)
    attribute = random.choice(node.attribute)
    action = random.random()
    if action < 0.1:
        node.attribute.remove(attribute)
    elif action < 0.15:
        node.attribute.append(attribute)
    elif action < 0.25:
        attribute.type = random.choice(range(1, 15))
    elif action < 0.35:
        attribute.name = random.choice(("axis", "perm", "alpha", "axes", "kernel_shape", "to", "a\0b", ""))
    elif attribute.ints and action < 0.7:
        attribute.ints[random.randrange(len(attribute.ints))] = random.choice(_INTEGERS)
    elif attribute.ints and action < 0.85:
        random.choice((lambda: attribute.ints.append(1), lambda: attribute.ints.pop()))()
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = random.choice(_FLOATS)
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = random.choice(
            (b"", b"\xff\xfe", b"SAME_UPPER", b"a\0b", b"ij,jk->", b"forward", b"bidirectional")
        )
    else:
        attribute.i = random.choice(_INTEGERS)


def _opset(model: onnx.ModelProto, random: Random) -> None:
    action = random.random()
    if action < 0.6 and model.opset_import:
        model.opset_import[0].version = random.choice((-1, 0, 1, 6, 7, 9, 11, 13, 17, 21, 23, 999, 2**40))
    elif action < 0.7:
        del model.opset_import[:]
    elif action < 0.8:
        model.opset_import.add(domain=random.choice(("", "x", "ai.onnx")), version=random.choice((1, 13, 18)))
    else:
        model.ir_version = random.choice((-1, 0, 3, 7, 10, 99, 2**40))


def _value(model: onnx.ModelProto, random: Random) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    if not values:
        return
    value = random.choice(values)
    kind = value.type.tensor_type
    action = random.random()
    if action < 0.2:
        kind.elem_type = random.choice((*range(24), 999))
    elif action < 0.3:
        kind.ClearField("shape")
    elif action < 0.35:
        value.ClearField("type")
    elif action < 0.4:
        value.type.sequence_type.elem_type.tensor_type.elem_type = 1
    elif kind.shape.dim and action < 0.9:
        dim = random.choice(kind.shape.dim)
        if random.random() < 0.8:
            dim.dim_value = random.choice(_INTEGERS)
        else:
            dim.dim_param = random.choice(_NAMES)
    else:
        kind.shape.dim.add(dim_value=random.choice((1, 3, -1)))


def _structure(model: onnx.ModelProto, random: Random) -> None:
    parts: list[Any] = [model.graph.node, model.graph.initializer, model.graph.input, model.graph.output]
    part = random.choice(parts)
    if not part:
        return
    place = random.randrange(len(part))
    action = random.random()
    if action < 0.4:
        del part[place]
    elif action < 0.7:
        part.append(part[place])
    else:
        moved = type(part[place])()
        moved.CopyFrom(part[place])
        del part[place]
        part.insert(0, moved)


_DAMAGES: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    _dims, _dims, _data, _data, _data_type, _external, _name, _operation, _operand, _attribute, _attribute, _opset,
    _value,
    _structure,
)  # fmt: skip
