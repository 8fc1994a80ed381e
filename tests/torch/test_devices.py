"""Where models live. The "meta" device stands in for a GPU: tensors of two devices do not mix there either."""

from __future__ import annotations

import copy
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from isobit.encodings import Encoding
from isobit.errors import ModelError
from isobit.graph import Tensor, Weight
from isobit_torch.backend import TorchBackend
from isobit_torch.capture.capture import _moved
from isobit_torch.model import TorchModel
from isobit_torch.program.devices import follow, require_one_device
from isobit_torch.program.signature import example_calls
from isobit_torch.simulate.quantizers import Quantizer, WeightQuantizer
from isobit_torch.simulate.simulator import Simulator


class Places(nn.Module):
    """Makes tensors on its own device in every way that people write."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.table = torch.arange(6.0)
        self.register_buffer("shift", torch.ones(6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]  # what depends on it alone is made anew for each batch
        position = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        place = torch.arange(rows, device=x.device, dtype=x.dtype)[:, None] * 0
        mask = torch.zeros(rows, 6, device=x.device) + torch.ones_like(x)
        y = self.fc(x + position + place) * mask + self.table.to(x.device) + torch.tensor(2.0, device=x.device)
        y = y + torch.ones(rows, 1, device=x.device) + x.new_zeros(rows, 6)
        return y + self.shift + torch.full((rows, 6), 0.5).to(y) + x.new_zeros(6)


@pytest.fixture
def model() -> TorchModel:
    torch.manual_seed(0)
    opened = TorchBackend().open(Places().eval(), torch.randn(2, 6))
    weight = Encoding.of("int8 per-channel", np.full(6, 0.01), np.zeros(6, int), 0)
    opened.set_quantizers({Tensor("x"): Encoding.of("uint8", 0.05, 128), Weight("fc.weight"): weight})
    return opened


def test_constants_of_the_code_move_with_the_model(model: TorchModel) -> None:
    native, x = model.native, torch.randn(3, 6)
    with torch.no_grad():
        expected = native(x)
        copied = copy.deepcopy(native)
        native.to("meta")
        assert native(x.to("meta")).device.type == "meta"
        assert torch.equal(copied(x), expected)
    devices = {value for node in model.program.graph.nodes for value in node.kwargs.values() if _is_device(value)}
    assert devices == {torch.device("meta")}


def test_a_moved_simulator_is_rebuilt_where_it_is(model: TorchModel) -> None:
    model.native.to("meta")
    model.set_quantizers({Tensor("fc"): Encoding.of("int8", 0.1), Tensor("x"): Encoding.of("int8", 0.2)})
    assert {quantizer.scale.device.type for quantizer in model.native.quantizers.values()} == {"meta"}
    with torch.no_grad():
        assert model.native(torch.zeros(3, 6, device="meta")).shape == (3, 6)


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device)


def test_other_devices_stay(model: TorchModel) -> None:
    graph = model.program.graph
    assert not follow(graph, torch.device("cuda", 0), torch.device("cpu"))
    assert follow(graph, torch.device("cpu"), torch.device("cuda", 1))
    assert not follow(graph, torch.device("cuda", 0), torch.device("cpu"))
    assert follow(graph, torch.device("cuda", 1), torch.device("cpu"))


def test_a_state_from_another_device(model: TorchModel) -> None:
    """What a CUDA model wrote is restored where there is no GPU."""
    x = {"x": np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)}
    expected = model.run(x)["output"]
    changed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(model.state())) as before, zipfile.ZipFile(changed, "w") as after:
        for name in before.namelist():
            data = before.read(name)
            if name == "graph.json":
                text = data.decode().replace('{"device": "cpu"}', '{"device": "cuda:0"}')
                header = json.loads(text)
                assert text.count("cuda:0") >= 5
                assert header["device"] == "cpu"
                data = json.dumps({**header, "device": "cuda:0"}).encode()
            after.writestr(name, data)
    restored = TorchBackend().restore(changed.getvalue())
    np.testing.assert_array_equal(restored.run(x)["output"], expected)


def test_the_example_goes_where_the_model_is() -> None:
    call = example_calls(Places(), {"x": np.zeros((2, 6), np.float32)})[0][0]
    assert _moved(call, torch.device("meta")).kwargs["x"].device.type == "meta"


def test_exports_are_made_on_the_cpu(model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a model on another device gives the same file."""
    expected, names = model.to_onnx()
    monkeypatch.setattr(Simulator, "device", lambda self: torch.device("cuda", 0))
    exported, exported_names = model.to_onnx()
    assert exported_names == names
    assert exported.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def test_models_that_are_nowhere_or_everywhere() -> None:
    with pytest.raises(ModelError, match=r"'fc.*' is on the meta device.*load"):
        TorchBackend().open(Places().to("meta"), torch.randn(2, 6))

    class Held(nn.Module):
        """`require_one_device` asks for names and devices alone."""

        def named_parameters(self, *args, **kwargs):
            yield from (("first", _On("cuda:0")), ("second", _On("cuda:1")))

    with pytest.raises(ModelError, match=r"'first' on cuda:0, 'second' on cuda:1.*move it to one"):
        require_one_device(Held())
    module = Places()
    module.register_buffer("count", torch.tensor(0, device="meta"))  # a number, which mixes with all
    assert require_one_device(module) == torch.device("cpu")


class _On:
    def __init__(self, device: str) -> None:
        self.device, self.ndim = torch.device(device), 1


def test_a_new_grid_stays_on_the_device() -> None:
    quantizer = Quantizer(Encoding.of("int8", 0.1)).to("meta")
    quantizer.set(Encoding.of("int4 per-channel", [0.1, 0.2], [0, 0], 0))
    assert quantizer.scale.device.type == quantizer.zero_point.device.type == "meta"
    assert quantizer.scale.shape == (2,)


def test_the_cache_of_a_weight_is_for_one_device() -> None:
    quantizer, weight = WeightQuantizer(Encoding.of("int8", 0.1)), nn.Parameter(torch.randn(4))
    holder = nn.Module()
    holder.weight, holder.quantizer = weight, quantizer
    with torch.no_grad():
        assert quantizer(holder.weight).device.type == "cpu"
        holder.to("meta")
        assert quantizer(holder.weight).device.type == "meta"
