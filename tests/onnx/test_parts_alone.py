"""Parts of a model in onnxruntime: single quantizers on or off in one session, with the values of whole runs."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

import isobit
from isobit.analysis.sensitivity.chain import Chain, Changed
from isobit.analysis.sensitivity.cut_graph import cut_into_parts
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx
from isobit_onnx.run import part as onnx_part


def counted(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The sessions of parts that are made from now on."""
    opened: list[object] = []

    class Counted(onnx_part.Session):
        def __init__(self, *args: object, **options: object) -> None:
            opened.append(self)
            super().__init__(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx_part, "Session", Counted)
    return opened


@pytest.mark.parametrize("measure", ["on", "off"])
def test_sessions_are_as_many_whatever_the_batches_are(measure: Literal["on", "off"], monkeypatch) -> None:
    """Each holds weights of its part; those of parts that run together were made anew for each batch."""
    network, made = NETWORKS["multi_head"](), []
    for count in (1, 6):
        opened = counted(monkeypatch)
        sim = isobit.QuantSim(build_onnx(network))
        data = [network.batch(2, seed) for seed in range(count)]
        sim.calibrate(data)
        isobit.analyze(sim, data, measure=measure)
        made.append(len(opened))
    assert made[1] <= made[0] + 2  # a part may be reached with later data alone


@pytest.mark.parametrize("name", ["inverted_residual", "multi_head", "shared_weights"])
@pytest.mark.parametrize("is_on", [True, False])
def test_single_quantizers_are_switched_in_one_session(name: str, is_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = counted(monkeypatch)
    network = NETWORKS[name]()
    sim = isobit.QuantSim(build_onnx(network), weights="int4")
    batch = network.batch(4)
    sim.calibrate([batch])
    base = sim.simulation.model.copy()
    encodings = dict(base.encodings())
    base.enable(list(encodings), on=not is_on)
    parts = cut_into_parts(base.graph, 4)
    chain = Chain(base, {} if is_on else encodings, parts, [batch])
    tried, differ = base.copy(), 0
    for site in encodings:
        tried.enable([site], on=is_on)
        on = {other: e for other, e in encodings.items() if (other == site) == is_on}
        (outputs,) = chain.outputs_with(Changed(tried, on, [site]))
        whole = tried.run(batch)
        differ += any(not np.array_equal(whole[key], chain.outputs[0][key]) for key in whole)
        for key, values in whole.items():
            noise = np.abs(outputs[key] - values)
            # Sums of another kernel may tip a rounding behind them; with one quantizer on, none lies behind.
            assert noise.max() < 1e-4 if is_on else noise.mean() < 0.02 * np.abs(values).max()
        tried.enable([site], on=not is_on)
    assert differ > len(encodings) // 2
    # Plain and switched, in float parts and in those that run together; without switches one more for each quantizer.
    assert len(opened) <= 2 * len(parts) + 2
