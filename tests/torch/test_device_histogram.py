"""Counting on a device gives the histogram of counting on the host. Any device will do for that: here it is the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from isobit.errors import DataError
from isobit.graph import Tensor
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.statistics import Histogram, MinMax, Request
from isobit_torch.backend import TorchBackend
from isobit_torch.model import TorchModel
from isobit_torch.simulate import device_histogram
from isobit_torch.simulate.device_histogram import DeviceHistograms
from isobit_torch.simulate.fed_observer import FedObserver


@pytest.fixture(scope="module")
def on_device() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_histogram, "DEVICES", frozenset({"cpu"}))
        yield


def assert_equal(histogram: Histogram, expected: Histogram) -> None:
    arrays, expected_arrays = histogram.arrays(), expected.arrays()
    for name, array in expected_arrays.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].tobytes() == array.tobytes(), name


shapes = st.sampled_from([((4,), None), ((3, 40), 1), ((2, 3, 5, 7), 1), ((2, 6, 9), None), ((2, 6, 9), 2)])


@pytest.mark.usefixtures("on_device")
class TestForced:
    @settings(max_examples=60, deadline=None)
    @given(
        shapes,
        st.sampled_from([None, 10, 50, 8192]),
        st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
        st.integers(0, 1000),
    )
    def test_counts_are_those_of_the_host(
        self, shape: tuple[tuple[int, ...], int | None], limit: int | None, dtype: torch.dtype, seed: int
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        counted, expected, bounds, host = Histogram(limit), Histogram(limit), MinMax(), MinMax()
        counter = DeviceHistograms()
        for number in range(3):
            x = torch.randn(shape[0], generator=generator) * 2.0 ** (seed % 24 - 12)
            x = (x.relu() if number == 1 else -x.abs() if number == 2 else x).to(dtype)  # zeros of both signs
            x = x.transpose(0, -1).contiguous().transpose(0, -1)
            for observer in (counted, bounds):
                assert counter.take(FedObserver(observer, shape[1]), x)
            assert counter.settle() == []
            for observer in (expected, host):
                observer.update(x.float().numpy(), shape[1])
            assert counted.elements == expected.elements
        counter.finish()
        assert_equal(counted, expected)
        assert bounds.batches == host.batches

    def test_full_tables_are_emptied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(device_histogram, "_FULL", 1000)
        monkeypatch.setattr(device_histogram, "_PART", 64)
        counter, counted, expected = DeviceHistograms(), Histogram(None), Histogram(None)
        for _ in range(5):
            x = torch.randn(2, 300)
            counter.take(FedObserver(counted, None), x)
            counter.settle()
            expected.update(x.numpy())
        counter.finish()
        assert_equal(counted, expected)

    def test_others_are_not_taken(self) -> None:
        counter = DeviceHistograms()
        item = FedObserver(Histogram(), None)
        for tensor in (torch.zeros(0, 3), torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)):
            assert not counter.take(item, tensor)
        assert not counter.take(item, torch.zeros(3, dtype=torch.float64))
        assert not counter.take(item, torch.zeros(3, device="meta"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.log(self.conv(x).relu() + 0.5).mean((2, 3)))


@pytest.fixture
def model() -> TorchModel:
    torch.manual_seed(0)
    return TorchBackend().open(Net().eval(), torch.randn(2, 3, 24, 24))


@pytest.fixture
def observe(model: TorchModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Histogram | MinMax]]:
    def run(batches: list[np.ndarray], forced: bool, limit: int | None = 500) -> dict[str, Histogram | MinMax]:
        monkeypatch.setattr(device_histogram, "DEVICES", frozenset({"cpu"}) if forced else frozenset())
        observers: dict[str, Histogram | MinMax] = {name: Histogram(limit) for name in model.graph.tensors}
        requests = [Request(Tensor(name), histogram) for name, histogram in observers.items()]
        observers["bounds"] = MinMax()
        model.observe([{"x": x} for x in batches], [*requests, Request(Tensor("conv"), observers["bounds"])])
        return observers

    return run


def test_a_model_observed_on_its_device(observe: Callable[..., dict[str, Histogram | MinMax]]) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((size, 3, 24, 24)).astype(np.float32) for size in (1, 4, 2)]
    for limit in (500, None):
        counted, expected = observe(batches, True, limit), observe(batches, False, limit)
        assert counted.pop("bounds").batches == expected["bounds"].batches
        for name, histogram in counted.items():
            assert_equal(histogram, expected[name])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_batches_are_counted_from_whole_tensors(
    observe: Callable[..., dict[str, Histogram | MinMax]], bad: float
) -> None:
    """The sample misses the one bad value; the batch before and the one behind count as ever."""
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((2, 3, 24, 24)).astype(np.float32) for _ in range(3)]
    batches[1][1, 2, 3, 5] = bad
    counted, expected = observe(batches, True), observe(batches, False)
    np.testing.assert_array_equal(counted.pop("bounds").arrays()["batches"], expected["bounds"].arrays()["batches"])
    assert counted["x"].non_finite == 1
    assert counted["conv"].non_finite > 0
    for name, histogram in counted.items():
        assert_equal(histogram, expected[name])


def test_errors_name_tensor_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_histogram, "DEVICES", frozenset({"cpu"}))
    net = Net().eval()
    sim = QuantSim.of_backend_model(
        TorchBackend().open(net, torch.randn(2, 3, 8, 8)), registry().target("default"), QuantConfig()
    )
    batches = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    batches[2][0] = 3e38
    with pytest.raises(DataError, match="in batch 2"):
        sim.calibrate(batches)
    sim.calibrate(batches, ignore_non_finite=True)


def test_one_transfer_a_batch(
    observe: Callable[..., dict[str, Histogram | MinMax]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for the device between the batch's first node and its last."""
    transfers: list[tuple[int, ...]] = []
    for name in ("cpu", "item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self: torch.Tensor, *args: object, original: object = original, name: str = name) -> object:
            if name != "numpy":
                transfers.append(tuple(self.shape))
            return original(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(torch.Tensor, name, counted)
    observers = observe([np.zeros((2, 3, 24, 24), np.float32)] * 3, True)
    bounds = [shape for shape in transfers if shape == (len(observers), 2)]
    tables = [shape for shape in transfers if shape == (1 << 16,)]
    assert len(bounds) == 3
    assert len(tables) == len(observers) - 1
    assert len(transfers) == len(bounds) + len(tables)
