"""Modules that pack their sequences: opened as what torch computes, for lengths that the example did not have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import isobit
from isobit.errors import ModelError
from isobit_torch.backend import TorchBackend

TIME = 6


class Classifier(nn.Module):
    """Tokens in any order of lengths, two layers, both directions, the last hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.rnn = nn.GRU(6, 8, 2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = pack_padded_sequence(self.embedding(tokens), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, hidden = self.rnn(x)
        return self.head(torch.cat((hidden[-2], hidden[-1]), -1))


class Tagger(nn.Module):
    """Sequences of falling length, unpacked with another value for padding, and values of the packed ones changed."""

    def __init__(self, *, reads_cell: bool = False) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(5, 8, bidirectional=True, batch_first=True), nn.Linear(16, 3)
        self.reads_cell = reads_cell

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True)
        y, last = self.rnn(PackedSequence(packed.data * 2, packed.batch_sizes))
        padded, _ = pad_packed_sequence(y, batch_first=True, padding_value=-1.0)
        return self.head(padded) + (last[1].mean() if self.reads_cell else 0)


class Pooled(nn.Module):
    """A mean over the values of the packed sequences, or the largest of the unpacked ones over time."""

    def __init__(self, *, over_packed: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(5, 4, batch_first=True)
        self.over_packed = over_packed

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        y, last = self.rnn(pack_padded_sequence(x, lengths, batch_first=True))
        if self.over_packed:
            return last[-1] + y.data.mean()
        return pad_packed_sequence(y, batch_first=True)[0].amax(1)


def tokens(lengths: list[int], length: int = TIME) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, 20, (len(lengths), length)), torch.tensor(lengths)


def floats(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(len(lengths), TIME, 5), torch.tensor(lengths)


@pytest.mark.filterwarnings("ignore::isobit.errors.CoverageWarning")
def test_a_classifier_of_packed_tokens_goes_the_whole_way(tmp_path) -> None:
    torch.manual_seed(0)
    module, data = Classifier().eval(), [tokens([3, 6, 1, 4]) for _ in range(3)]
    sim = isobit.QuantSim(module, data[0])
    assert any("packed sequences are computed padded" in note for note in sim.graph.notes)
    other = tokens([2, 9, 9, 5, 1], 9)
    with torch.no_grad():
        for batch in (data[0], other):
            np.testing.assert_allclose(sim.run_float(batch)["output"], module(*batch).numpy(), atol=1e-5)
    sim.calibrate(data, method="minmax")
    path = sim.export(tmp_path)["model"]
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    found = session.run(None, dict(zip(names, (t.numpy() for t in other), strict=True)))[0]
    np.testing.assert_allclose(found, sim.run(other)["output"], atol=0.05)


def test_a_tagger_gives_what_torch_gives_for_other_lengths() -> None:
    module = Tagger().eval()
    opened = TorchBackend().open(module, floats([6, 6, 4, 1]))
    for lengths in ([6, 3, 2, 2], [6, 6, 6]):
        x, each = floats(lengths)
        with torch.no_grad():
            wanted = module(x, each).numpy()
        found = opened.run({"x": x.numpy(), "lengths": each.numpy()})["output"]
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "lengths", "told"),
    [
        (Tagger(reads_cell=True), [6, 4, 4, 2], "of cells of an LSTM"),
        (Tagger(), [4, 4, 2, 1], "total_length"),
        (Pooled(over_packed=True), [6], "across the values of a packed sequence"),
        (Pooled(over_packed=False), [6, 4, 2], "computes across their steps.*total_length"),
    ],
)
def test_what_padded_sequences_cannot_give_is_explained(module: nn.Module, lengths: list[int], told: str) -> None:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    with pytest.raises(ModelError, match=told):
        TorchBackend().open(module.eval(), floats(lengths))


class Continued(nn.Module):
    """An LSTM of two layers and directions that is given the states it starts from, in torch's own order of axes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(5, 4, 2, bidirectional=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False)
        return self.rnn(packed, (h, c))[1][0].transpose(0, 1)


def test_states_at_another_size_are_refused_before_torch_reads_past_them() -> None:
    module, states = Continued().eval(), (torch.randn(4, 3, 4), torch.randn(4, 3, 4))
    opened = TorchBackend().open(module, (*floats([3, 6, 2]), *states))
    x, lengths = floats([2, 5, 4])
    feeds = dict(zip(("x", "lengths", "h", "c"), (x, lengths, *states), strict=True))
    with torch.no_grad():
        wanted = module(**feeds).numpy()
    found = opened.run({name: value.numpy() for name, value in feeds.items()})["output"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(ModelError, match="state of shape"):
        opened.given.run({**feeds, "h": torch.randn(16, 3, 4)})


def test_opening_in_threads_leaves_torch_as_it_was() -> None:
    patched = [(nn.Module, "to"), (nn.RNNBase, "check_forward_args"), (torch.autocast, "__enter__")]
    before = [getattr(kind, name) for kind, name in patched]
    modules = [Pooled(over_packed=True).eval() for _ in range(2)]

    def told(module: nn.Module) -> str:
        with pytest.raises(ModelError) as error:
            TorchBackend().open(module, floats([6, 4]))
        return str(error.value)

    with ThreadPoolExecutor(2) as threads:
        assert all("packed sequence" in text for text in threads.map(told, modules))
    assert [getattr(kind, name) for kind, name in patched] == before
