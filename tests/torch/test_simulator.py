"""What PyTorch users expect of the simulator: state_dict, train and eval, gradients, copies."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from isobit.errors import GridWarning
from isobit.graph import Tensor, Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit_torch.backend import TorchBackend
from isobit_torch.simulate.quantizers import QUANTIZERS


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y += x
        return self.act(y)


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.Sequential(Residual(8), Residual(8))
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.1), persistent=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(image - self.mean))
        return self.fc(self.drop(functional.adaptive_avg_pool2d(x, 1).flatten(1)))


@pytest.fixture
def module() -> SmallResNet:
    torch.manual_seed(0)
    network = SmallResNet()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.running_mean, std=0.1)
    return network.eval()


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((4, 3, 16, 16)).astype(np.float32) for _ in range(3)]


@pytest.fixture
def sim(module: SmallResNet, images: list[np.ndarray]) -> QuantSim:
    opened = TorchBackend().open(module, images[0][:1])
    calibrated = QuantSim.of_backend_model(opened, registry().target("default"), QuantConfig())
    calibrated.calibrate(images)
    return calibrated


def test_names_are_the_users(sim: QuantSim) -> None:
    names = [node.name for node in sim.graph.nodes]
    assert names[:4] == ["sub", "stem.0", "stem.1", "stem.2"]
    assert {"blocks.0.conv1", "blocks.0.add", "blocks.0.act", "blocks.0.act#1", "fc"} <= set(names)
    assert sim.graph.inputs == ("image",)
    assert dict(sim.graph.outputs) == {"output": "fc"}


def test_batch_is_dynamic(sim: QuantSim, module: SmallResNet) -> None:
    for size in (1, 5):
        image = torch.randn(size, 3, 16, 16)
        output = sim.run_float(image)["output"]
        np.testing.assert_allclose(output, module(image).detach().numpy(), atol=1e-5)


def test_float_state_dict_loads_strictly(sim: QuantSim, module: SmallResNet) -> None:
    own = {key for key in sim.model.state_dict() if not key.startswith(f"{QUANTIZERS}.")}
    assert own == set(module.state_dict())
    other = SmallResNet().eval()
    with pytest.warns(GridWarning, match="do not fit their grids"):
        sim.model.load_state_dict(other.state_dict(), strict=True)
    image = torch.randn(2, 3, 16, 16)
    np.testing.assert_allclose(sim.run_float(image)["output"], other(image).detach().numpy(), atol=1e-5)


def test_own_state_dict_brings_the_encodings(sim: QuantSim, tmp_path) -> None:
    before = dict(sim.encodings)
    torch.save(sim.model.state_dict(), tmp_path / "sim.pt")
    for quantizer in sim.model.quantizers.values():
        quantizer.scale.mul_(2)
    assert dict(sim.encodings) != before
    sim.model.load_state_dict(torch.load(tmp_path / "sim.pt", weights_only=True), strict=True)
    assert dict(sim.encodings) == before


def test_train_and_eval(sim: QuantSim, images: list[np.ndarray]) -> None:
    image = torch.from_numpy(images[0])
    model = sim.model
    with torch.no_grad():
        still = model(image)
        assert torch.equal(model(image), still)
        model.train()
        mean = model.state_dict()["stem.1.running_mean"].clone()
        assert not torch.equal(model(image), model(image))  # dropout
        assert not torch.equal(model.state_dict()["stem.1.running_mean"], mean)
        assert int(model.state_dict()["stem.1.num_batches_tracked"]) == 2
        model.eval()
        assert torch.equal(model(image), model(image))


def test_gradients_pass_straight_through(sim: QuantSim) -> None:
    quantizer = sim.model.quantizers["image"]
    low, high = float(quantizer.encoding.minimum), float(quantizer.encoding.maximum)
    x = torch.tensor([low * 2, low * 0.5, 0.0, high * 0.5, high * 2], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_one_training_step(sim: QuantSim, images: list[np.ndarray]) -> None:
    model = sim.model
    model.train()
    sim.trainable()
    encodings = dict(sim.encodings)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    loss = model(torch.from_numpy(images[0])).square().mean()
    loss.backward()
    optimizer.step()
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {"stem.0.weight", "fc.weight", "blocks.0.bn1.weight"} <= changed
    assert any(name.startswith(QUANTIZERS) for name in changed)
    assert dict(sim.encodings) != encodings
    model.eval()
    with torch.no_grad():
        output = model(torch.from_numpy(images[1])).numpy()
    np.testing.assert_array_equal(sim.run(images[1])["output"], output)  # no stale cache of the weights


def test_weight_cache_follows_changes(sim: QuantSim, images: list[np.ndarray]) -> None:
    first = sim.run(images[0])["output"]
    with torch.no_grad():
        dict(sim.model.named_parameters())["fc.weight"].mul_(0.5)
    assert not np.array_equal(sim.run(images[0])["output"], first)


def test_copies_and_devices(sim: QuantSim, images: list[np.ndarray]) -> None:
    image = torch.from_numpy(images[0])
    with torch.no_grad():
        expected = sim.model(image)
        copied = copy.deepcopy(sim.model)
        assert torch.equal(copied(image), expected)
        copied.get_parameter("fc.weight").zero_()
        assert torch.equal(sim.model(image), expected)
        assert torch.equal(sim.model.to("cpu")(image), expected)
        half = copy.deepcopy(sim.model).to(torch.bfloat16)
        assert half(image.to(torch.bfloat16)).dtype == torch.bfloat16
        assert all(q.scale.dtype == torch.float32 for q in half.quantizers.values())


def test_overwriting_never_shows(sim: QuantSim, images: list[np.ndarray]) -> None:
    """In place or not, the same bits; inputs of the model stay as they were."""
    image = torch.from_numpy(images[0].copy())
    used = [q for q in sim.model.quantizers.values() if q.in_place]
    assert used
    with torch.no_grad():
        fast = sim.model(image)
        assert np.array_equal(image.numpy(), images[0])
        for quantizer in used:
            quantizer.in_place = False
        assert torch.equal(sim.model(image), fast)


def test_toggling(sim: QuantSim, images: list[np.ndarray]) -> None:
    model = sim.backend_model
    quantized = sim.run(images[0])["output"]
    model.enable(list(model.encodings()), on=False)
    assert not np.array_equal(sim.run(images[0])["output"], quantized)
    model.enable(list(model.encodings()), on=True)
    assert np.array_equal(sim.run(images[0])["output"], quantized)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles(sim: QuantSim, images: list[np.ndarray]) -> None:
    image = torch.from_numpy(images[0])
    with torch.no_grad():
        compiled = torch.compile(sim.model, backend="eager", fullgraph=True)
        assert torch.equal(compiled(image), sim.model(image))


def test_export_agrees_with_onnxruntime(sim: QuantSim, images: list[np.ndarray], tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    paths = sim.export(tmp_path)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(paths["model"]), options)
    executed = session.run(["output"], {"image": images[1]})[0]
    np.testing.assert_allclose(
        executed, sim.run(images[1])["output"], atol=float(sim.encodings[Tensor("fc")].scale) * 1.01
    )


def test_sites(sim: QuantSim) -> None:
    assert Weight("fc.weight") in sim.encodings
    assert Tensor("image") in sim.encodings


def test_a_weight_written_past_autograd_is_rounded_anew(sim: QuantSim, images: list[np.ndarray]) -> None:
    image = torch.from_numpy(images[0])
    with torch.no_grad():
        before = sim.model(image)
        for parameter in sim.model.parameters():
            parameter.data.mul_(0.5)  # as weight averaging does; torch counts no version for it
        after = sim.model(image)
    fresh = sim.backend_model.copy().native
    assert not torch.equal(after, before)
    with torch.no_grad():
        assert torch.equal(after, fresh(image))
