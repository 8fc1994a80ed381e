"""A network of `isobit.testing.networks` as a functional Keras model, written the way people write one.

Inputs have the channels first, as the networks describe them; a Permute brings images to Keras' order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from isobit.graph import Node, to_native
from isobit.graph.layout import TRANSPOSED, compose
from isobit.graph.ops import RECURRENT
from isobit.testing.networks import Network
from isobit_tensorflow.layers import GroupedConv2DTranspose
from isobit_tensorflow.read.rules.recurrent import GATES

L = keras.layers
_PARTS = {
    "BatchNormalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "LayerNormalization": ("gamma", "beta"),
}


@keras.saving.register_keras_serializable("isobit_testing")
class Bias(keras.layers.Layer):  # type: ignore[misc]
    """Adds a vector: a linear layer's bias where two of them share one weight."""

    def build(self, shape: Any) -> None:
        """One number a feature."""
        self.bias = self.add_weight(name="bias", shape=(shape[-1],))

    def call(self, x: Any) -> Any:
        """`x` plus the bias."""
        return x + self.bias


def build_keras(network: Network) -> keras.Model:
    """The network; variables have the network's names, outputs are a dict by name."""
    return _Builder(network).build()


class _Builder:
    def __init__(self, network: Network) -> None:
        self.network, self.graph = network, network.graph
        self.values: dict[str, Any] = {}  # tensors as Keras has them
        self.images: set[str] = set()  # those that Keras has with the channels last
        self.shared: dict[str, Any] = {}

    def build(self) -> keras.Model:
        inputs = {}
        for name in self.graph.inputs:
            info = self.graph.tensors[name]
            shape = [n if isinstance(n, int) else None for n in (info.shape or ())[1:]]
            inputs[name] = self.values[name] = keras.Input(shape, name=name, dtype=info.dtype)
            if len(shape) == 3:
                self.values[name] = L.Permute((2, 3, 1))(self.values[name])
                self.images.add(name)
        for node in self.graph.nodes:
            self._place(node)
        outputs = {}
        for name, tensor in self.graph.outputs.items():
            value = self.values[tensor]
            outputs[name] = L.Permute((3, 1, 2))(value) if tensor in self.images else value
        return keras.Model(inputs, outputs, name=self.network.name)

    def _place(self, node: Node) -> None:
        inputs = [self.values[name] for name in node.inputs if name in self.values]
        output = node.outputs[0]
        if self._is_layers_own(node):
            self.values[output] = inputs[0]
            return
        if node.inputs[0] in self.images and node.op not in ("GlobalAveragePool", "Reshape", "Transpose"):
            self.images.add(output)
        self.values[output] = getattr(self, f"_{node.op.lower()}", self._simple)(node, *inputs)

    def _is_layers_own(self, node: Node) -> bool:
        """Whether the node only moves axes around a recurrent layer, which in Keras has the batch first by itself."""
        if node.op not in ("Transpose", "Reshape"):
            return False
        around = [use.node for use in self.graph.uses(node.outputs[0])]
        behind = self.graph.producer(node.inputs[0] or "")
        turned = node.op == "Transpose" and any(reader.op in RECURRENT for reader in around)
        return turned or (behind is not None and (behind.op in RECURRENT or self._is_layers_own(behind)))

    def _set(self, layer: Any, node: Node, values: Mapping[str, Any]) -> None:
        """Values and names of the layer's variables."""
        for (part, value), name in zip(values.items(), node.inputs[1:], strict=False):
            variable = getattr(layer, part)
            variable.assign(value)
            variable._path = name

    def _weight(self, node: Node, index: int = 1) -> Any:
        return self.network.weights[node.inputs[index] or ""]

    def _conv(self, node: Node, x: Any) -> Any:
        a, weight = node.attributes, self._weight(node)
        bias = node.input(2) is not None
        settings = {"strides": a["strides"], "dilation_rate": a["dilations"], "use_bias": bias, "name": node.name}
        pads = a["pads"]
        reach = [(k - 1) * d + 1 for k, d in zip(a["kernel_shape"], a["dilations"], strict=True)]
        if all(s == 1 for s in a["strides"]) and all(2 * p == r - 1 for p, r in zip(pads, reach, strict=False)):
            settings["padding"] = "same" if any(pads) else "valid"
        elif any(pads):
            x = L.ZeroPadding2D(((pads[0], pads[2]), (pads[1], pads[3])))(x)
        if a["group"] == weight.shape[0] and a["group"] > 1:
            layer = L.DepthwiseConv2D(a["kernel_shape"], **settings)
            kernel = weight.transpose(2, 3, 0, 1)
        else:
            layer = L.Conv2D(weight.shape[0], a["kernel_shape"], groups=a["group"], **settings)
            kernel = weight.transpose(2, 3, 1, 0)
        result = layer(x)
        self._set(layer, node, {"kernel": kernel, **({"bias": self._weight(node, 2)} if bias else {})})
        return result

    def _convtranspose(self, node: Node, x: Any) -> Any:
        a, weight = node.attributes, self._weight(node)
        settings = {"groups": a["group"]} if a["group"] > 1 else {}
        kind = GroupedConv2DTranspose if settings else L.Conv2DTranspose
        layer = kind(weight.shape[0], a["kernel_shape"], a["strides"], name=node.name, **settings)
        result = layer(x)
        self._set(layer, node, {"kernel": weight.transpose(2, 3, 0, 1), "bias": self._weight(node, 2)})
        return result

    def _linear(self, node: Node, x: Any) -> Any:
        weight, bias = node.inputs[1] or "", node.input(2)
        out = self.network.weights[weight].shape[0]
        if len(self.graph.uses(weight)) == 1:
            layer = L.Dense(out, use_bias=bias is not None, name=node.name)
            result = layer(x)
            self._set(
                layer, node, {"kernel": self._weight(node).T, **({"bias": self._weight(node, 2)} if bias else {})}
            )
            return result
        if weight not in self.shared:
            layer = self.shared[weight] = L.Dense(out, use_bias=False, name=f"{node.name}_shared")
            layer.build(x.shape)
            layer.kernel.assign(self._weight(node).T)
            layer.kernel._path = weight
        shift = Bias(name=node.name)
        result = shift(self.shared[weight](x))
        shift.bias.assign(self._weight(node, 2))
        shift.bias._path = bias
        return result

    def _norm(self, node: Node, x: Any) -> Any:
        layer = getattr(L, node.op)(epsilon=node.attributes["epsilon"], name=node.name)
        result = layer(x)
        parts = _PARTS[node.op]
        self._set(layer, node, {part: self._weight(node, index) for index, part in enumerate(parts, 1)})
        return result

    _batchnormalization = _layernormalization = _norm

    def _recurrent(self, node: Node, x: Any) -> Any:
        kind = getattr(L, node.op)
        layer = kind(
            node.attributes["hidden_size"], return_sequences=True, use_bias=len(node.inputs) > 3, name=node.name
        )
        result = layer(x)
        layout = compose(TRANSPOSED, GATES[node.op])
        kernels = {"kernel": self._weight(node), "recurrent_kernel": self._weight(node, 2)}
        self._set(layer.cell, node, {part: to_native(value, layout) for part, value in kernels.items()})
        if len(node.inputs) > 3:  # both biases are one variable
            layer.cell.bias.assign([to_native(self._weight(node, index), GATES[node.op]) for index in (3, 8)])
            layer.cell.bias._path = f"{node.name}.bias"
        return result

    _lstm = _gru = _recurrent

    def _simple(self, node: Node, *x: Any) -> Any:
        a, name = node.attributes, node.name
        image = node.inputs[0] in self.images
        if node.op == "Concat":
            axis = {1: -1, 2: 1, 3: 2}[a["axis"]] if image else a["axis"]
            return L.Concatenate(axis, name=name)(list(x))
        if node.op == "MatMul":
            product = keras.ops.matmul(x[0], x[1])
            return product * a["scale"] if "scale" in a else product
        layers: Mapping[str, Any] = {
            "Relu": lambda: L.ReLU(name=name), "Clip": lambda: L.ReLU(a["max"], name=name),
            "Sigmoid": lambda: L.Activation("sigmoid", name=name), "Tanh": lambda: L.Activation("tanh", name=name),
            "Swish": lambda: L.Activation("swish", name=name), "Softmax": lambda: L.Softmax(a["axis"], name=name),
            "Gelu": lambda: L.Activation("gelu", name=name), "HardSwish": lambda: L.Activation("hard_silu", name=name),
            "MaxPool": lambda: L.MaxPooling2D(a["kernel_shape"], a["strides"], name=name),
            "GlobalAveragePool": lambda: L.GlobalAveragePooling2D(keepdims=bool(a["keepdims"]), name=name),
            "Transpose": lambda: L.Permute(a["perm"][1:], name=name),
            "Reshape": lambda: L.Reshape(a["shape"][1:], name=name),
        }  # fmt: skip
        merging = {"Add": L.Add, "Mul": L.Multiply, "Sub": L.Subtract}
        if node.op in merging:
            return merging[node.op](name=name)(list(x))
        return layers[node.op]()(x[0])
