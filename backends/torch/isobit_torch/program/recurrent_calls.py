"""ATen's calls of whole LSTM, GRU and RNN networks: which there are, their gates, which have a neutral form."""

from __future__ import annotations

from typing import Any

from torch import fx

from isobit.graph import Blocks, Layout
from isobit_torch.program.fx_nodes import is_constant, op_name

#: ATen calls of whole networks: the neutral op and, for RNN, its activation.
KINDS = {"lstm": ("LSTM", ""), "gru": ("GRU", ""), "rnn_tanh": ("RNN", "Tanh"), "rnn_relu": ("RNN", "Relu")}

#: PyTorch's gates (i f g o; r z n) in ONNX's order (i o f c; z r h).
GATES: dict[str, Layout] = {"LSTM": (Blocks((0, 3, 1, 2)),), "GRU": (Blocks((1, 0, 2)),), "RNN": ()}


def parameters_of_a_cell(a: dict[str, Any]) -> int:
    """How many parameters a call has for each layer and direction."""
    cells = (2 if a["bidirectional"] else 1) * int(a["num_layers"])
    return len(a["params"]) // cells


def has_projection(a: dict[str, Any]) -> bool:
    """Whether the states of an LSTM are projected (proj_size), by a weight more for each cell."""
    return parameters_of_a_cell(a) == (5 if a["has_biases"] else 3)


def why_float(node: fx.Node, a: dict[str, Any]) -> str | None:
    """Why a recurrent call has no form in the neutral graph; None where it has one."""
    if "params" not in a or "batch_sizes" in a:
        return "packed sequences like these have no form in ONNX: pass padded ones (limits: docs/recurrent-layers.md)"
    if not all(is_constant(parameter) for parameter in a["params"]):
        return "its weights are computed"
    return None if all(op_name(user) == "getitem" for user in node.users) else "its results are taken as a whole"
