"""LSTM, GRU, RNN and their cells: the graph that the ONNX backend gives, runs, training and exports."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from isobit.backend import BackendModel
from isobit.errors import ModelError
from isobit.graph import Tensor, Weight, differences
from isobit.graph.isomorphism import correspondence
from isobit.placement import QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim, read_encodings
from isobit_torch.backend import TorchBackend

FEATURES, HIDDEN = 5, 8


class Tagger(nn.Module):
    """Sequence and last state of a recurrent network, batch first."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn
        self.fc = nn.Linear(HIDDEN * (2 if rnn.bidirectional else 1), 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y, state = self.rnn(x if self.rnn.batch_first else x.transpose(0, 1))
        hidden = state[0] if isinstance(state, tuple) else state
        return {"tags": self.fc(y if self.rnn.batch_first else y.transpose(0, 1)), "hidden": hidden}


class WithStates(nn.Module):
    """Initial states are inputs, (batch, layers * directions, hidden)."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, HIDDEN, 2, bidirectional=True, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.rnn(x, (h.transpose(0, 1), c.transpose(0, 1)))[1][1].transpose(0, 1)


class Unrolled(nn.Module):
    """A cell in a loop, from no state."""

    def __init__(self, cell: nn.RNNCellBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state, steps = None, []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            steps.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(steps, 1)


LAYERS = {
    "lstm": lambda: nn.LSTM(FEATURES, HIDDEN, batch_first=True),
    "stacked": lambda: nn.LSTM(FEATURES, HIDDEN, 2, dropout=0.5),
    "bidirectional": lambda: nn.LSTM(FEATURES, HIDDEN, 2, bidirectional=True, batch_first=True),
    "no bias": lambda: nn.LSTM(FEATURES, HIDDEN, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(FEATURES, HIDDEN, 2, bidirectional=True, batch_first=True),
    "relu": lambda: nn.RNN(FEATURES, HIDDEN, nonlinearity="relu", bidirectional=True),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def sequences(count: int = 4, batch: int = 32, length: int = 6) -> list[torch.Tensor]:
    return [torch.randn(batch, length, FEATURES) for _ in range(count)]


def opened(module: nn.Module, example: object) -> BackendModel:
    return TorchBackend().open(module.eval(), example)


def simulator(module: nn.Module, data: list) -> QuantSim:
    sim = QuantSim.of_backend_model(opened(module, data[0]), registry().target("default"), QuantConfig())
    sim.calibrate(data)
    return sim


def decibels(signal: np.ndarray, other: np.ndarray) -> float:
    noise = float(np.square(signal.astype(np.float64) - other).sum())
    return 10 * np.log10(float(np.square(signal.astype(np.float64)).sum()) / max(noise, 1e-30))


def check_export(sim: QuantSim, data: list, folder) -> list:
    """The file is 20 dB nearer to the simulator than that to the float model, and reads back; returns its nodes."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    path = sim.export(folder)["model"]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(str(path), options)
    names = [value.name for value in session.get_inputs()]
    runs = []
    for batch in data:
        parts = batch if isinstance(batch, tuple) else (batch,)
        feeds = dict(zip(names, (part.numpy() for part in parts), strict=True))
        runs.append((sim.run_float(batch), sim.run(batch), session.run(None, feeds)))
    for index, output in enumerate(session.get_outputs()):
        plain, simulated, executed = (
            np.concatenate([np.ravel(run[i][index if i == 2 else output.name]) for run in runs]) for i in range(3)
        )
        assert decibels(simulated, executed) >= decibels(plain, simulated) + 20, output.name
    again = read_encodings(path, sim)
    for site, encoding in sim.encodings.items():
        assert not isinstance(site, Weight) or again[site] == encoding, "one scale a gate row, as in the simulator"
    return list(onnx.load(path).graph.node)


def exported(module: nn.Module, example: tuple[torch.Tensor, ...]) -> BackendModel:
    """The ONNX backend's view of what torch.onnx.export writes; axis 0 of every input is dynamic."""
    from isobit_onnx.backend import OnnxBackend

    names = inspect.signature(module.forward).parameters
    shapes = {name: {0: torch.export.Dim.AUTO} for name in names}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), example, dynamic_shapes=shapes)
        onnx_program = torch.onnx.export(program, (), dynamo=True, optimize=False, opset_version=21, verbose=False)
    return OnnxBackend().open(onnx_program.model_proto, None)


# --- runs and exports -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "no bias"])
def test_layers(name: str, tmp_path) -> None:
    module, data = Tagger(LAYERS[name]()).eval(), sequences()
    sim = simulator(module, data)
    rnn = module.rnn
    with torch.no_grad():
        expected = module(data[0])
    for output, result in sim.run_float(data[0]).items():
        np.testing.assert_allclose(result, expected[output].numpy(), atol=1e-6)
    layers = [node for node in sim.graph.nodes if node.op == rnn.mode.split("_")[0]]
    assert len(layers) == rnn.num_layers * (2 if rnn.bidirectional else 1)
    weights = [key for key in rnn.state_dict() if key.startswith("weight")]
    for key in weights:
        encoding = sim.encodings[Weight(f"rnn.{key}")]
        assert encoding.scale.shape == (len(rnn.state_dict()[key]),), "one scale a row"
    for node in layers:
        assert {Tensor(node.inputs[0] or ""), Tensor(node.outputs[0])} <= set(sim.encodings)
    nodes = {output: node for node in check_export(sim, data, tmp_path) for output in node.output}
    written = [node for node in nodes.values() if node.op_type == layers[0].op]
    assert len({node.name for node in written}) == len(layers)
    for node in written:
        assert [nodes[name].op_type for name in node.input[1:3]] == ["Mul"] * 2, "folded when the file is loaded"


def test_initial_states(tmp_path) -> None:
    module = WithStates().eval()
    data = [(x, torch.randn(32, 4, HIDDEN), torch.randn(32, 4, HIDDEN)) for x in sequences()]
    sim = simulator(module, data)
    with torch.no_grad():
        expected = module(*data[0]).numpy()
    np.testing.assert_allclose(sim.run_float(data[0])["output"], expected, atol=1e-6)
    assert all(node.input(5) and node.input(6) for node in sim.graph.nodes if node.op == "LSTM")
    assert sim.report.left_in_float["rnn.layer1.forward"] == "nothing reads it"
    check_export(sim, data, tmp_path)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_in_a_loop(cell: type[nn.RNNCellBase], tmp_path) -> None:
    module, data = Unrolled(cell(FEATURES, HIDDEN)).eval(), sequences(length=3)
    sim = simulator(module, data)
    with torch.no_grad():
        np.testing.assert_allclose(sim.run_float(data[0])["output"], module(data[0]).numpy(), atol=1e-6)
    assert {node.op for node in sim.graph.nodes} & {"LSTM", "GRU", "RNN"} == set()
    assert not any("::" in node.op for node in sim.graph.nodes)
    assert {Weight("cell.weight_ih"), Weight("cell.weight_hh")} <= set(sim.encodings)
    check_export(sim, data, tmp_path)


def test_token_sequences_of_any_length(tmp_path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, FEATURES)
            self.rnn = nn.GRU(FEATURES, HIDDEN, bidirectional=True, batch_first=True)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.rnn(self.embedding(tokens))[0]

    module = Model().eval()
    data = [torch.randint(0, 20, (16, length)) for length in (7, 9, 5)]
    sim = simulator(module, data)
    with torch.no_grad():
        np.testing.assert_allclose(sim.run_float(data[2])["output"], module(data[2]).numpy(), atol=1e-6)
    check_export(sim, data, tmp_path)


def test_a_layer_called_twice_has_one_quantizer_a_weight(tmp_path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(FEATURES, FEATURES, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, state = self.rnn(x)
            return self.rnn(y, state)[0]

    data = sequences()
    sim = simulator(Twice(), data)
    assert [str(site) for site in sim.encodings if "weight" in str(site)] == ["rnn.weight_hh_l0", "rnn.weight_ih_l0"]
    check_export(sim, data, tmp_path)


# --- the graph of the ONNX backend ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_canonical_weights_are_onnxs(kind: str) -> None:
    """A node made of them by hand computes in onnxruntime what the module computes."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    rnn = getattr(nn, kind)(FEATURES, HIDDEN).eval()
    x = torch.randn(6, 3, FEATURES)
    model = opened(Tagger(rnn), x.transpose(0, 1))
    w, r, b, rb = (model.weight(f"rnn.{key}_l0") for key in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    extra = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = onnx.helper.make_node(kind, ["x", "w", "r", "b"], ["y"], hidden_size=HIDDEN, **extra)
    infos = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    constants = {"w": w[None], "r": r[None], "b": np.concatenate([b, rb])[None]}
    initializers = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = onnx.helper.make_graph([node], "g", infos[:1], infos[1:], initializers)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    executed = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(executed[:, 0], rnn(x)[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("name", ["lstm", "bidirectional", "no bias", "gru"])
def test_the_graph_and_the_encodings_are_the_onnx_backends(name: str) -> None:
    """torch.onnx.export takes the weights apart, and the ONNX backend finds them again under their own names."""
    pytest.importorskip("onnxruntime")
    module, data = Tagger(LAYERS[name]()).eval(), sequences()
    torch_model, onnx_model = opened(module, data[0]), exported(module, (data[0],))
    assert differences(torch_model.graph, onnx_model.graph, torch_model.weight, onnx_model.weight) == []
    assert set(torch_model.graph.weights) == set(onnx_model.graph.weights)
    target = registry().target("default")
    sims = [QuantSim.of_backend_model(model, target, QuantConfig()) for model in (torch_model, onnx_model)]
    for sim in sims:
        sim.calibrate([{"x": batch.numpy()} for batch in data], "minmax")
    pairs = correspondence(torch_model.graph, onnx_model.graph, torch_model.weight, onnx_model.weight)
    placed = {Tensor(pairs[str(s)]) if isinstance(s, Tensor) else s: p.spec for s, p in sims[0].plan.placements.items()}
    assert placed == {site: placement.spec for site, placement in sims[1].plan.placements.items()}
    weights = [site for site in sims[0].encodings if isinstance(site, Weight) and "weight" in str(site)]
    assert len(weights) == 1 + sum(key.startswith("weight") for key in module.rnn.state_dict())
    for site in weights:
        assert sims[0].encodings[site] == sims[1].encodings[site], site


def test_initial_states_are_cut_as_the_exporter_does() -> None:
    pytest.importorskip("onnxruntime")
    module, states = WithStates().eval(), [torch.randn(3, 4, HIDDEN) for _ in range(2)]
    example = (torch.randn(3, 6, FEATURES), *states)
    torch_model, onnx_model = opened(module, example), exported(module, example)
    assert differences(torch_model.graph, onnx_model.graph, torch_model.weight, onnx_model.weight) == []


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_the_exporters_operations(kind: type[nn.RNNCellBase]) -> None:
    pytest.importorskip("onnxruntime")

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(FEATURES, HIDDEN)

        def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            if kind is nn.LSTMCell:
                h, c = self.cell(x, (h, c))
                return h + c
            return self.cell(x, h) + c

    example = (torch.randn(3, FEATURES), torch.randn(3, HIDDEN), torch.randn(3, HIDDEN))
    module = Step().eval()
    torch_model, onnx_model = opened(module, example), exported(module, example)
    assert differences(torch_model.graph, onnx_model.graph, torch_model.weight, onnx_model.weight) == []


# --- training -------------------------------------------------------------------------------------------------------


def test_gradients_are_the_modules() -> None:
    module, x = Tagger(LAYERS["bidirectional"]()).eval(), sequences(1)[0]
    model = opened(module, x).native
    for network in (module, model):
        sum(output.square().sum() for output in network(x).values()).backward()
    parameters = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-4, atol=1e-4)


def test_training_drops_between_the_layers_and_learns() -> None:
    data = sequences()
    sim = simulator(Tagger(LAYERS["stacked"]()), data)
    model = sim.model
    with torch.no_grad():
        assert torch.equal(model(data[0])["tags"], model(data[0])["tags"])
        model.train()
        first, second = model(data[0]), model(data[0])
    assert not torch.equal(first["tags"], second["tags"])
    half = first["hidden"].shape[0] // 2
    assert torch.equal(first["hidden"][:half], second["hidden"][:half]), "nothing is dropped before the first layer"
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(data[0])["tags"].square().mean().backward()
    optimizer.step()
    assert {f"rnn.weight_ih_l{layer}" for layer in (0, 1)} <= {
        name for name, value in model.named_parameters() if not torch.equal(value, before[name])
    }
    model.eval()
    with torch.no_grad():
        np.testing.assert_array_equal(sim.run(data[1])["tags"], model(data[1])["tags"].numpy())


def test_copies_and_states_compute_the_same() -> None:
    data = sequences()
    sim = simulator(Tagger(LAYERS["relu"]()), data)
    expected = sim.run(data[0])
    copied_model, restored = sim.backend_model.copy(), TorchBackend().restore(sim.backend_model.state())
    with torch.no_grad():
        copied = copy.deepcopy(sim.model)(data[0])
    for name, value in expected.items():
        np.testing.assert_array_equal(copied[name].numpy(), value)
        for model in (copied_model, restored):
            np.testing.assert_array_equal(model.run({"x": data[0].numpy()})[name], value)


class Projected(nn.Module):
    """An LSTM with projections: two layers, both directions, from given states or from zeros."""

    def __init__(self, *, is_stateful: bool, **settings: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, HIDDEN, 2, proj_size=3, bidirectional=True, batch_first=True, **settings)
        self.is_stateful = is_stateful

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states = (x[:, :4, :3].transpose(0, 1), x[:, :4, 2:3].transpose(0, 1).expand(-1, -1, HIDDEN))
        y, (hidden, cell) = self.rnn(x, states if self.is_stateful else None)
        return y, hidden.transpose(0, 1), cell.transpose(0, 1)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("is_stateful", "bias"), [(True, True), (False, False)])
def test_a_projection_is_a_linear_layer_behind_the_lstm(tmp_path, is_stateful: bool, bias: bool) -> None:
    module, data = Projected(is_stateful=is_stateful, bias=bias).eval(), sequences()
    sim = simulator(module, data)
    with torch.no_grad():
        for found, wanted in zip(sim.run_float(data[0]).values(), module(data[0]), strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-6)
    assert sim.report.coverage.weights > 0.8  # all but the biases, which recurrent layers keep
    assert sum("projection" in note for note in sim.graph.notes) == 1  # for all layers and directions
    check_export(sim, data, tmp_path)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projection_that_loses_more_than_its_size_is_explained() -> None:
    module = Projected(is_stateful=True)
    with torch.no_grad():
        module.rnn.weight_hr_l1[2] = module.rnn.weight_hr_l1[1]
    with pytest.raises(ModelError, match="rank 2 of 3"):
        opened(module, sequences()[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_other_values_of_a_weight_that_was_merged_are_refused() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(5, 4, 2, proj_size=3, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    module = Projected().eval()
    sim = QuantSim(module, torch.randn(2, 3, 5))
    assert sum("train before quantizing" in note for note in sim.graph.notes) == 1
    state = module.state_dict()
    sim.model.load_state_dict(state)
    for name in ("rnn.weight_hh_l0", "rnn.weight_hr_l1"):
        with pytest.raises(ModelError, match=name):
            sim.model.load_state_dict({**state, name: state[name] * 2})
