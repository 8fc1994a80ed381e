"""Drawing small neutral graphs by hand, raw or canonical, with the values of their constants beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from isobit.graph import Graph, Node, Shape, TensorInfo, WeightInfo


class Sketch:
    """Nodes one by one; each method returns the name of the tensor or constant that it adds."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.values: dict[str, np.ndarray] = {}
        self._nodes: list[Node] = []
        self._inputs: list[str] = []
        self._tensors: dict[str, TensorInfo] = {}

    def input(self, name: str, *shape: int | str | None, dtype: str = "float32") -> str:
        """A model input; `shape` is whole, axis 0 included."""
        self._inputs.append(name)
        self._tensors[name] = TensorInfo(tuple(shape), dtype)
        return name

    def weight(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """A constant of this value."""
        self.values[name] = np.array(value, dtype)
        return name

    def random(self, name: str, *shape: int) -> str:
        """A float32 constant of normal values."""
        return self.weight(name, self.rng.standard_normal(shape))

    def node(
        self,
        op: str,
        *inputs: str | None,
        name: str,
        shape: Shape | None = None,
        dtype: str = "float32",
        **attributes: Any,
    ) -> str:
        """A node with one output, named as the node; `shape` None is unknown."""
        self._nodes.append(Node(name, op, inputs, (name,), attributes, (name,)))
        self._tensors[name] = TensorInfo(shape, dtype)
        return name

    def split(self, name: str, x: str, parts: dict[str, Shape], **attributes: Any) -> None:
        """A Split into tensors of these names and shapes."""
        self._nodes.append(Node(name, "Split", (x,), tuple(parts), attributes, (name,)))
        self._tensors |= {part: TensorInfo(shape) for part, shape in parts.items()}

    def batch_norm(self, name: str, x: str, channels: int, shape: Shape) -> str:
        """Inference batch norm with random statistics ``<name>.gamma`` and so on."""
        self.weight(f"{name}.gamma", self.rng.uniform(0.5, 2, channels) * self.rng.choice([-1, 1], channels))
        self.random(f"{name}.beta", channels)
        self.random(f"{name}.mean", channels)
        self.weight(f"{name}.var", self.rng.uniform(0.1, 2, channels))
        constants = (f"{name}.{part}" for part in ("gamma", "beta", "mean", "var"))
        return self.node("BatchNormalization", x, *constants, name=name, shape=shape, epsilon=1e-5)

    def graph(self, *outputs: str) -> Graph:
        """The graph whose outputs are these tensors, named ``out0``, ``out1`` and so on."""
        infos = {n: WeightInfo.of(v, n) for n, v in self.values.items()}
        named = {f"out{index}": tensor for index, tensor in enumerate(outputs)}
        return Graph(tuple(self._nodes), tuple(self._inputs), named, self._tensors, infos)


def ops(graph: Graph) -> list[str]:
    """The op of every node, in order."""
    return [node.op for node in graph.nodes]
