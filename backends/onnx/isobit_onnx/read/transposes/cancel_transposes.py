"""Transposes that cancel each other across what stands between them are taken out, so that NHWC files run in NCHW.

Convolutions and pooling are NCHW in ONNX; exporters of networks in NHWC put a Transpose before and behind each. What
stands between two of these (activations, sums, scales, joins) does the same on the tensor before the Transpose. Here
such regions are found and moved as a whole where that takes out more than it puts in, counted in elements of a sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

import onnx_ir as ir

from isobit_onnx.read.rewrite import constant_of
from isobit_onnx.read.transposes.moved_ops import Moved, Perm, inverse, is_identity, keeps_order, moved, rank_of
from isobit_onnx.read.unused_nodes import remove_unused

Region = dict[ir.Node, Moved]

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


def cancel_transposes(model: ir.Model) -> bool:
    """Take out, in place, the transposes that cancel. Returns whether anything was changed."""
    if not any(_perm(node) is not None for node in model.graph):
        return False
    search = _Search(model.graph)
    search.find()
    changed = _Writer(model.graph, search.moved).write()
    if changed:
        remove_unused(model)
    return changed


class _Search:
    """Chooses the nodes that work on moved tensors."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.moved: Region = {}
        self.rejected: set[tuple[tuple[int, Perm], ...]] = set()

    def find(self) -> None:
        for node in self.graph:
            perm = _perm(node)
            source = node.inputs[0] if node.inputs else None
            if perm is None or source is None or is_identity(perm):
                continue
            for reader, index in self._readers(node.outputs[0]):
                self._try(reader, moved(reader, inverse(perm), read=index))
            producer = source.producer()
            if producer is not None:
                index = next(i for i, value in enumerate(producer.outputs) if value is source)
                self._try(producer, moved(producer, perm, made=index))

    def _try(self, node: ir.Node, start: Moved | None) -> None:
        if start is None or node in self.moved or node.graph is not self.graph:
            return
        region = self._region(node, start)
        if all(entry.is_view for entry in region.values()):
            return  # nothing is gained by reading the same elements through another view
        if any(use.node.op_type in _RECURRENT for member in region for value in member.outputs for use in value.uses()):
            return  # cuts of initial states, which other frameworks cut in this order too
        key = tuple(sorted((id(member), entry.outputs[0]) for member, entry in region.items()))
        if key in self.rejected:
            return
        bases = dict.fromkeys(value for member in region for value in self._touched(member))
        before = self._cost(bases, {})
        after = self._cost(bases, region) + sum(_size(m.outputs[0]) for m, entry in region.items() if entry.is_slower)
        if after < before:
            self.moved.update(region)
        else:
            self.rejected.add(key)

    def _region(self, node: ir.Node, start: Moved) -> Region:
        """All that is moved with a node, over values that two operations share."""
        region: Region = {node: start}
        waiting = [node]
        while waiting:
            member = waiting.pop()
            for other, entry in self._neighbours(member, region[member]):
                if entry is None or other in region or other in self.moved or other.graph is not self.graph:
                    continue
                if _leaves_a_body(other, self.graph):
                    continue
                region[other] = entry
                waiting.append(other)
        return region

    def _neighbours(self, node: ir.Node, entry: Moved) -> Iterator[tuple[ir.Node, Moved | None]]:
        for index, perm in entry.inputs.items():
            value = node.inputs[index]
            producer = value.producer() if value is not None else None
            if value is None or is_identity(perm):
                continue
            if producer is not None:
                place = next(i for i, output in enumerate(producer.outputs) if output is value)
                yield producer, moved(producer, perm, made=place)
            for reader, place in self._readers(value):
                yield reader, moved(reader, perm, read=place)
        for value, perm in zip(node.outputs, entry.outputs, strict=False):
            if not is_identity(perm):
                for reader, place in self._readers(value):
                    yield reader, moved(reader, perm, read=place)

    @staticmethod
    def _readers(value: ir.Value) -> list[tuple[ir.Node, int]]:
        return [(use.node, use.idx) for use in value.uses() if _perm(use.node) is None]

    def _touched(self, node: ir.Node) -> Iterator[ir.Value]:
        for value in (*node.inputs, *node.outputs):
            if value is not None and constant_of(value) is None:
                yield origin(value)[0]

    def _cost(self, bases: Iterable[ir.Value], region: Region) -> int:
        """Elements that are moved to give every reader of these values, behind transposes too, what it reads."""
        state = {**self.moved, **region}
        total = 0
        for base in bases:
            wanted = {perm for perm in self._wanted(base, state) if not is_identity(perm)}
            total += sum(1 if keeps_order(base, perm) else _size(base) for perm in wanted)
        return total

    def _wanted(self, base: ir.Value, state: Region) -> Iterator[Perm]:
        rank = rank_of(base)
        if rank is None:
            return
        have = _made(base, state)
        waiting = [(base, tuple(range(rank)))]
        while waiting:
            value, perm = waiting.pop()  # value = base as it was, transposed by perm
            if value.is_graph_output():
                yield _from_to(have, perm)
            for use in value.uses():
                further = _perm(use.node)
                if further is not None:
                    waiting.append((use.node.outputs[0], _then(perm, further)))
                    continue
                entry = state.get(use.node)
                read = entry.inputs.get(use.idx) if entry is not None else None
                yield _from_to(have, perm if read is None else _then(perm, read))


class _Writer:
    """Moves the chosen nodes and gives every reader the tensor that it wants."""

    def __init__(self, graph: ir.Graph, state: Region) -> None:
        self.graph, self.state = graph, state
        self.made: dict[tuple[ir.Value, Perm], ir.Value] = {}
        self.kept: dict[tuple[ir.Value, Perm], ir.Value] = {}  # what transposes of the file make, the first of its kind
        self.changed = False

    def write(self) -> bool:
        nodes = list(self.graph)
        for node in nodes:
            perm, source = _perm(node), node.inputs[0] if node.inputs else None
            if perm is not None and source is not None and is_identity(_made(source, self.state)):
                self.kept.setdefault((source, perm), node.outputs[0])
        inner = [node for graph in self.graph.subgraphs() for node in graph]
        wired = [(node, self._operands(node)) for node in (*nodes, *inner) if _perm(node) is None]
        outputs = [(index, value, self._returned(value)) for index, value in enumerate(self.graph.outputs)]
        for node, operands in wired:
            for index, (base, perm) in operands.items():
                node.replace_input_with(index, self._transposed(base, perm))
        for index, value, origin_and_perm in outputs:
            if origin_and_perm is not None:
                self._give(index, value, *origin_and_perm)
        for node, entry in self.state.items():
            for value, perm in zip(node.outputs, entry.outputs, strict=False):
                if value.shape is not None and len(value.shape) == len(perm):
                    value.shape = ir.Shape([value.shape[axis] for axis in perm])
            entry.rewrite(self.graph)
        return self.changed

    def _operands(self, node: ir.Node) -> dict[int, tuple[ir.Value, Perm]]:
        """What a node shall read at the inputs that change: a value, and how it is transposed then."""
        entry = self.state.get(node)
        operands = {}
        for index, value in enumerate(node.inputs):
            if value is None or constant_of(value) is not None or rank_of(value) is None:
                continue
            base, chain = origin(value)
            read = entry.inputs.get(index) if entry is not None else None
            wanted = _from_to(_made(base, self.state), chain if read is None else _then(chain, read))
            is_moved = not is_identity(_made(base, self.state)) or read is not None
            is_double = self.kept.get((base, wanted), value) is not value
            if is_moved or is_double or (is_identity(wanted) and base is not value):
                operands[index] = base, wanted
        return operands

    def _returned(self, value: ir.Value) -> tuple[ir.Value, Perm] | None:
        """What an output of the model shall be, None where nothing changes."""
        if rank_of(value) is None:
            return None
        base, chain = origin(value)
        wanted = _from_to(_made(base, self.state), chain)
        if not is_identity(_made(base, self.state)) or (is_identity(wanted) and base is not value):
            return base, wanted
        return None

    def _transposed(self, base: ir.Value, perm: Perm) -> ir.Value:
        self.changed = True
        if is_identity(perm):
            return base
        if (base, perm) in self.kept:
            return self.kept[base, perm]
        if (base, perm) not in self.made:
            self.made[base, perm] = self._new(base, perm, f"{base.name}/transposed").outputs[0]
        return self.made[base, perm]

    def _new(self, base: ir.Value, perm: Perm, name: str) -> ir.Node:
        node = ir.Node("", "Transpose", [base], [ir.AttrInt64s("perm", perm)], name=name)
        node.outputs[0].name, node.outputs[0].type = name, base.type
        producer = base.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        else:
            self.graph.insert_before(self.graph[0], node)
        return node

    def _give(self, index: int, value: ir.Value, base: ir.Value, perm: Perm) -> None:
        """The output has its name and its layout still."""
        self.changed = True
        name, shape = value.name, value.shape
        if is_identity(perm) and base is value:
            return
        value.name = f"{name}/moved"
        if is_identity(perm) and base.producer() is not None and not base.is_graph_output():
            result = base
        else:
            op = ir.Node("", "Identity", [base], name=f"{name}/returned") if is_identity(perm) else None
            if op is not None:
                self.graph.append(op)
            result = op.outputs[0] if op is not None else self._new(base, perm, f"{name}/returned").outputs[0]
        result.name, result.type = name, value.type
        if result is not base:
            result.shape = shape
        self.graph.outputs[index] = result


# --- values and permutations -----------------------------------------------------------------------------------------


def origin(value: ir.Value) -> tuple[ir.Value, Perm]:
    """The value behind all transposes, and the permutation from it to `value`."""
    rank = rank_of(value) or 0
    perm = tuple(range(rank))
    producer = value.producer()
    while producer is not None:
        step, source = _perm(producer), producer.inputs[0] if producer.inputs else None
        if step is None or source is None or len(step) != rank:
            break
        perm = _then(step, perm)
        value, producer = source, source.producer()
    return value, perm


def _perm(node: ir.Node) -> Perm | None:
    """The permutation of a Transpose that says one, of a tensor that is computed."""
    if node.op_type != "Transpose" or node.domain or "perm" not in node.attributes:
        return None
    source = node.inputs[0]
    perm = tuple(node.attributes["perm"].as_ints())
    return perm if source is not None and constant_of(source) is None and rank_of(source) == len(perm) else None


def _then(first: Perm, second: Perm) -> Perm:
    """One permutation for a Transpose by `first` and one by `second`."""
    return tuple(first[axis] for axis in second)


def _from_to(have: Perm, wanted: Perm) -> Perm:
    """The permutation from a tensor that is moved by `have` to the same tensor moved by `wanted`."""
    return tuple(have.index(axis) for axis in wanted)


def _made(value: ir.Value, state: Region) -> Perm:
    """How a value is moved by what makes it."""
    producer = value.producer()
    entry = state.get(producer) if producer is not None else None
    if producer is None or entry is None:
        return tuple(range(rank_of(value) or 0))
    return entry.outputs[next(i for i, output in enumerate(producer.outputs) if output is value)]


def _size(value: ir.Value) -> int:
    """Elements of a value, open sizes left out."""
    sizes = value.shape if value.shape is not None else ()
    return prod(size for size in sizes if isinstance(size, int)) or 1


def _leaves_a_body(node: ir.Node, graph: ir.Graph) -> bool:
    """Whether a body hands on a result of a node, which has no reader that could be told."""
    return any(value.is_graph_output() and value not in graph.outputs for value in node.outputs)
