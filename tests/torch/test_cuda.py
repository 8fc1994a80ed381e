"""The PyTorch backend on a CUDA device: the conformance suite there, and the bits of the core and of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.encodings import Encoding, QuantSpec
from isobit.graph import Tensor, Weight
from isobit.statistics import Histogram, MinMax, Request
from isobit.testing import interpreter
from isobit.testing.conformance import BackendConformance
from isobit.testing.conformance.quantizing import tie_values
from isobit_torch.backend import TorchBackend
from isobit_torch.model import TorchModel
from isobit_torch.reference_networks import build_torch
from isobit_torch.simulate import cuda_kernel
from isobit_torch.simulate.quantizers import Quantizer

DEVICE = torch.device("cuda", 0)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.usefixtures("exact"),
]


@pytest.fixture(scope="module")
def exact() -> Iterator[None]:
    """float32 is float32 here (convolutions use TF32 unless told), and the same every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        patch.setattr(torch.backends.cudnn, "deterministic", True)
        yield


class CudaBackend(TorchBackend):
    """Restores on the device, so that the suite compares like with like."""

    def restore(self, state: bytes) -> TorchModel:
        model = super().restore(state)
        model.native.to(DEVICE)
        return model


class TestTorchOnCuda(BackendConformance):
    @pytest.fixture
    def backend(self):
        return CudaBackend()

    @pytest.fixture
    def build(self):
        return lambda network: build_torch(network).to(DEVICE)


def bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy().view(np.uint32)


def test_the_kernel_is_used() -> None:
    pytest.importorskip("triton")
    assert cuda_kernel.usable(DEVICE)


@pytest.mark.parametrize("count", range(2, 17))
@pytest.mark.parametrize("kind", ["int", "uint"])
def test_fake_quantize_bits(kind: str, count: int) -> None:
    """The kernel, in place and not; torch's operations; what Inductor compiles."""
    spec, rng = QuantSpec.parse(f"{kind}{count}"), np.random.default_rng(count)
    for seed in range(4):
        zero = 0 if spec.symmetric else int(rng.integers(spec.q_min, spec.q_max + 1))
        encoding = Encoding.of(spec, rng.uniform(1, 2) * 2.0 ** int(rng.integers(-126, 20)), zero)
        x = tie_values(encoding, seed)
        expected = encoding.fake_quantize(x).view(np.uint32)
        quantizer, on_device = Quantizer(encoding).to(DEVICE), torch.from_numpy(x).to(DEVICE)
        with torch.no_grad():
            np.testing.assert_array_equal(bits(quantizer(on_device)), expected)
            np.testing.assert_array_equal(bits(on_device), x.view(np.uint32))
            np.testing.assert_array_equal(bits(quantizer._expression(on_device)), expected)
            quantizer.in_place = True
            np.testing.assert_array_equal(bits(quantizer(on_device.clone())), expected)


def test_fake_quantize_bits_per_channel() -> None:
    rng = np.random.default_rng(0)
    spec = QuantSpec.parse("int8 per-channel asymmetric")
    scale, zero = rng.uniform(0.001, 3, 33).astype(np.float32), rng.integers(-128, 128, 33)
    encoding = Encoding.of(spec, scale, zero, 1)
    x = (rng.standard_normal((5, 33, 17, 19)) * 50).astype(np.float32)
    quantizer, plain = Quantizer(encoding).to(DEVICE), torch.from_numpy(x).to(DEVICE)
    rounded = encoding.fake_quantize(x)
    with torch.no_grad():
        for view in (plain, plain.to(memory_format=torch.channels_last), plain[:, :, ::2]):
            expected = rounded if view.shape == plain.shape else rounded[:, :, ::2]
            np.testing.assert_array_equal(bits(quantizer(view)), np.ascontiguousarray(expected).view(np.uint32))


def test_halves_are_those_of_torch() -> None:
    encoding = Encoding.of("uint8", 0.1, 100)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.from_numpy(tie_values(encoding, 0)).clamp(-6e4, 6e4).to(dtype)
        with torch.no_grad():
            rounded = Quantizer(encoding).to(DEVICE)(x.to(DEVICE))
            expected = Quantizer(encoding)._expression(x)
        assert rounded.dtype == dtype
        assert torch.equal(rounded.cpu(), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Inductor's own
def test_compiled_bits() -> None:
    """Inductor divides approximately; it does not see into the kernel."""
    pytest.importorskip("triton")
    encoding = Encoding.of("int8", 0.1)
    quantizer = Quantizer(encoding).to(DEVICE)
    compiled = torch.compile(lambda x: quantizer(x * 1.0) + 1.0)
    x = tie_values(encoding, 0)
    with torch.no_grad():
        result = compiled(torch.from_numpy(x).to(DEVICE))
    np.testing.assert_array_equal(result.cpu().numpy(), encoding.fake_quantize(x) + np.float32(1))


class Whole(nn.Module):
    """Small whole weights: every sum is exact, whatever the order in which a device adds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8 * 7 * 7, 5)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -8, 8).data.round_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(x).relu().flatten(1))


def test_a_whole_simulator_has_the_cores_integers() -> None:
    torch.manual_seed(0)
    model = TorchBackend().open(Whole().eval().to(DEVICE), np.zeros((2, 3, 15, 15), np.float32))
    encodings = {Tensor(name): Encoding.of("uint8", 2.0**-4, 100) for name in model.graph.inputs}
    encodings[Tensor("conv")] = Encoding.of("int8", 2.0**2)
    encodings[Weight("conv.weight")] = Encoding.of("int4", 1.0)
    encodings[Tensor(model.graph.outputs["output"])] = Encoding.of("int8", 2.0**5)
    model.set_quantizers(encodings)
    x = {"x": np.random.default_rng(0).uniform(-9, 9, (6, 3, 15, 15)).astype(np.float32)}
    values = interpreter.interpret(model.graph, model.weight, x, encodings)
    np.testing.assert_array_equal(model.run(x)["output"], values[model.graph.outputs["output"]].astype(np.float32))


class Exact(nn.Module):
    """Operations that have the same bits everywhere."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(x)
        return nn.functional.max_pool2d(y, 2), x + y


@pytest.mark.parametrize("bad", [None, np.nan, np.inf])
def test_histograms_are_those_of_the_cpu(bad: float | None) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((size, 12, 40, 42)).astype(np.float32) for size in (3, 1, 5)]
    if bad is not None:
        batches[1][0, 3, 7, 7] = bad
    tables = []
    for device in (torch.device("cpu"), DEVICE):
        module = Exact()
        module.register_buffer("where", torch.zeros(1))
        model = TorchBackend().open(module.to(device), torch.zeros(2, 12, 40, 42))
        seen = {(name, limit): Histogram(limit) for name in model.graph.tensors for limit in (300, None)}
        bounds = {name: MinMax() for name in model.graph.tensors}
        requests = [Request(Tensor(name), histogram) for (name, _), histogram in seen.items()]
        requests += [Request(Tensor(name), observer) for name, observer in bounds.items()]
        model.observe([{"x": batch} for batch in batches], requests)
        arrays = [histogram.arrays() for histogram in seen.values()] + [b.arrays() for b in bounds.values()]
        tables.append([array.tobytes() for entry in arrays for array in entry.values()])
    assert tables[0] == tables[1]


def test_from_model_to_file(tmp_path) -> None:
    """A model on CUDA with CPU data, through calibration, export, copy, and back to the CPU."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.append(nn.Linear(8, 4)).eval()
    data = [np.random.default_rng(i).standard_normal((4, 3, 12, 12)).astype(np.float32) for i in range(3)]
    cpu = isobit.quantize(module, data)
    cuda = isobit.quantize(module.to(DEVICE), data)
    assert cuda.model.device() == DEVICE
    assert {q.scale.device for q in cuda.model.quantizers.values()} == {DEVICE}
    assert set(cuda.encodings) == set(cpu.encodings)
    np.testing.assert_allclose(cuda.run_float(data[0])["output"], cpu.run_float(data[0])["output"], atol=1e-5)
    on_cpu, names = cpu.backend_model.to_onnx()
    on_cuda, cuda_names = cuda.backend_model.to_onnx()
    assert names == cuda_names
    assert [node.op_type for node in on_cuda.graph.node] == [node.op_type for node in on_cpu.graph.node]
    assert set(cuda.export(tmp_path)) == {"model", "encodings", "summary"}
    copied = cuda.backend_model.copy()
    assert copied.native.device() == DEVICE
    np.testing.assert_array_equal(copied.run({"input": data[0]})["output"], cuda.run(data[0])["output"])
    cuda.model.to("cpu")
    cuda.calibrate(data)
    with torch.no_grad():
        assert cuda.model(torch.from_numpy(data[0])).device.type == "cpu"
