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


def check_channels(model: ir.Model, where: str) -> None:
    """Raise ModelError naming the layer and the constant of another size than its channels, axis 1."""
    for node in model.graph:
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
