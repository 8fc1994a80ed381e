"""``.pt2`` and TorchScript files: read by a process that has torch alone, and what their numbers are."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from isobit.encodings import Encoding
from isobit.errors import ModelError, OutputError
from isobit.graph import Tensor, Weight
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit_torch.backend import TorchBackend

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit, which TorchScript is

Q = torch.ops.quantized_decomposed

#: Runs a file on the inputs in an .npz, in a process that has torch alone.
READER = """
import sys, numpy as np, torch
for name in ("isobit", "isobit_torch", "isobit_onnx", "numba", "onnx", "transformers"):
    sys.modules[name] = None
model, feeds, results = sys.argv[1:]
if model.endswith(".pt2"):
    import torch.ao.quantization.fx._decomposed
    run = torch.export.load(model).module()
else:
    run = torch.jit.load(model)
with torch.no_grad():
    outputs = run(*(torch.from_numpy(array) for array in np.load(feeds).values()))
flat = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, (tuple, list)) else [outputs]
names = outputs if isinstance(outputs, dict) else range(len(flat))
np.savez(results, **{str(name): value.numpy() for name, value in zip(names, flat)})
"""


def elsewhere(path: Path, inputs: list[torch.Tensor]) -> dict[str, np.ndarray]:
    folder = path.parent
    np.savez(folder / "feeds.npz", **{f"arr{i:02d}": x.numpy() for i, x in enumerate(inputs)})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READER, str(path), str(folder / "feeds.npz"), str(folder / "out.npz")],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


def simulator(module: nn.Module, data: list[Any], config: QuantConfig | None = None) -> QuantSim:
    opened = TorchBackend().open(module.eval(), data[0])
    sim = QuantSim.of_backend_model(opened, registry().target("default"), config or QuantConfig())
    sim.calibrate(data)
    return sim


class Mixed(nn.Module):
    """Convolutions of both kinds, a tied weight, a batch norm and a size in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.grouped = nn.ConvTranspose2d(6, 6, 2, groups=2)
        self.fc, self.tied = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
        self.tied.weight = self.fc.weight

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.norm(self.conv(image)))
        x = self.grouped(self.up(x)).mean((2, 3))
        return self.tied(torch.tanh(self.fc(x))).view(image.shape[0], 2, 3)


@pytest.fixture
def images() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(4, 3, 8, 8) for _ in range(2)]


@pytest.fixture
def sim(images: list[torch.Tensor]) -> QuantSim:
    return simulator(Mixed(), images)


# --- .pt2 ------------------------------------------------------------------------------------------------------------


def test_pt2_elsewhere(sim: QuantSim, images: list[torch.Tensor], tmp_path: Path) -> None:
    paths = sim.export(tmp_path, formats="pt2")
    assert {key: path.name for key, path in paths.items()} == {
        "pt2": "model.pt2", "encodings": "encodings.json", "summary": "summary.txt"
    }  # fmt: skip
    assert "model.pt2" in paths["summary"].read_text()
    many = torch.cat([*images, images[0][:3]])  # another batch size
    result = elsewhere(paths["pt2"], [many])["0"]
    expected = sim.run(many)["output"]
    assert result.shape == (11, 2, 3)
    step = float(sim.encodings[Tensor("view")].scale)
    assert np.abs(result - expected).max() <= 2 * step
    assert np.mean(result == expected) > 0.9


def test_pt2_constants_are_the_integers(sim: QuantSim, tmp_path: Path) -> None:
    """Under the user's names, exactly those of `isobit.encodings`; a dequantize call is the only reader."""
    program = torch.export.load(sim.export(tmp_path, formats="pt2")["pt2"])
    state = program.state_dict
    for name in ("conv.weight", "conv.bias", "up.weight", "fc.weight", "tied.bias"):
        encoding, float_weight = sim.encodings[Weight(name)], sim.backend_model.weight(name)
        integers = encoding.quantize(float_weight)
        stored = state[name].numpy()
        assert stored.dtype == (np.int32 if name.endswith("bias") else np.int8)
        if name == "up.weight":  # (in, out, h, w) in torch, with the channels along axis 1
            integers = integers.transpose(1, 0, 2, 3)
        np.testing.assert_array_equal(stored, integers)
        np.testing.assert_array_equal(state[f"{name}_scale"].numpy().reshape(-1), encoding.scale)
    assert not [name for name, value in state.items() if value.ndim > 1 and value.is_floating_point()]
    assert "tied.weight" not in state  # tied, and stored once
    constants = {spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name != "USER_INPUT"}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in constants and node.meta["val"].dtype != torch.float32:
            assert {user.target for user in node.users} <= {
                Q.dequantize_per_channel.default, Q.dequantize_per_tensor.default
            }  # fmt: skip


def test_pt2_dequantized_weights_are_exact(images: list[torch.Tensor], tmp_path: Path) -> None:
    """With the activations left in float, the file and the simulator agree bit for bit."""

    class Weights(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 5, bias=False)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(image).mean((2, 3)))

    sim = simulator(Weights(), images)
    model = sim.backend_model.inner
    model.set_quantizers({site: None for site in model.encodings() if isinstance(site, Tensor)})
    model.write_native("pt2", model.encodings(), tmp_path / "weights.pt2")
    with torch.no_grad():
        output = torch.export.load(tmp_path / "weights.pt2").module()(images[0])
        assert torch.equal(output, sim.model(images[0]))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_pt2_activations_differ_at_ties_alone(bits: int) -> None:
    """How far torch's multiplication by the inverse is from the division, counted on values and on ties."""
    rng = np.random.default_rng(bits)
    scales = rng.uniform(0.001, 0.1, 50).astype(np.float32)
    random = ties = 0
    for scale in scales:
        encoding = Encoding.of(f"int{bits}", scale)
        levels = np.unique(np.linspace(encoding.spec.q_min, encoding.spec.q_max - 1, 255).round())
        values = {
            "random": rng.uniform(float(encoding.minimum), float(encoding.maximum), 2000).astype(np.float32),
            "ties": ((levels + 0.5) * scale).astype(np.float32),
        }
        grid = (float(scale), 0, encoding.spec.q_min, encoding.spec.q_max, torch.int32)
        for kind, x in values.items():
            torch_integers = Q.quantize_per_tensor(torch.from_numpy(x), *grid).numpy()
            integers = encoding.quantize(x)
            assert np.abs(torch_integers - integers).max() <= 1
            wrong = torch_integers != integers
            position = np.abs(x[wrong].astype(np.float64) / scale)
            assert np.all(np.abs(position - np.floor(position) - 0.5) < 2.0 ** (bits - 23))  # beside a tie
            if kind == "random":
                random += int(wrong.sum())
            else:
                ties += int(wrong.sum())
    assert random <= 50 * 2000 * 2.0 ** (bits - 21)
    assert ties > 0


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        ("int4", torch.int8), ("uint8 per-channel", torch.uint8), ("uint3", torch.int8), ("int16", torch.int16),
        ("uint16", torch.int32), ("int4 block=2", torch.int8), ("int4 lpbq=2", torch.int8),
        ("bfloat16", torch.bfloat16),
    ],
)  # fmt: skip
def test_pt2_weight_formats(weights: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Each format dequantizes to the simulator's own weight."""
    torch.manual_seed(0)
    data = [torch.randn(5, 8)]
    sim = simulator(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), data, QuantConfig(weights=weights))
    program = torch.export.load(sim.export(tmp_path, formats="pt2")["pt2"])
    assert program.state_dict["0.weight"].dtype == dtype
    (node,) = (n for n in program.graph.nodes if n.op == "placeholder" and n.name.endswith("0_weight"))
    (call,) = node.users
    arguments = pytree.tree_map_only(torch.fx.Node, lambda n: _value(program, n), call.args)
    encoding = sim.encodings[Weight("0.weight")]
    expected = encoding.fake_quantize(sim.backend_model.weight("0.weight"))
    np.testing.assert_array_equal(call.target(*arguments, **call.kwargs).numpy(), expected)


def _value(program: torch.export.ExportedProgram, node: torch.fx.Node) -> torch.Tensor:
    names: Mapping[str, str] = {
        **program.graph_signature.inputs_to_buffers,
        **program.graph_signature.inputs_to_parameters,
    }
    return program.state_dict[names[node.name]].detach()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QuantConfig(weights="float8e4m3"), ["'0.weight'", "float8e4m3"]),
        (QuantConfig(activations="float8e4m3"), ["'input'", "float8e4m3"]),
    ],
)
def test_pt2_refuses_what_it_cannot_say(config: QuantConfig, words: list[str], tmp_path: Path) -> None:
    sim = simulator(nn.Sequential(nn.Linear(8, 6), nn.ReLU()), [torch.randn(5, 8)], config)
    with pytest.raises(ModelError) as caught:
        sim.export(tmp_path / "out", formats="pt2")
    for word in (*words, "quantized_decomposed", "onnx"):
        assert word in str(caught.value)
    assert not (tmp_path / "out").exists()  # nothing half-written


def test_pt2_refuses_blocks_of_a_convolution(images: list[torch.Tensor], tmp_path: Path) -> None:
    sim = simulator(nn.Sequential(nn.Conv2d(3, 4, 3)), images)
    site = Weight("0.weight")
    shape = sim.backend_model.weight("0.weight").shape
    blocks = Encoding.of("int4 block=1", np.full((shape[0], 3, 1, 1), 0.1), axis=1)
    with pytest.raises(ModelError, match=r"'0\.weight' is int4 symmetric block=1"):
        sim.backend_model.inner.write_native("pt2", type(sim.encodings)({site: blocks}), tmp_path / "model.pt2")


def test_pt2_refuses_other_floats(sim: QuantSim, tmp_path: Path) -> None:
    sim.model.half()
    with pytest.raises(ModelError, match=r"float16.*sim\.model\.float"):
        sim.export(tmp_path / "out", formats="pt2")


def test_pt2_holds_no_pickle(sim: QuantSim, tmp_path: Path) -> None:
    """Nothing in the archive is a pickle, so loading runs no code."""
    with zipfile.ZipFile(sim.export(tmp_path, formats="pt2")["pt2"]) as archive:
        names = archive.namelist()
        assert any("weight" in name for name in names)
        for name in names:
            content = archive.read(name)
            assert not content.startswith((b"\x80\x02", b"PK")), name
            assert b'"use_pickle": true' not in content


def test_pt2_needs_no_onnx(tmp_path: Path) -> None:
    code = f"""
import sys
for name in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
    sys.modules[name] = None
import torch, isobit
sim = isobit.quantize(torch.nn.Sequential(torch.nn.Linear(4, 3)).eval(), [torch.randn(5, 4)], progress=False)
sim.export({str(tmp_path)!r}, formats=("pt2", "torchscript"))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"model.pt2", "model.torchscript.pt"} <= {path.name for path in tmp_path.iterdir()}


# --- TorchScript -----------------------------------------------------------------------------------------------------


def test_torchscript_elsewhere(sim: QuantSim, images: list[torch.Tensor], tmp_path: Path) -> None:
    path = sim.export(tmp_path, formats="torchscript")["torchscript"]
    many = torch.cat([*images, images[0][:3]])
    np.testing.assert_array_equal(elsewhere(path, [many])["0"], sim.run(many)["output"])


def test_torchscript_is_plain(sim: QuantSim, images: list[torch.Tensor], tmp_path: Path) -> None:
    """ATen operations alone, weights on their grids under the user's names, and the second run equals the first."""
    script = torch.jit.load(str(sim.export(tmp_path, formats="torchscript")["torchscript"]))
    torch._C._jit_pass_inline(script.graph)
    kinds = {node.kind().split("::")[0] for node in script.graph.nodes()}
    assert kinds <= {"aten", "prim"}
    operations = [node.kind() for node in script.graph.nodes()]
    assert "prim::PythonOp" not in operations
    assert operations.count("aten::round") == sum(
        1 for q in sim.model.quantizers.values() if type(q).__name__ == "Quantizer"
    )
    state = script.state_dict()
    for name in ("conv.weight", "fc.weight"):
        expected = sim.encodings[Weight(name)].fake_quantize(sim.backend_model.weight(name))
        np.testing.assert_array_equal(state[name].numpy(), expected)
    with torch.no_grad():
        simulated = sim.model(images[1])
        for _ in range(4):  # the interpreter optimizes after the first runs
            assert torch.equal(script(images[1]), simulated)
        assert torch.equal(script(image=images[1]), simulated)


def test_torchscript_follows_what_is_off(sim: QuantSim, images: list[torch.Tensor], tmp_path: Path) -> None:
    sim.backend_model.enable([Tensor("image"), Weight("conv.weight")], on=False)
    sim.model.train()
    script = torch.jit.load(str(sim.export(tmp_path, formats="torchscript")["torchscript"]))
    assert sim.model.training
    np.testing.assert_array_equal(script(images[0]).detach().numpy(), sim.run(images[0])["output"])
    assert torch.equal(script.state_dict()["conv.weight"], sim.model.get_parameter("conv.weight"))


@pytest.mark.parametrize("activations", ["float8e4m3", "bfloat16", "uint16", "int5"])
def test_torchscript_formats(activations: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 8)
    config = QuantConfig(weights="float8e5m2" if "float" in activations else "int4 block=2", activations=activations)
    sim = simulator(nn.Sequential(nn.Linear(8, 6), nn.ReLU()), [x], config)
    output = elsewhere(sim.export(tmp_path, formats="torchscript")["torchscript"], [x])["0"]
    np.testing.assert_array_equal(output, sim.run(x)["output"])


class Filling(nn.Module):
    """Filling in place, which has no functional form in TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.fc(x)
        factor = torch.zeros_like(y)
        factor[:, :2].fill_(1.0)
        factor[:, 2:] = torch.tensor(2.0)
        return y * factor


@pytest.mark.parametrize("form", ["torchscript", "pt2"])
def test_in_place_code(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [torch.randn(3, 4)]
    sim = simulator(Filling(), data)
    many = torch.randn(7, 4)
    output = elsewhere(sim.export(tmp_path, formats=form)[form], [many])["0"]
    np.testing.assert_array_equal(output, sim.run(many)["output"])


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, more: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = self.fc(x) + more["shift"]
        return {"all": (y, y.relu()), "none": None, "sum": y.sum(-1)}


def test_structures(tmp_path: Path) -> None:
    """A .pt2 keeps dicts and tuples; TorchScript takes them, and returns flat tensors for all but a dict of tensors."""
    x, more = torch.randn(3, 4), {"shift": torch.randn(3, 3)}
    opened = TorchBackend().open(Nested().eval(), {"x": x, "more": more})
    sim = QuantSim.of_backend_model(opened, registry().target("default"), QuantConfig())
    sim.calibrate([dict(zip(sim.graph.inputs, (x, more["shift"]), strict=True))])
    paths = sim.export(tmp_path, formats=("pt2", "torchscript"))
    with torch.no_grad():
        simulated = sim.model(x, more)
        exact = torch.jit.load(str(paths["torchscript"]))(x, more)
        close = torch.export.load(paths["pt2"]).module()(x, more)
    assert type(exact) is tuple
    for a, b in zip(exact, (*simulated["all"], simulated["sum"]), strict=True):
        assert torch.equal(a, b)
    assert list(close) == ["all", "none", "sum"]
    assert close["none"] is None
    torch.testing.assert_close(close["all"], simulated["all"], atol=0.05, rtol=0)
    assert "returns a tuple of tensors: all.0, all.1, sum" in paths["summary"].read_text()


def test_huggingface(tmp_path: Path) -> None:
    """Attention with sizes in its code, called by name, answering with a dataclass: dicts in the files."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    ids = torch.randint(0, 50, (3, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    sim = simulator(transformers.BertModel(config), [batch])
    paths = sim.export(tmp_path, formats=("torchscript", "pt2"))
    longer = torch.randint(0, 50, (5, 9))
    mask = torch.ones_like(longer)
    mask[2, 4:] = 0
    simulated = sim.run({"input_ids": longer, "attention_mask": mask})
    traced = elsewhere(paths["torchscript"], [longer, mask])
    assert list(traced) == list(simulated)
    for name, value in simulated.items():
        np.testing.assert_array_equal(traced[name], value)
    for name, value in elsewhere(paths["pt2"], [longer, mask]).items():
        assert np.mean(np.abs(value - simulated[name]) > 1e-4) < 0.01


# --- the choice of formats -------------------------------------------------------------------------------------------


def test_formats_are_named(sim: QuantSim, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"'pt3' \(did you mean 'pt2'\?\).*onnx, pt2, torchscript"):
        sim.export(tmp_path / "out", formats=("pt2", "pt3"))
    assert not (tmp_path / "out").exists()


class Tagger(nn.Module):
    """Two directions in two layers: weights whose gates the files keep in the user's order."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(12, 5, batch_first=True)
        self.fc = nn.Linear(5, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.fc(self.gru(self.lstm(self.words(ids))[0])[0])


def test_recurrent_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [torch.randint(0, 20, (4, 7)) for _ in range(4)]
    sim = simulator(Tagger(), data)
    paths = sim.export(tmp_path / "out", formats=("pt2", "torchscript"))
    stored = torch.export.load(paths["pt2"]).state_dict["lstm.weight_ih_l0"]
    encoding = sim.encodings[Weight("lstm.weight_ih_l0")]
    i, f, g, o = encoding.quantize(sim.backend_model.weight("lstm.weight_ih_l0")).reshape(4, 6, 8)[[0, 2, 3, 1]]
    assert np.array_equal(stored.numpy(), np.concatenate([i, f, g, o]))  # torch's order of gates, ONNX's is i, o, f, g
    simulated = sim.run({"ids": data[0].numpy()})["output"]
    for form in ("pt2", "torchscript"):
        (executed,) = elsewhere(paths[form], [data[0]]).values()
        np.testing.assert_array_equal(executed, simulated, err_msg=form)
