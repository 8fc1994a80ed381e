"""A network of `isobit.testing.networks` as a torch module, written the way people write one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from isobit.graph import Node, conv_transpose_layout, to_native
from isobit.graph.ops import RECURRENT
from isobit.testing.networks import Network
from isobit_torch.program.modules import container_path
from isobit_torch.program.recurrent_calls import GATES

#: Parameters of a recurrent layer in the order of the node's inputs; in between lie lengths, states and peepholes.
_RECURRENT_PARTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "", "", "", "", "bias_hh_l0")


def build_torch(network: Network) -> nn.Module:
    """The network in evaluation mode; parameters have the network's names, outputs are a dict by name."""
    return NetworkModule(network).eval()


def example_of(network: Network) -> dict[str, Tensor]:
    """One batch of two to capture the network with."""
    return {name: torch.from_numpy(array) for name, array in network.batch(2).items()}


class NetworkModule(nn.Module):
    """Layers as modules, activations as functions; nodes run in the network's order."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        # In a function, which copies of the module share: a network cannot be copied.
        self._described: Callable[[], Network] = lambda: network
        for node in network.graph.nodes:
            layer = self._layer(node)
            if layer is not None:
                parent, _, name = node.name.rpartition(".")
                container_path(self, parent).add_module(name, layer)
        self._fill()

    @property
    def network(self) -> Network:
        """The description that this module was built from."""
        return self._described()

    def _shape(self, name: str | None) -> tuple[int, ...]:
        return tuple(self.network.weights[name or ""].shape)

    def _layer(self, node: Node) -> nn.Module | None:
        a = node.attributes
        if node.op == "Conv":
            out, per_group, *_ = self._shape(node.input(1))
            edge = a["pads"][:2]
            return nn.Conv2d(
                per_group * a["group"],
                out,
                a["kernel_shape"],
                a["strides"],
                edge,
                a["dilations"],
                a["group"],
                bias=node.input(2) is not None,
            )
        if node.op == "ConvTranspose":
            out, per_group, *_ = self._shape(node.input(1))
            return nn.ConvTranspose2d(
                per_group * a["group"],
                out,
                a["kernel_shape"],
                a["strides"],
                a["pads"][:2],
                0,
                a["group"],
                bias=node.input(2) is not None,
            )
        if node.op == "Linear":
            out, features = self._shape(node.input(1))
            return nn.Linear(features, out, bias=node.input(2) is not None)
        if node.op in RECURRENT:
            kind: Any = nn.LSTM if node.op == "LSTM" else nn.GRU
            bias = node.input(3) is not None
            return kind(self._shape(node.input(1))[1], a["hidden_size"], bias=bias)  # type: ignore[no-any-return]
        if node.op == "BatchNormalization":
            return nn.BatchNorm2d(self._shape(node.input(1))[0], eps=a["epsilon"])
        if node.op == "LayerNormalization":
            return nn.LayerNorm(self._shape(node.input(1)), eps=a["epsilon"])
        return None

    def _fill(self) -> None:
        """The network's values under its names; a constant with two readers is one parameter."""
        roles: dict[str, tuple[str, ...]] = {
            "Conv": ("weight", "bias"),
            "ConvTranspose": ("weight", "bias"),
            "Linear": ("weight", "bias"),
        }
        roles["BatchNormalization"] = ("weight", "bias", "running_mean", "running_var")
        roles["LayerNormalization"] = ("weight", "bias")
        roles.update(dict.fromkeys(RECURRENT, _RECURRENT_PARTS))
        first: dict[str, nn.Parameter] = {}
        for node in self.network.graph.nodes:
            for role, name in zip(roles.get(node.op, ()), node.inputs[1:], strict=False):
                if name is None:
                    continue
                layer = self.get_submodule(node.name)
                old = getattr(layer, role)
                if name in first:
                    setattr(layer, role, first[name])
                    continue
                with torch.no_grad():
                    old.copy_(torch.from_numpy(self._native(node, role, name)))
                if isinstance(old, nn.Parameter):
                    first[name] = old

    def _native(self, node: Node, role: str, name: str) -> Any:
        value = self.network.weights[name]
        if node.op in RECURRENT:
            return to_native(value, GATES[node.op])
        if node.op != "ConvTranspose" or role != "weight":
            return value.copy()
        group = int(node.attributes["group"])
        out, per_group, *kernel = value.shape
        return to_native(value, conv_transpose_layout((per_group * group, out // group, *kernel), group))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """Outputs by name."""
        graph = self.network.graph
        values: dict[str, Any] = {**dict(zip(graph.inputs, args, strict=False)), **kwargs}
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs if name in values]
            values[node.outputs[0]] = inputs[0] if self._is_layers_own(node) else self._run(node, inputs)
        return {name: values[tensor] for name, tensor in graph.outputs.items()}

    def _is_layers_own(self, node: Node) -> bool:
        """Whether the node only takes the axis of directions away, which nn.LSTM's result does not have."""
        producer = self.network.graph.producer(node.inputs[0] or "")
        if producer is not None and node.op == "Reshape" and producer.op == "Transpose":
            return self._is_layers_own(producer)
        return producer is not None and producer.op in RECURRENT

    def _run(self, node: Node, x: list[Tensor]) -> Tensor:
        a = node.attributes
        if node.op in RECURRENT:
            sequence: Tensor = self.get_submodule(node.name)(x[0])[0]
            return sequence
        if node.op in ("Conv", "ConvTranspose", "Linear", "BatchNormalization", "LayerNormalization"):
            result: Tensor = self.get_submodule(node.name)(x[0])
            return result
        simple: dict[str, Any] = {
            "Relu": functional.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh,
            "Swish": functional.silu, "HardSwish": functional.hardswish,
            "Add": torch.add, "Mul": torch.mul, "Sub": torch.sub, "Identity": lambda t: t,
            "Gelu": lambda t: functional.gelu(t, approximate=a["approximate"]),
            "Clip": lambda t: functional.hardtanh(t, a["min"], a["max"]),
            "MaxPool": lambda t: functional.max_pool2d(
                t, a["kernel_shape"], a["strides"], a["pads"][:2], a["dilations"]
            ),
            "AveragePool": lambda t: functional.avg_pool2d(t, a["kernel_shape"], a["strides"], a["pads"][:2]),
            "GlobalAveragePool": lambda t: t.mean((2, 3), keepdim=bool(a["keepdims"])),
            "Concat": lambda *t: torch.cat(t, a["axis"]),
            "Transpose": lambda t: t.permute(a["perm"]),
            "Reshape": lambda t: t.reshape(t.shape[0], *a["shape"][1:]),
            "Softmax": lambda t: torch.softmax(t, a["axis"]),
            "MatMul": lambda t, u: torch.matmul(t, u) * a["scale"] if "scale" in a else torch.matmul(t, u),
        }  # fmt: skip
        result = simple[node.op](*x)
        return result
