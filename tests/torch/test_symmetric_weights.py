"""A weight that is its own transpose: its values do not tell how a file holds it, and its scales are of one axis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import isobit

SIZE = 16


class Product(nn.Module):
    """A constant on the right of a product, as it is or turned around."""

    def __init__(self, matrix: Tensor, turned: bool) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.matrix.t() if self.turned else self.matrix)


def layer(matrix: Tensor) -> nn.Module:
    linear = nn.Linear(SIZE, SIZE)
    with torch.no_grad():
        linear.weight.copy_(matrix)
    return linear


def cosines() -> Tensor:
    places = torch.arange(SIZE) + 0.5
    return torch.cos(torch.outer(places, places) * torch.pi / SIZE)


def rescaled() -> Tensor:
    """Rows and columns of very different size: the scales of one are not those of the other."""
    lengths = torch.logspace(0, -2, SIZE)
    matrix = torch.randn(SIZE, SIZE) * torch.outer(lengths, lengths)
    return matrix + matrix.t()


@pytest.mark.parametrize("matrix", [cosines, rescaled, lambda: torch.eye(SIZE)])
@pytest.mark.parametrize(
    "make",
    [layer, lambda matrix: Product(matrix, turned=False), lambda matrix: Product(matrix, turned=True)],
    ids=["layer", "as is", "turned"],
)
def test_the_file_rounds_it_along_the_axis_of_the_simulator(
    make: Callable[[Tensor], nn.Module], matrix: Callable[[], Tensor], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(make(matrix()), nn.ReLU(), nn.Linear(SIZE, 3)).eval()
    data = [torch.randn(4, 6, SIZE) for _ in range(2)]
    sim = isobit.QuantSim(module, data[0])
    sim.calibrate(data, "minmax", progress=False)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(sim.export(tmp_path)["model"]), options)
    (found,) = session.run(None, {"input": data[0].numpy()})
    np.testing.assert_allclose(found, sim.run(data[0])["output"], rtol=1e-5, atol=1e-6)
