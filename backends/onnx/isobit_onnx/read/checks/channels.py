"""Whether the constants of layers have a number for each channel, which neither the checker nor inference looks at."""

from __future__ import annotations

import onnx_ir as ir

from isobit.errors import ModelError

#: The inputs that hold one number for each channel of the output.
_PER_CHANNEL = {
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "Conv": (2,),
    "ConvTranspose": (2,),
}

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def check_channels(model: ir.Model, where: str) -> None:
    """Raise ModelError naming the layer and the constant of another size than its channels, axis 1."""
    for node in model.graph:
        if not node.domain and node.op_type in _GATES:
            _check_recurrent(node, where)
        if node.domain or node.op_type not in _PER_CHANNEL:
            continue
        normed = node.inputs[0] if "Normalization" in node.op_type else None  # a norm does not change the channels
        shape = node.outputs[0].shape if normed is None else normed.shape
        channels = shape[1] if shape is not None and len(shape) > 1 else None
        for index in _PER_CHANNEL[node.op_type]:
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is None or value.const_value is None or not isinstance(channels, int):
                continue
            found = tuple(int(n) for n in value.const_value.shape.numpy())
            if found != (channels,):
                raise ModelError(
                    f"{where}: {node.op_type} {node.name!r} has {channels} channels, and its constant {value.name!r} "
                    f"has dims {list(found)}: export the model again"
                )


def _check_recurrent(node: ir.Node, where: str) -> None:
    """The rows of both weights and both halves of the bias are the gates of all hidden values.

    onnxruntime looks at them when it runs, and not when it loads a file.
    """
    recurrent = _dims(node, 2)
    if recurrent is None or len(recurrent) != 3:
        return
    rows = _GATES[node.op_type] * recurrent[2]
    for index, size in ((1, rows), (2, rows), (3, 2 * rows)):
        found = _dims(node, index)
        if found is not None and (len(found) < 2 or found[1] != size):
            value = node.inputs[index]
            raise ModelError(
                f"{where}: {node.op_type} {node.name!r} has {recurrent[2]} hidden values, so axis 1 of its input "
                f"{value.name if value is not None else index!r} has {size} numbers; its dims are {list(found)}: "
                "export the model again"
            )


def _dims(node: ir.Node, index: int) -> tuple[int, ...] | None:
    """The dims of an input, None where one of them is open."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.shape is None or not all(isinstance(n, int) for n in value.shape):
        return None
    return tuple(int(n) for n in value.shape if isinstance(n, int))
