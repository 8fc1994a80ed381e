"""Carrying out checked edits on a copy of the float graph; the module changes when everything is known to fit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from isobit.edits import EditPlan, Inserted, Replaced, Resized
from isobit.errors import EditError
from isobit.graph import Blocks, Layout, Node, Permute, Take, Tensor, View, WeightInfo, conv_transpose_layout, to_native
from isobit.graph.layout import compose, inverse
from isobit_torch.program.constants import CONSTANTS
from isobit_torch.program.convert import to_array, to_tensor
from isobit_torch.program.devices import device_of
from isobit_torch.program.fx_nodes import DTYPE, NAME, SHAPE, aten, attribute, behind, erase_unread
from isobit_torch.program.modules import BatchNorm, delete_tensor, set_tensor
from isobit_torch.program.program import Program, copy_graph
from isobit_torch.program.shapes import propagate
from isobit_torch.translate.lower import lower
from isobit_torch.translate.sites import seen_through_views, view_chain
from isobit_torch.translate.translate import Translation, translate


@dataclass(frozen=True, eq=False)
class Edited:
    """The edited program, and what has to change in the module for it."""

    program: Program
    translation: Translation
    values: dict[str, torch.Tensor]
    gone: tuple[str, ...]

    def write(self, root: nn.Module) -> None:
        """Give the module its new values; a parameter that keeps its shape stays the same object."""
        aliases: dict[int, list[str]] = {}
        for path, parameter in root.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(parameter), []).append(path)
        with torch.no_grad():
            for path, value in self.values.items():
                self._set(root, path, value, aliases)
        for path in self.gone:
            delete_tensor(root, path)
        called = {str(node.target) for node in self.program.graph.nodes if node.op == "call_module"}
        for path, module in list(root.named_modules()):
            if isinstance(module, BatchNorm) and path not in called:
                delete_tensor(root, f"{path}.num_batches_tracked")

    def _set(self, root: nn.Module, path: str, value: torch.Tensor, aliases: dict[int, list[str]]) -> None:
        try:
            old = attribute(root, path)
        except AttributeError:
            old = None
        if old is None:  # new, or a bias that was declared absent
            reserved = path.startswith(f"{CONSTANTS}.")
            set_tensor(root, path, value, parameter=not reserved, persistent=not reserved)
            if not reserved and _is_frozen(root, path):
                attribute(root, path).requires_grad_(False)
            return
        if old.shape == value.shape and old.dtype == value.dtype:
            old.copy_(value)
            return
        trainable = isinstance(old, nn.Parameter)
        replacement = nn.Parameter(value, old.requires_grad) if trainable else value
        for alias in aliases.get(id(old), [path]):
            set_tensor(root, alias, replacement, parameter=trainable, persistent=not path.startswith(f"{CONSTANTS}."))


def _is_frozen(root: nn.Module, path: str) -> bool:
    """Whether all other parameters of the layer that a new one belongs to are kept from training."""
    owner, _, name = path.rpartition(".")
    others = [p for n, p in root.get_submodule(owner).named_parameters(recurse=False) if n != name]
    return bool(others) and not any(parameter.requires_grad for parameter in others)


def apply_edits(program: Program, translation: Translation, root: nn.Module, plan: EditPlan) -> Edited:
    """Carry out `plan` on copies. Raises EditError; nothing of `program` or `root` changes here.

    New values of layers alone leave the program as it is.
    """
    editor = _Editor(program, translation, root, plan)
    for step in plan.steps:
        if isinstance(step, Replaced):
            editor.replace(step)
        elif isinstance(step, Resized):
            editor.resize(step)
        else:
            editor.insert(step)
    editor.set_weights()
    if plan.changes_layers_alone(translation.graph):
        return Edited(program, replace(translation, graph=plan.graph), editor.values, ())
    return editor.finish()


#: Calls that give a tensor other sizes.
_VIEWS = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})


class _Editor:
    def __init__(self, program: Program, translation: Translation, root: nn.Module, plan: EditPlan) -> None:
        self.program, self.root, self.plan = program, root, plan
        self.numbers = translation.numbers
        self.before = translation.graph
        self.graph, copies = copy_graph(program.graph)
        self.tensors = {name: copies[node] for name, node in translation.values.items()}
        self.attributes = {name: copies[node] for name, node in translation.attributes.items()}
        self.parts = {name: tuple(copies[n] for n in nodes) for name, nodes in translation.parts.items()}
        self.values: dict[str, torch.Tensor] = {}

    # --- steps -----------------------------------------------------------------------------------------------------

    def replace(self, step: Replaced) -> None:
        """Build the chain in front of the old node's result, and let its readers read the new end."""
        old = step.old
        target = self.tensors[old.outputs[0]]
        parts = tuple(node for part in old.parts for node in self.parts.get(part, ()))
        with self.graph.inserting_before(target):
            if self._is_copy(step):
                result = self._copied(old, step.nodes[0], target)
            elif self._is_resized(step):
                result = self._resized(old, step.nodes[0], target)
            else:
                result = self._chain(self._data(step), step.nodes)
        target.replace_all_uses_with(result)
        for node in reversed(parts):
            if not node.users and node.graph is self.graph and node is not result:
                self.graph.erase_node(node)
        self.tensors[old.outputs[0]] = result

    def _data(self, step: Replaced) -> fx.Node:
        """What the chain reads: the node's first input, or, where that is a constant beside a tensor, the tensor."""
        first = step.nodes[0].inputs[0] if step.nodes else step.old.inputs[0]
        if first not in self.tensors and not step.nodes:
            first = next((name for name in step.old.inputs if name in self.tensors), first)
        return self._value(first or "")

    def _is_copy(self, step: Replaced) -> bool:
        """A copy of a node that reads other constants: the native call is copied whatever it is."""
        if len(step.nodes) != 1 or len(step.old.parts) != 1 or len(self.parts.get(step.old.parts[0], ())) != 1:
            return False
        old, new = step.old, step.nodes[0]
        constants = (*self.before.weights, *self.plan.graph.weights)
        same = old.op == new.op and dict(old.attributes) == dict(new.attributes) and len(old.inputs) == len(new.inputs)
        changed = [(a, b) for a, b in zip(old.inputs, new.inputs, strict=False) if a != b]
        return same and all(a in self.attributes and b in constants for a, b in changed)

    def _copied(self, old: Node, new: Node, target: fx.Node) -> fx.Node:
        copied = self.graph.node_copy(target, lambda n: n)
        copied.meta = dict(target.meta)
        for index, (a, b) in enumerate(zip(old.inputs, new.inputs, strict=True)):
            if a != b and a is not None and b is not None:
                info = self.before.weights[a]
                copied.replace_input_with(self.attributes[info.source or a], self._constant(b, info.layout, index))
        self.parts[new.name], self.tensors[new.outputs[0]] = (copied,), copied
        return copied

    def _is_resized(self, step: Replaced) -> bool:
        """A node of other sizes: the native call is copied, for it knows what of its sizes is open."""
        if len(step.nodes) != 1 or len(step.old.parts) != 1 or len(self.parts.get(step.old.parts[0], ())) != 1:
            return False
        old, new, (call,) = step.old, step.nodes[0], self.parts[step.old.parts[0]]
        if old.op != new.op or call is not self.tensors[old.outputs[0]] or call.args[0] is not self._data(step):
            return False
        if old.op == "Resize":  # its native sizes are those of the positions
            return set(old.attributes) == set(new.attributes)
        sizes = call.args[1] if len(call.args) > 1 else None
        return old.op in ("Reshape", "Expand") and (
            isinstance(sizes, list | tuple) and len(sizes) == len(old.attributes["shape"])
        )

    def _resized(self, old: Node, new: Node, target: fx.Node) -> fx.Node:
        copied = self.graph.node_copy(target, lambda n: n)
        copied.meta = dict(target.meta)
        if new.op != "Resize":
            before, after = old.attributes["shape"], new.attributes["shape"]
            sizes = [m if m != n else arg for arg, n, m in zip(target.args[1], before, after, strict=True)]  # type: ignore[arg-type]
            copied.update_arg(1, sizes)
        self.parts[new.name], self.tensors[new.outputs[0]] = (copied,), copied
        return copied

    def insert(self, step: Inserted) -> None:
        """Build the chain behind a tensor, or before one input."""
        site = step.site
        source = self._value(step.nodes[0].inputs[0] or "")
        if isinstance(site, Tensor):
            readers = list(source.users)
            with self.graph.inserting_before(behind(source).next):  # the chain stays in order
                result = self._chain(source, step.nodes)
            for reader in readers:
                reader.replace_input_with(source, result)
            return
        node = self.before.node(site.node)
        parts = [n for part in node.parts for n in self.parts.get(part, ())]
        reads = [(n, r) for n in parts for r in n.all_input_nodes if r not in parts and source in view_chain(r)]
        if not reads:
            raise EditError(f"{site}: no operation reads the input by itself, so nothing can be put before it")
        with self.graph.inserting_before(behind(source).next):  # the chain stays in order
            result = self._chain(source, step.nodes)
        for reader, read in reads:
            reader.replace_input_with(read, seen_through_views(read, source, result, reader))

    def resize(self, step: Resized) -> None:
        """Split into other sizes; the results are taken out of the new call as they were."""
        new = step.new
        calls = [node for part in step.old.parts for node in self.parts.get(part, ())]
        if new.op != "Split" or not calls or calls[0] is self.tensors[step.old.outputs[0]]:
            raise EditError(f"the PyTorch backend cannot change the sizes of node {new.name!r} ({new.op})")
        old, taken = calls[0], calls[1:]
        sizes, axis = [int(n) for n in new.attributes["split"]], int(new.attributes["axis"])
        with self.graph.inserting_before(old):
            call = self.graph.call_function(aten.split_with_sizes.default, (old.args[0], sizes, axis))
        call.meta = dict(old.meta)
        old.replace_all_uses_with(call)
        self.graph.erase_node(old)
        self.parts[new.name] = (call, *taken)

    def set_weights(self) -> None:
        """New values of constants that the module has already."""
        for name, value in self.plan.weights.items():
            if name not in self.before.weights:
                continue
            info = self._info(name)
            source = info.source or name
            if source in self.numbers:
                raise EditError(f"constant {name!r} is a number in the code, which no edit can change")
            path = str(self.attributes[source].target)
            old = attribute(self.root, path)
            current = self.values.get(path, old)
            self.values[path] = to_tensor(to_native(np.asarray(value), info.layout, to_array(current)), old)

    def finish(self) -> Edited:
        """The edited program, its shapes and its translation."""
        self._recount()
        constants_before = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        erase_unread(self.graph)
        constants_left = {str(n.target) for n in self.graph.nodes if n.op == "get_attr"}
        values = {path: value for path, value in self.values.items() if path in constants_left}
        self.graph.lint()
        old = self.program
        propagate(self.root, self.graph, old.inputs, old.symbols, values)
        translation = translate(self.graph, self.root, old.inputs, old.signature.outputs, old.notes, values)
        program = replace(old, graph=self.graph)
        gone = tuple(constants_before - constants_left)
        return Edited(program, translation, values, gone)

    def _recount(self) -> None:
        """Give a view that ends another operation, a pooling for one, the sizes that are left."""
        for node in self.plan.graph.nodes:
            name = node.outputs[0]
            old, new = (g.tensors[name].shape if name in g.tensors else None for g in (self.before, self.plan.graph))
            call = self.tensors.get(name)
            if old is None or new is None or old == new or call is None or call.target not in _VIEWS:
                continue
            sizes = call.args[1]
            if node.op == "Reshape" or not isinstance(sizes, list | tuple) or len(sizes) != len(new):
                continue  # a node of its own has been replaced where its sizes are others
            call.update_arg(
                1, [m if n != m and size == n else size for size, n, m in zip(sizes, old, new, strict=True)]
            )

    # --- building --------------------------------------------------------------------------------------------------

    def _value(self, name: str) -> fx.Node:
        return self.tensors[name] if name in self.tensors else self._constant(name, (), 0)

    def _chain(self, source: fx.Node, nodes: tuple[Node, ...]) -> fx.Node:
        for node in nodes:
            self._check_batch(node, source)
            calls: list[fx.Node] = []
            inputs: list[Any] = [source]
            for index, name in enumerate(node.inputs[1:], 1):
                inputs.append(None if name is None else self._operand(node, index, name))
            source = lower(lambda *a, calls=calls, node=node, **k: self._make(node, calls, *a, **k), node, inputs)
            self.parts[node.name] = tuple(calls)
            self.tensors[node.outputs[0]] = source
        return source

    def _check_batch(self, node: Node, source: fx.Node) -> None:
        """A Reshape of several open sizes that is made anew takes its first one to be that of its input."""
        info = self.plan.graph.tensors.get(node.outputs[0]) or self.before.tensors.get(node.outputs[0])
        if node.op == "Reshape" and info is not None and node.attributes["shape"].count(-1) > 1:
            before, after = source.meta.get(SHAPE), info.shape
            if not before or not after or before[0] is None or before[0] != after[0]:
                raise EditError(f"node {node.name!r} (Reshape) has several dynamic dimensions and cannot be made anew")

    def _make(
        self,
        node: Node,
        calls: list[fx.Node],
        target: Any,
        args: tuple[Any, ...],
        part: str = "",
        size: bool = False,
        **kwargs: Any,
    ) -> fx.Node:
        call = self.graph.call_function(target, args, kwargs)
        if not size:
            call.meta[NAME] = f"{node.name}.{part}" if part else node.name
            call.meta[DTYPE] = "float32"
            info = self.plan.graph.tensors.get(node.outputs[0]) or self.before.tensors.get(node.outputs[0])
            call.meta[SHAPE] = info.shape if info is not None else None
        calls.append(call)
        return call

    def _operand(self, node: Node, index: int, name: str) -> fx.Node:
        is_weight = name in self.before.weights or name in self.plan.weights
        if name in self.tensors and not is_weight:
            return self.tensors[name]
        layout: Layout = ()
        if index == 1 and node.op == "ConvTranspose":
            shape = self._canonical_shape(name)
            group = int(node.attributes.get("group", 1))
            layout = conv_transpose_layout((shape[1] * group, shape[0] // group, *shape[2:]), group)
        elif index == 1 and node.op == "MatMul":
            rank = len(self._canonical_shape(name))
            layout = (Permute((*range(rank - 2), rank - 1, rank - 2)),)
        return self._constant(name, layout, index)

    def _canonical_shape(self, name: str) -> tuple[int, ...]:
        if name in self.plan.weights:
            return tuple(np.shape(self.plan.weights[name]))
        return self.before.weights[name].shape

    def _info(self, name: str) -> WeightInfo:
        """A constant that was there before, stored as the plan has it: of fewer channels in other views."""
        return self.plan.graph.weights.get(name) or self.before.weights[name]

    def _constant(self, name: str, layout: Layout, index: int) -> fx.Node:
        """The node of a constant as its reader needs it: canonical through `layout`, whatever its own is."""
        if name in self.before.weights:
            info = self._info(name)
            source = info.source or name
            if source in self.numbers:
                return self._new(name, self.numbers[source])
            node = self.attributes[source]
            return _viewed(self.graph, node, compose(info.layout, inverse(layout)), name)
        if name in self.attributes:
            return self.attributes[name]
        return self._new(name, to_native(np.asarray(self.plan.weights[name]), layout))

    def _new(self, name: str, value: Any) -> fx.Node:
        path = self._path(name)
        self.values[path] = to_tensor(value).to(device_of(self.root))
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            node = self.graph.get_attr(path)
        node.meta.update(
            {NAME: name, DTYPE: str(self.values[path].dtype).removeprefix("torch."), SHAPE: tuple(value.shape)}
        )
        self.attributes[name] = node
        return node

    def _path(self, name: str) -> str:
        """The name itself, where no tensor stands in its way."""
        module: nn.Module = self.root
        *parents, last = name.split(".")
        blocked = not last or not all(parents)
        for part in parents:
            if part in module._modules:
                module = module._modules[part]  # type: ignore[assignment]
                continue
            blocked = blocked or hasattr(module, part)
            break
        else:
            blocked = blocked or last in module._modules or hasattr(type(module), last)
        return f"{CONSTANTS}.{''.join(c if c.isalnum() else '_' for c in name)}" if blocked else name


def _viewed(graph: fx.Graph, node: fx.Node, layout: Layout, name: str) -> fx.Node:
    """A constant through its layout, as calls; the translation folds them into the layout again."""
    for step in layout:
        if isinstance(step, Permute):
            view = graph.call_function(aten.permute.default, (node, list(step.axes)))
        elif isinstance(step, View):
            view = graph.call_function(aten.reshape.default, (node, list(step.shape)))
        elif isinstance(step, Blocks):
            raise EditError(
                f"constant {name!r} is a recurrent layer's, in PyTorch's order of the gates: Unshare it first"
            )
        else:
            assert isinstance(step, Take)
            view = graph.call_function(aten.select.int, (node, 0, step.index))
        # A weight that several layers read has views for each of them; names of calls are unique.
        view.meta.update({NAME: f"{name}.{view.name}", DTYPE: node.meta[DTYPE], SHAPE: None})
        node = view
    return node
