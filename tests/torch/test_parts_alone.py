"""Parts of a graph that run by themselves, in PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import isobit
from isobit.backend.checked_model import CheckedDifferentiable
from isobit.encodings import Encoding
from isobit.graph import Tensor, between


def test_what_is_given_stays_as_it_was() -> None:
    """Quantizers may overwrite what they read, but not the arrays of the caller, nor outputs in front of them."""
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)).eval(), torch.randn(8, 4)
    model = isobit.QuantSim(module, x).backend_model
    assert isinstance(model, CheckedDifferentiable)
    first, second, last = (node.outputs[0] for node in model.graph.nodes)
    model.set_quantizers({Tensor(name): Encoding.of("int4", 0.25) for name in (first, second)})
    hidden = module[0](x).detach().numpy()
    given = hidden.copy()
    rounded = np.clip(np.rint(hidden.astype(np.float64) / 0.25), -8, 7) * 0.25
    weight, bias = (p.detach().double().numpy() for p in module[1].parameters())
    part = between(model.graph, [first], [second, last])
    made = model.run_part(part, {first: given})
    np.testing.assert_array_equal(given, hidden)
    np.testing.assert_allclose(made[second], rounded @ weight.T + bias, atol=1e-5)
    error, _ = model.part_error(part, {}, {first: given}, {second: made[second] * 0, last: made[last]})
    np.testing.assert_array_equal(given, hidden)
    behind = np.clip(np.rint(made[second].astype(np.float64) / 0.25), -8, 7) * 0.25
    assert abs(error - np.square(behind).sum()) < 1e-3
