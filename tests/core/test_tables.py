"""Scales of tables that are looked up, against all scales of a fine grid, and through the rounding techniques."""

from __future__ import annotations

import numpy as np
import pytest
from numpy_backend import checked

from isobit.encodings import QuantSpec, encode_weight
from isobit.graph import Weight
from isobit.placement import Placement, QuantConfig
from isobit.plugins import registry
from isobit.quantsim import QuantSim
from isobit.techniques import GPTQ, AdaRound, SequentialMse
from isobit.techniques.rounding.tables import looked_up
from isobit.techniques.rounding.tables.looked_up import Table
from isobit.testing.networks import NetworkBuilder


def table(rows: int = 24) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((rows, 16)) * np.exp(rng.standard_normal((rows, 1)))
    values[0] = 0.0
    return values.astype(np.float32)


def placement_of(spec: str) -> Placement:
    return Placement(Weight("table"), QuantSpec.parse(spec), "weight", channel_axis=0, block_axis=1)


def error(values, encoding) -> float:
    return float(np.square(encoding.fake_quantize(values) - values.astype(np.float64)).sum())


@pytest.mark.parametrize("rows", [1 << 21, 16 * 5])
@pytest.mark.parametrize("spec", ["int4 per-tensor", "int4 per-channel", "uint3 per-channel", "int4 block=8"])
def test_no_scale_of_a_fine_grid_is_much_better(spec: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looked_up, "_ELEMENTS", rows)
    values, placement = table(), placement_of(spec)
    plain = encode_weight(values, placement.spec, channel_axis=0, block_axis=1)
    chosen = Table.searched(values, placement)
    found, plain_share, share = chosen.encoding, chosen.plain_error, chosen.error
    power = float(np.square(values, dtype=np.float64).sum())
    assert share == pytest.approx(error(values, found) / power)
    assert plain_share == pytest.approx(error(values, plain) / power)
    pieces = []
    for factor in np.linspace(0.4, 1.0, 241):
        tried = encode_weight(values * np.float32(factor), placement.spec, channel_axis=0, block_axis=1)
        noise = np.square(tried.fake_quantize(values) - values.astype(np.float64))
        pieces.append(noise.reshape(24, 2, 8).sum(2) if "block" in spec else noise.sum(1))
        if "tensor" in spec:
            pieces[-1] = pieces[-1].sum()
    best = float(np.min(pieces, axis=0).sum())
    assert share * power <= plain_share * power
    assert share * power <= best * 1.05


def test_eight_bits_and_constant_tables_keep_their_grids() -> None:
    placement = placement_of("int8 per-channel")
    for values in (np.zeros((3, 16), np.float32), np.full((3, 16), 2.0, np.float32)):
        found = Table.searched(values, placement)
        assert found.plain_error == found.error == 0
        assert found.encoding == encode_weight(values, placement.spec, channel_axis=0, block_axis=1)


@pytest.mark.parametrize("technique", [SequentialMse(), GPTQ(), AdaRound(), AdaRound(sequential=True)])
def test_tables_are_searched_beside_layers(technique) -> None:
    b = NetworkBuilder("words", 0)
    words = b.input("words", dtype="int64")
    b.output("y", b.linear("fc", b.op("Gather", "look", b.weight("table", table()), words, axis=0), 4))
    network = b.build()
    sim = QuantSim.of_backend_model(
        checked(network.graph, network.weights), registry().target("default"), QuantConfig("int4 block=8", None, {}, ())
    )
    data = {"words": np.arange(24, dtype=np.int64)}
    (report,) = sim.apply(technique, data=data)
    assert "error of the rows" in report.changed[0]
    assert "table" not in report.left
    sim.calibrate(data)
    expected = Table.searched(table(), placement_of("int4 block=8"))
    assert sim.encodings[Weight("table")] == expected.encoding
