"""Models that peft has wrapped: placement, training on a quantized base, exchange of adapters, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import isobit
from isobit.errors import DataError, IsobitWarning, ModelError
from isobit.graph import find_adapters
from isobit.quantsim import QuantSim
from isobit.techniques import (
    BalanceChannels,
    CorrectBias,
    EqualizeCrossLayers,
    FoldBatchNorms,
    SmoothQuant,
)

peft = pytest.importorskip("peft")
load_file = pytest.importorskip("safetensors.numpy").load_file


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(x)))


TARGETS = ["up", "down"]


def wrapped(seed: int = 0, **settings: object) -> nn.Module:
    """Two adapters of other ranks and factors, the second with values."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        Net(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, lora_dropout=0.1, **settings)
    )
    model.add_adapter("second", peft.LoraConfig(r=2, lora_alpha=6, target_modules=TARGETS))
    for name, parameter in model.named_parameters():
        if "lora_B.second" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


X = torch.randn(64, 16, generator=torch.Generator().manual_seed(5))
Y = torch.randn(64, 8, generator=torch.Generator().manual_seed(6))


def quantized(model: nn.Module, **settings: object) -> QuantSim:
    sim = QuantSim(model, X, **{"weights": "int4", "activations": "int8", **settings})
    sim.calibrate([X], progress=False)
    return sim


def train(sim: QuantSim, steps: int = 60, mode: str = "learned", **modes: str) -> float:
    model = sim.trainable(mode, **modes)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(X), Y)
        loss.backward()
        optimizer.step()
    model.eval()
    return float(loss.detach())


def output(outputs: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(outputs.values()))


def constants(sim: QuantSim) -> dict[str, object]:
    return {str(p.site): sim.encodings[p.site] for p in sim.plan.of_kind("weight")}


def test_the_base_is_quantized_and_adapters_are_left() -> None:
    """No technique changes what an adapter holds, though the factor behind it could be folded."""
    model = wrapped()
    sim = QuantSim(model, X, weights="int4", activations="int8")
    adapters = find_adapters(sim.graph)
    assert [adapter.base.name for adapter in adapters] == [f"base_model.model.{name}.base_layer" for name in TARGETS]
    steps = [FoldBatchNorms(), EqualizeCrossLayers(), SmoothQuant(), BalanceChannels(gain=0), CorrectBias()]
    sim.apply(*steps, data=[X] * 6, progress=False)
    sim.calibrate([X])
    assert {placement.site.name for placement in sim.plan.of_kind("weight")} == {a.base.inputs[1] for a in adapters}
    for adapter in find_adapters(sim.graph):
        assert adapter.down.input(2) is None
        assert adapter.up.input(2) is None
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            assert torch.equal(sim.model.get_parameter(name), parameter), name


def test_adapters_train_on_an_int4_base(tmp_path) -> None:
    model = wrapped()
    sim = quantized(model)
    before, grids = {n: p.clone() for n, p in sim.model.named_parameters()}, constants(sim)
    start = nn.functional.mse_loss(sim.model(X), Y).item()
    assert train(sim) < 0.8 * start
    moved = {name for name, old in before.items() if not torch.equal(sim.model.get_parameter(name), old)}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    assert constants(sim) == grids  # the base is one for all adapters

    onnxruntime = pytest.importorskip("onnxruntime")
    path = sim.export(tmp_path)["model"]
    session = onnxruntime.InferenceSession(str(path))
    written = session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]
    expected = output(sim.run(X))
    assert np.square(written - expected).sum() < 1e-4 * np.square(expected).sum()  # on some processors it is 0


def test_a_saved_adapter_is_peft_s(tmp_path) -> None:
    """Against peft itself, which reads the folder, and in another simulator of the same base."""
    sim = quantized(wrapped())
    train(sim)
    paths = sim.adapters.save(tmp_path)
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(Net(), str(tmp_path)).eval()
    np.testing.assert_allclose(output(sim.run_float(X)), loaded(X).detach().numpy(), atol=1e-6)

    other = quantized(wrapped())
    other.adapters.load(tmp_path)
    np.testing.assert_array_equal(output(other.run(X)), output(sim.run(X)))


def test_peft_s_own_folder_is_loaded(tmp_path) -> None:
    """A file of another factor than the adapter that was opened."""
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=4, lora_alpha=3, target_modules=TARGETS, use_rslora=True))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    sim = quantized(wrapped())
    sim.adapters.load(tmp_path)
    np.testing.assert_allclose(output(sim.run_float(X)), model.eval()(X).detach().numpy(), atol=1e-5)


def test_adapters_change_places_without_calibration(tmp_path) -> None:
    model = wrapped()
    sim = quantized(model)
    native, grids = sim.model, constants(sim)
    train(sim)
    trained = output(sim.run(X))
    sim.adapters.use("second")
    assert sim.adapters.names == ("default", "second")
    assert sim.adapters.active == "second"
    assert sim.model is native
    assert constants(sim) == grids
    assert {n for n, p in native.named_parameters() if p.requires_grad} == {
        n for n, _ in native.named_parameters() if ".second." in n
    }
    model.set_adapter("second")
    np.testing.assert_allclose(output(sim.run_float(X)), model.eval()(X).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(output(sim.run(X)), model(X).detach().numpy(), atol=0.5)
    assert train(sim, 5) > 0
    sim.adapters.save(tmp_path, "default")
    assert load_file(tmp_path / "adapter_model.safetensors")["base_model.model.up.lora_A.weight"].shape == (4, 16)
    sim.adapters.use("default")
    np.testing.assert_array_equal(output(sim.run(X)), trained)


def test_an_adapter_has_a_format_of_its_own(tmp_path) -> None:
    """Its weights alone; they are rounded anew when another adapter comes."""
    sim = quantized(wrapped(), overrides={"*.lora_*.weight": "int8"})
    with pytest.raises(ModelError, match=r"lora_B\.default\.weight' of an adapter is 0"):
        sim.trainable()
    sim.adapters.use("second")
    sites = {str(placement.site): placement.spec.type_name for placement in sim.plan.placements.values()}
    assert sites["base_model.model.up.lora_B.second.weight"] == "int8"
    assert "base_model.model.up.lora_A.second" not in sites
    start = nn.functional.mse_loss(sim.model(X), Y).item()
    assert train(sim) < 0.9 * start
    sim.adapters.save(tmp_path)
    other = quantized(wrapped(), overrides={"*.lora_*.weight": "int8"})
    other.adapters.load(tmp_path, "second")
    other.adapters.use("second")
    np.testing.assert_array_equal(output(other.run(X)), output(sim.run(X)))


def test_merging_comes_before_quantizing() -> None:
    model = wrapped()
    model.set_adapter("second")
    merged = model.merge_and_unload()
    sim = quantized(merged)
    assert sim.adapters.names == ()
    assert sim.adapters.active is None
    assert find_adapters(sim.graph) == []


def test_heads_that_train_with_an_adapter_go_with_it(tmp_path) -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["up"], modules_to_save=["down"]))
    sim = isobit.quantize(
        model, X, progress=False, method="minmax"
    )  # corrects the bias of the head, which no file of it shall have
    train(sim, 10)
    sim.adapters.save(tmp_path)
    expected = output(sim.run(X))
    sim.adapters.load(tmp_path)
    np.testing.assert_allclose(output(sim.run(X)), expected, atol=1e-6)
    torch.manual_seed(0)
    loaded = peft.PeftModel.from_pretrained(Net(), str(tmp_path)).eval()
    np.testing.assert_allclose(output(sim.run_float(X)), loaded(X).detach().numpy(), atol=1e-5)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


def test_convolutions_have_adapters_too() -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(Images().eval(), peft.LoraConfig(r=2, target_modules=["first", "last"])).eval()
    sim = QuantSim(model, torch.randn(4, 3, 6, 6))
    assert len(find_adapters(sim.graph)) == 2
    assert len(sim.plan.of_kind("weight")) == 2


def test_an_adapter_of_full_rank_says_that_it_must_be_calibrated() -> None:
    """Two convolutions beside a third are an adapter where their rank is low, and else layers as others are."""
    model = peft.get_peft_model(Images().eval(), peft.LoraConfig(r=2, target_modules=["first"]))
    model.add_adapter("full", peft.LoraConfig(r=3, target_modules=["first"]))
    images = torch.randn(4, 3, 6, 6)
    sim = QuantSim(model.eval(), images)
    sim.calibrate([images], progress=False)
    with pytest.warns(
        IsobitWarning, match="have no encoding beside the adapter 'full'.*calibrate again.*likely not below"
    ):
        sim.adapters.use("full")
    sim.calibrate([images], progress=False)


def test_adapters_for_another_base_are_refused(tmp_path) -> None:
    sim = quantized(wrapped())
    sim.adapters.save(tmp_path)
    before = output(sim.run(X))
    with pytest.raises(ModelError, match="beside another base, whose weights differ"):
        quantized(wrapped(seed=1)).adapters.load(tmp_path)
    with pytest.raises(ModelError, match=r"another rank: .* \(4, 32\), and the model's has \(2, 32\)"):
        sim.adapters.load(tmp_path, "second")
    torch.manual_seed(0)
    single = peft.get_peft_model(Net(), peft.LoraConfig(r=4, target_modules=["up"]))
    with pytest.raises(ModelError, match="other layers of it: 2 have no place"):
        quantized(single).adapters.load(tmp_path)
    with pytest.raises(ModelError, match=r"no adapter 'seconds'.*did you mean 'second'"):
        sim.adapters.use("seconds")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        sim.adapters.load(tmp_path / "nowhere")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no adapter that can be read"):
        sim.adapters.load(tmp_path)
    np.testing.assert_array_equal(output(sim.run(X)), before)


def test_what_cannot_be_exchanged_says_so() -> None:
    model = wrapped()
    model.add_adapter("wide", peft.LoraConfig(r=2, target_modules=["up"]))
    sim = quantized(model)
    with pytest.raises(ModelError, match="'wide' changes other layers than 'default'"):
        sim.adapters.use("wide")
    model.base_model.set_adapter(["default", "second"])
    both = quantized(model)
    assert len(find_adapters(both.graph)) == 4
    with pytest.raises(ModelError, match="2 adapters at once"):
        both.adapters.use("second")
    with pytest.raises(ModelError, match="the model has no adapters"):
        quantized(Net()).adapters.use("default")


def test_adapters_that_are_no_lora_are_named() -> None:
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["up"], use_dora=True))
    sim = QuantSim(model, X)
    assert any("is DoRA" in note for note in sim.graph.notes)
    assert sim.adapters.names == ()
    refused = peft.get_peft_model(Net(), peft.ShiraConfig(r=2, target_modules=["up"]))
    with pytest.raises(ModelError, match=r"is SHIRA.*merge_and_unload.*cannot be captured"):
        QuantSim(refused, X)


def test_training_that_cannot_go_well_says_why(tmp_path) -> None:
    model = wrapped()
    model.save_pretrained(str(tmp_path), selected_adapters=["default"])
    torch.manual_seed(0)
    frozen = quantized(peft.PeftModel.from_pretrained(Net(), str(Path(tmp_path))))
    with pytest.raises(ModelError, match="is_trainable=True"):
        frozen.trainable("frozen")
    sim = quantized(model)
    native = sim.trainable("frozen").train()
    for _ in range(64):
        nn.functional.mse_loss(native(X), Y).backward()
    with pytest.warns(UserWarning, match="have changed no weight"):  # an optimizer of the float model's parameters
        native(X)
    adapter = native.get_parameter("base_model.model.up.lora_A.default.weight")
    with torch.no_grad():
        adapter[0, 0] = float("nan")
    with pytest.raises((ModelError, DataError), match=r"pass 66 of training: '.*lora_A\.default\.weight' holds NaN"):
        native(X)
