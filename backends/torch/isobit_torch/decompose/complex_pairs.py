"""The pairs of real numbers that complex ones are, and arithmetic with their parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from isobit_torch.program.fx_nodes import DTYPE, NAME, aten, attribute, behind, dtype_name, op_name

#: A number or tensor of the calls.
Operand = Any
Parts = tuple[Operand, Operand]
_PAIR = -1


def is_complex(value: Any) -> bool:
    """Whether an argument is a node that computes complex numbers."""
    return isinstance(value, fx.Node) and str(value.meta.get(DTYPE)).startswith("complex")


def is_zero(value: Operand) -> bool:
    """Whether a part is a plain 0."""
    return not isinstance(value, fx.Node) and value == 0


def _fake(node: fx.Node) -> FakeTensor | None:
    value = node.meta.get("val")
    return value if isinstance(value, FakeTensor) else None


class Pairs:
    """Makes the calls that stand in for `node`, and knows the parts of complex numbers."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.root = graph, root
        self.node: fx.Node
        self.count = 0
        self._mode = next((v.fake_mode for v in map(_fake, graph.nodes) if v is not None), None) or FakeTensorMode()
        self._of: dict[fx.Node, fx.Node] = {}
        self._parts: dict[fx.Node, Parts] = {}
        self._conjugate: dict[fx.Node, fx.Node] = {}

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A node, with the shape and type that its result has."""
        node = self.graph.call_function(target, args, kwargs)
        self.count += 1
        node.meta[NAME] = self._name()
        value = self.value_of(node)
        node.meta["val"], node.meta[DTYPE] = value, dtype_name(value.dtype)
        return node

    def _name(self) -> str:
        """That of the newest call."""
        return f"{self.node.meta[NAME]}.part{self.count}"

    def value_of(self, node: fx.Node) -> Any:
        """The shape and type of what a call gives, as a tensor without values."""
        with self._mode, torch.no_grad():
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._fake_of)
            target: Any = node.target
            return target(*args, **kwargs)

    def _fake_of(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if value is None and node.op == "get_attr":
            value = attribute(self.root, str(node.target))
        if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
            return self._mode.from_tensor(value)
        return value

    def pair(self, number: fx.Node) -> fx.Node:
        """The real tensor with a last axis of two that holds a complex one."""
        if op_name(number) == "view_as_complex":
            pair: Any = number.args[0]
            return pair  # type: ignore[no-any-return]
        if number not in self._of:
            self._of[number] = self.call(aten.view_as_real.default, number)
        return self._of[number]

    def sizes(self, tensor: fx.Node) -> list[Any]:
        """The shape of a tensor: numbers, and nodes where it is open."""
        shape = tensor.meta["val"].shape
        return [size if isinstance(size, int) else self._open(tensor, axis) for axis, size in enumerate(shape)]

    def _open(self, tensor: fx.Node, axis: int) -> fx.Node:
        size = self.graph.call_function(aten.sym_size.int, (tensor, axis))
        size.meta["val"] = tensor.meta["val"].shape[axis]
        return size

    def parts(self, number: Operand) -> Parts:
        """Real and imaginary part; of a real number the second is 0."""
        if not isinstance(number, fx.Node):
            return (number.real, number.imag) if isinstance(number, complex) else (number, 0.0)
        if not is_complex(number):
            return number, 0.0
        pair = self.pair(number)
        if pair not in self._parts:
            with self.graph.inserting_after(behind(pair)):  # for whoever reads them next
                imaginary = self.call(aten.select.int, pair, _PAIR, 1)
                real = self.call(aten.select.int, pair, _PAIR, 0)
            self._parts[pair] = real, imaginary
        return self._parts[pair]

    def number(self, real: Operand, imaginary: Operand) -> fx.Node:
        """The complex number with these parts, one of which may be a plain 0."""
        known = real if isinstance(real, fx.Node) else imaginary
        both = [part if isinstance(part, fx.Node) else self._filled(known, part) for part in (real, imaginary)]
        pair = self.call(aten.stack.default, both, _PAIR)
        self._parts[pair] = both[0], both[1]
        return self.whole(pair)

    def _filled(self, like: fx.Node, value: float) -> fx.Node:
        zeros = self.call(aten.mul.Tensor, like, 0.0)
        return zeros if value == 0 else self.call(aten.add.Tensor, zeros, value)

    def whole(self, pair: fx.Node) -> fx.Node:
        """The complex number of a pair, for whoever knows no pairs; the pair has the name of the call."""
        if pair.meta[NAME] == self._name():
            pair.meta[NAME] = self.node.meta[NAME]
        return self.call(aten.view_as_complex.default, pair)

    def turned(self, size: Operand, angle: fx.Node) -> fx.Node:
        """The number of a size and a phase."""
        return self.number(
            self.times(size, self.call(aten.cos.default, angle)), self.times(size, self.call(aten.sin.default, angle))
        )

    def conjugated(self, number: fx.Node) -> fx.Node:
        """The conjugate, which is remembered as such."""
        real, imaginary = self.parts(number)
        result = self.number(real, self.negative(imaginary))
        self._conjugate[result] = self.pair(number)
        return result

    def are_conjugate(self, left: Operand, right: Operand) -> bool:
        """Whether one is the other's conjugate: their product is a power, without an imaginary part."""
        both = ((left, right), (right, left))
        return any(a in self._conjugate and self._conjugate[a] is self.pair(b) for a, b in both if is_complex(b))

    def plus(self, left: Operand, right: Operand) -> Operand:
        """The sum of two parts, without a call for a 0."""
        if is_zero(left):
            return right
        return left if is_zero(right) else self.call(aten.add.Tensor, left, right)

    def minus(self, left: Operand, right: Operand) -> Operand:
        """The difference of two parts."""
        if is_zero(right):
            return left
        return self.negative(right) if is_zero(left) else self.call(aten.sub.Tensor, left, right)

    def negative(self, value: Operand) -> Operand:
        """A part with the other sign."""
        return self.call(aten.neg.default, value) if isinstance(value, fx.Node) else -value

    def times(self, left: Operand, right: Operand) -> Operand:
        """The product of two parts."""
        if is_zero(left) or is_zero(right):
            return 0.0
        if not isinstance(left, fx.Node):
            left, right = right, left
        return self.call(aten.mul.Tensor, left, right) if isinstance(left, fx.Node) else left * right

    def over(self, left: Operand, right: Operand) -> Operand:
        """The quotient of two parts, the second of which is a tensor."""
        if is_zero(left):
            return 0.0
        if isinstance(left, fx.Node):
            return self.call(aten.div.Tensor, left, right)
        return self.times(self.call(aten.reciprocal.default, right), left)
