"""From an exported program to a plain fx graph over containers that hold the user's parameters by their names."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from isobit_torch.capture.free_names import NewNames, moved
from isobit_torch.program.constants import CONSTANTS
from isobit_torch.program.fx_nodes import DTYPE, NAME, dtype_name
from isobit_torch.program.modules import BatchNorm, Container, Dropout, set_tensor

_DROPOUTS = {
    "Dropout": "dropout",
    "Dropout1d": "dropout1d",
    "Dropout2d": "dropout2d",
    "Dropout3d": "dropout3d",
    "AlphaDropout": "alpha_dropout",
    "FeatureAlphaDropout": "feature_alpha_dropout",
}


def build_root(module: nn.Module, root: nn.Module, names: NewNames) -> dict[str, str]:
    """Give `root` containers with the parameters and buffers of `module`, some parts under new names.

    Returns for each path of the module that in `root`; ties have one.
    """
    first: dict[int, str] = {}
    canonical: dict[str, str] = {}
    for path, original in module.named_modules(remove_duplicate=False):
        holder = _put(root, moved(path, names), original)
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(original, kind).items():
                full = f"{path}.{name}" if path else name
                if value is not None:
                    canonical[full] = first.setdefault(id(value), moved(full, names))
                key = moved(full, names).rpartition(".")[2]
                if kind == "_parameters":
                    holder.register_parameter(key, value)
                else:
                    holder.register_buffer(key, value, name not in original._non_persistent_buffers_set)
    return canonical


def _put(root: nn.Module, path: str, original: nn.Module) -> nn.Module:
    if not path:
        return root
    parent: nn.Module = root
    *parts, last = path.split(".")
    for part in parts:
        parent = parent._modules[part]  # type: ignore[assignment]
    holder = _holder(original)
    parent.add_module(last, holder)
    return holder


def _holder(original: nn.Module) -> nn.Module:
    if isinstance(original, nn.modules.batchnorm._BatchNorm):
        return BatchNorm(original.momentum, original.eps)
    kind = _DROPOUTS.get(type(original).__name__)
    if kind is not None and isinstance(original, nn.modules.dropout._DropoutNd):
        return Dropout(original.p, kind)
    return Container()


def load_graph(program: ExportedProgram, root: nn.Module, canonical: dict[str, str]) -> fx.Graph:
    """The program's graph with parameters as get_attr nodes; what it lifted out becomes constants of `root`."""
    signature = program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    attributes: dict[str, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            env[node] = _input(graph, node, specs[node.name], program, root, canonical, attributes)
        elif node.op == "output":
            returned = [spec.arg for spec in signature.output_specs if spec.kind.name == "USER_OUTPUT"]
            by_name = {n.name: n for n in program.graph.nodes}
            results = tuple(
                env[by_name[a.name]] if hasattr(a, "name") and a.name in by_name else getattr(a, "value", None)
                for a in returned
            )
            graph.output(results)
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
            note_dtype(env[node], node.meta.get("val"))
    return graph


def note_dtype(node: fx.Node, value: Any) -> None:
    """Note the element type of a node that computes a tensor."""
    if isinstance(value, torch.Tensor):
        node.meta[DTYPE] = dtype_name(value.dtype)


def _input(
    graph: fx.Graph,
    node: fx.Node,
    spec: Any,
    program: ExportedProgram,
    root: nn.Module,
    canonical: dict[str, str],
    attributes: dict[str, fx.Node],
) -> Any:
    kind, target = spec.kind.name, spec.target
    if kind == "USER_INPUT":
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return value if not isinstance(value, torch.SymInt) else int(value)
        new_node = graph.placeholder(node.name)
        new_node.meta["val"] = value
        new_node.meta[NAME] = node.name
    else:
        path = canonical.get(target)
        if path is None:  # a tensor attribute, or a literal in the code
            path = canonical[target] = f"{CONSTANTS}.{target.replace('.', '_')}"
            set_tensor(root, path, program.constants[target].detach().clone(), parameter=False, persistent=False)
        if path in attributes:
            return attributes[path]
        new_node = attributes[path] = graph.get_attr(path)
        new_node.meta["val"] = node.meta.get("val")
        new_node.meta[NAME] = path
    note_dtype(new_node, new_node.meta["val"])
    return new_node
