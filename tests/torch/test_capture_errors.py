"""Models that cannot be captured, or not quite: each message quotes the line and says what to write instead."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import isobit
import isobit_torch
from isobit.errors import ModelError
from isobit_torch.capture import errors


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x[0, 0].abs()) + 1):
            x = x + 1
        return x


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.max().item()


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sin(x.numpy()))


class Mask(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0] * 2


class Nonzero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x.nonzero()[:, 0]].sum(0)


class Repeated(nn.Module):
    """As the length regulator of FastSpeech."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.repeat_interleave(x, x[:, 0].abs().long() + 1, 0) * 2


class Formatted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        text = f"mean {x.mean():.3f}"
        return x * len(text)


@pytest.mark.parametrize(
    ("module", "line", "advice"),
    [
        (Loop, "for _ in range(int(x[0, 0].abs()) + 1):", "torch.cond"),
        (Item, "return x / x.max().item()", "keep it a tensor"),
        (Numpy, "return torch.from_numpy(np.sin(x.numpy()))", "the torch function of that name"),
        (Mask, "return x[x > 0] * 2", "torch.where(mask, x, 0)"),
        (Nonzero, "return x[x.nonzero()[:, 0]].sum(0)", "a sum over a mask"),
        (Repeated, "return torch.repeat_interleave(x, x[:, 0].abs().long() + 1, 0) * 2", "keep the size"),
        (Formatted, 'text = f"mean {x.mean():.3f}"', "outside of forward"),
    ],
)
def test_the_line_and_what_to_do(module: type[nn.Module], line: str, advice: str, capfd) -> None:
    with pytest.raises(ModelError) as caught:
        isobit.QuantSim(module().eval(), torch.randn(2, 3))
    text = str(caught.value)
    assert f"`{line}`" in text
    assert re.search(r"test_capture_errors\.py:\d+", text)
    assert advice in text
    assert capfd.readouterr().err == ""  # torch prints the whole program that it has so far


class Predicted(nn.Module):
    """As speech from text: each row is repeated as often as a layer says."""

    def __init__(self) -> None:
        super().__init__()
        self.durations, self.layer = nn.Linear(3, 1), nn.Linear(3, 8)


class ByRepeating(Predicted):
    def forward(self, x: Tensor) -> Tensor:
        counts = self.durations(x)[:, 0].abs().ceil().long()
        return self.layer(torch.repeat_interleave(x, counts, 0))


class ByALength(Predicted):
    """As VITS."""

    def forward(self, x: Tensor) -> Tensor:
        ends = self.durations(x)[:, 0].abs().ceil().cumsum(0)
        frames = torch.arange(ends[-1].long())
        before = torch.cat([torch.zeros(1), ends[:-1]])
        return self.layer(((frames[:, None] < ends) & (frames[:, None] >= before)).float() @ x)


class ByNonzero(Predicted):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[(self.durations(x)[:, 0] > 0).nonzero()[:, 0]])


@pytest.mark.parametrize("kind", [ByRepeating, ByALength, ByNonzero])
def test_the_way_around_is_one_where_a_size_has_to_follow_values(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = kind().eval(), [torch.randn(6, 3) * 3 for _ in range(3)]
    with pytest.raises(
        ModelError, match=re.escape("'model.onnx', dynamo=False), then isobit.quantize('model.onnx', data)")
    ):
        isobit.quantize(model, data, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own
        torch.onnx.export(model, (data[0],), tmp_path / "model.onnx", dynamo=False, input_names=["x"], opset_version=17)
    sim = isobit.quantize(tmp_path / "model.onnx", [{"x": batch.numpy()} for batch in data], progress=False)
    lengths = set()
    for batch in data:
        (found,) = sim.run_float({"x": batch.numpy()}).values()
        np.testing.assert_allclose(found, model(batch).detach().numpy(), rtol=1e-4, atol=1e-5)
        lengths.add(len(found))
    assert len(lengths) > 1


def test_the_way_around_says_that_numbers_of_python_stay_those_of_the_example(tmp_path: Path) -> None:
    """The tracer of torch.onnx.export writes them into the file, and such a file is wrong for other data."""

    class ByANumber(Predicted):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x[: int(self.durations(x).sum().abs()) + 1])

    with pytest.raises(ModelError, match="that a TracerWarning quotes there stays what it is for the example"):
        isobit.QuantSim(ByANumber().eval(), torch.randn(6, 3))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.onnx.export(ByANumber().eval(), (torch.randn(6, 3),), tmp_path / "model.onnx", dynamo=False)
    assert any(issubclass(warning.category, torch.jit.TracerWarning) for warning in heard)


def test_a_model_that_fails_on_its_example_is_no_capture_problem() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] != 3:
                raise ValueError("three channels, please")
            return x

    with pytest.raises(
        ModelError, match=r"Picky fails on the example inputs at .*: ValueError: three channels, please"
    ):
        isobit.QuantSim(Picky().eval(), torch.randn(2, 4))


class Stateful(nn.Module):
    """Writes into its input, a buffer and a list; prints."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        print("mean", x.mean())
        self.calls += 1
        self.seen.append(1)
        x.mul_(2)
        return x + self.calls


def test_side_effects_are_left_out_and_said(capfd) -> None:
    module, x = Stateful().eval(), torch.ones(2, 3)
    sim = isobit.QuantSim(module, x)
    assert torch.equal(x, torch.ones(2, 3))
    assert (module.seen, float(module.calls)) == ([], 0)
    assert "forward changes the buffer 'calls'; here it keeps its value" in sim.graph.notes
    for _ in range(2):
        np.testing.assert_array_equal(sim.run_float(x)["output"], np.full((2, 3), 3.0))


def test_random_calls_are_said() -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    class Jittered(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(3)

    class Dropped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5)

    for module, says in (
        (Noisy(), "draws random"),
        (Jittered(), "draws random"),
        (Dropped(), "drops in evaluation too"),
    ):
        sim = isobit.QuantSim(module.eval(), torch.randn(2, 3))
        assert any(says in note for note in sim.graph.notes), module


def test_no_line_of_the_backend_is_told_as_the_users() -> None:
    files = list(Path(isobit_torch.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    assert not [file for file in files if errors.is_users_file(str(file))]
    assert errors.is_users_file(__file__)
