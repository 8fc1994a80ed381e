"""Part 10: searches. Formats are mixed and recipes tried through the backend's own models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.quantsim import QuantSim
from isobit.search import auto_quantize, mixed_precision
from isobit.testing.conformance.base import ConformanceBase, Opened

Open = Callable[[str], Opened]


class SearchingConformance(ConformanceBase):
    """The simulator that comes back is of the backend's kind, and as good as it was measured to be."""

    def test_formats_for_a_drop(self, open_network: Open) -> None:
        """Some layers get more bits, others keep theirs."""
        sim, data = _simulator(open_network)
        sim.calibrate(data)
        before = sim.run(data[0])
        found = mixed_precision(sim, data, max_drop=1e-3, candidates=["int4", "int8"], evaluations=3)
        assert found.holds
        assert found.chosen.drop is not None
        assert found.chosen.drop <= 1e-3 < (found.curve[0].drop or 0.0)
        assert found.sim.backend_model.backend == sim.backend_model.backend
        assert _drop(found.sim, data) < 3e-3
        for name, values in sim.run(data[0]).items():
            np.testing.assert_array_equal(values, before[name])

    def test_the_best_that_is_found_in_time(self, open_network: Open) -> None:
        """The first attempt is measured on data that it has not seen, and returned when the time is over."""
        sim, data = _simulator(open_network)
        found = auto_quantize(sim, data, max_drop=0.0, minutes=1e-9, progress=False)
        assert [attempt.outcome for attempt in found.attempts] == ["does not hold"]
        assert found.chosen.drop is not None
        assert abs(_drop(found.sim, data[1:]) - found.chosen.drop) < 0.5 * found.chosen.drop


def _simulator(open_network: Open) -> tuple[QuantSim, list[dict[str, np.ndarray]]]:
    opened = open_network("conv_net")
    config = QuantConfig("int4", "uint4")
    sim = QuantSim.of_backend_model(opened.model, registry().target("default"), config)
    return sim, [dict(opened.network.batch(8, seed)) for seed in range(2)]


def _drop(sim: QuantSim, data: list[dict[str, np.ndarray]]) -> float:
    """The share of noise in the energy of the outputs."""
    pairs = [(sim.run_float(batch), sim.run(batch)) for batch in data]
    noise = sum(float(np.square(now[name] - exact[name]).sum()) for exact, now in pairs for name in exact)
    return noise / sum(float(np.square(values).sum()) for exact, _ in pairs for values in exact.values())
