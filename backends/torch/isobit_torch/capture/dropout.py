"""The dropout of training inside attention and functional calls, of which a capture in evaluation mode sees nothing.

``dropout_p=self.dropout if self.training else 0.0`` is 0 when the model is captured. The module is run once more with
nothing but the modules that own such calls in training mode, and the probabilities that they ask for are written down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from isobit_torch.program.fx_nodes import NAME, arguments, aten, op_name
from isobit_torch.program.signature import Call

_ATTENTION, _DROPOUT = "scaled_dot_product_attention", "dropout"

#: Of each function the names that it may have in the graph, and the position and name of its probability.
_CALLS: dict[Any, tuple[tuple[str, ...], int, str]] = {
    functional.scaled_dot_product_attention: ((_ATTENTION,), 4, "dropout_p"),
    functional.multi_head_attention_forward: ((_ATTENTION, _DROPOUT), 10, "dropout_p"),
    functional.dropout: ((_DROPOUT,), 1, "p"),
    torch.dropout: ((_DROPOUT,), 1, "p"),
}

#: The probabilities asked for in training, by the path of the asking module and the name of the call, in order.
_Asked = Mapping[tuple[str, str], list[float]]


def restore_dropout(graph: fx.Graph, module: nn.Module, call: Call) -> None:
    """Give the calls of `graph`, a capture of `module`, the dropout probabilities of training."""
    calls: dict[tuple[str, str], list[fx.Node]] = defaultdict(list)
    modules = dict(module.named_modules())
    for node in graph.nodes:
        kind = op_name(node)
        owner = node.meta.get(NAME, "").removesuffix(kind).rstrip(".")
        own = owner in modules and not isinstance(modules[owner], nn.Dropout)
        if own and kind in (_ATTENTION, _DROPOUT) and not _probability(node):
            calls[owner, kind].append(node)
        elif own and kind == "softmax" and isinstance(modules[owner], nn.MultiheadAttention):
            calls[owner, kind].append(node)  # followed by dropout only where there is some
    if not calls:
        return
    asked = _ask(module, call, {owner for owner, _ in calls})
    for (owner, kind), nodes in calls.items():
        probabilities = asked.get((owner, _ATTENTION if kind == _ATTENTION else _DROPOUT), [])
        if len(probabilities) != len(nodes):  # in training, the code takes another path
            continue
        for node, probability in zip(nodes, probabilities, strict=True):
            if probability:
                _set(graph, node, owner, probability)


def _probability(node: fx.Node) -> float:
    a = arguments(node)
    return float(a["dropout_p"] if "dropout_p" in a else a["p"])


def _set(graph: fx.Graph, node: fx.Node, owner: str, probability: float) -> None:
    kind = op_name(node)
    if kind == "softmax":
        with graph.inserting_after(node):
            dropout = graph.call_function(aten.dropout.default, (node, probability, False))
        node.replace_all_uses_with(dropout, delete_user_cb=lambda user: user is not dropout)
        dropout.meta.update(node.meta)
        dropout.meta[NAME] = f"{owner}.{_DROPOUT}"
    elif kind == _DROPOUT:
        node.args = (node.args[0], probability, False)
    else:
        a = {**arguments(node), "dropout_p": probability}
        node.args = tuple(a[name] for name in ("query", "key", "value", "attn_mask", "dropout_p", "is_causal"))
        node.kwargs = {name: a[name] for name in ("scale", "enable_gqa") if name in a}


def _ask(module: nn.Module, call: Call, owners: Iterable[str]) -> _Asked:
    """Run `module`, which is in evaluation mode, with `owners` alone in training mode; a failure asks for nothing."""
    listener = _Listener()
    hooks = []
    chosen = {path: module.get_submodule(path) for path in owners}
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    try:
        for path, owner in chosen.items():
            owner.training = True  # without its children
            hooks.append(owner.register_forward_pre_hook(lambda *_, path=path: listener.path.append(path)))
            hooks.append(owner.register_forward_hook(lambda *_: listener.leave(), always_call=True))
        with torch.no_grad(), torch.random.fork_rng(devices), listener:
            module(*call.args, **call.kwargs)
    except Exception:
        return {}  # the model runs in evaluation mode alone
    finally:
        for hook in hooks:
            hook.remove()
        for owner in chosen.values():
            owner.training = False
    return listener.asked


class _Listener(TorchFunctionMode):
    """Writes down the dropout probabilities that functions are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []  # of the owners that are running
        self.asked: dict[tuple[str, str], list[float]] = defaultdict(list)

    def leave(self) -> None:
        """An owner is done."""
        self.path.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = _CALLS.get(func)
        if call is not None and self.path:
            kinds, position, name = call
            probability = args[position] if len(args) > position else kwargs.get(name, 0.0)
            for kind in kinds:
                self.asked[self.path[-1], kind].append(float(probability))
        return func(*args, **kwargs)
