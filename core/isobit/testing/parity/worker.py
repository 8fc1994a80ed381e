"""One framework: build each reference network, and write graph, plans, encodings and outputs to a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from isobit.backend.contract import Backend
from isobit.encodings.encoding import Encoding
from isobit.errors import PluginError
from isobit.graph.isomorphism import correspondence
from isobit.graph.sites import Input, Site, Tensor, Weight
from isobit.placement.place import place
from isobit.placement.quant_config import QuantConfig
from isobit.plugins import registry
from isobit.quantsim.quantsim import QuantSim
from isobit.techniques.fold_batch_norms import FoldBatchNorms
from isobit.testing.networks import NETWORKS
from isobit.testing.networks.builder import Network
from isobit.testing.parity.results import STAGES, Result, placement_facts

TARGET = "default"

#: The scheme whose encodings every simulator is run with.
SHARED = "minmax"

_CALIBRATION = [(16, seed) for seed in range(4)]
_EVALUATION = (64, 99)


@runtime_checkable
class BuildsNetworks(Protocol):
    """What a Backend adds to the contract to take part: the reference networks in its framework."""

    def build_network(self, network: Network) -> Any:
        """The network as a native model with the same weights, which `Backend.open` opens."""
        ...


def builders() -> dict[str, Backend]:
    """The registered backends that build the reference networks; the ONNX one first: it judges the others."""
    backends = {name: b for name, b in registry().backends().items() if isinstance(b, BuildsNetworks)}
    return dict(sorted(backends.items(), key=lambda item: (item[0] != "onnx", item[0])))


def work(backend: str, folder: Path, networks: Sequence[str], schemes: Sequence[str], reference: Path | None) -> None:
    """Write the results of one backend; `reference` is the folder of the framework whose encodings are shared."""
    opener = registry().backend(backend)
    if not isinstance(opener, BuildsNetworks):
        raise PluginError(f"backend {backend!r} does not build the reference networks (it has no build_network)")
    for name in networks:
        network = NETWORKS[name]()
        model = opener.open(opener.build_network(network), network.batch(2))
        for stage in STAGES:
            sim = QuantSim.of_backend_model(model.copy(), registry().target(TARGET), QuantConfig())
            if stage == "folded":
                sim.apply(FoldBatchNorms())
            shared = None if reference is None else Result.read(reference, name, stage)
            _result(sim, network, schemes, shared).write(folder, name, stage)


def _result(sim: QuantSim, network: Network, schemes: Sequence[str], shared: Result | None) -> Result:
    weights = {name: np.asarray(sim.backend_model.weight(name)) for name in sim.graph.weights}
    plans = {name: placement_facts(place(sim.graph, registry().target(name))) for name in registry().targets()}
    data = [network.batch(size, seed) for size, seed in _CALIBRATION]
    encodings = {}
    sim.calibrate(data, SHARED, progress=False)
    for scheme in dict.fromkeys([*schemes, SHARED]):
        sim.recalibrate(scheme)
        encodings[scheme] = sim.encodings
    if shared is not None:
        unshared = Result(sim.graph, weights, plans, encodings)
        _set_encodings(sim, renamed(shared, unshared, shared.encodings[SHARED]))
    else:
        sim.recalibrate(SHARED)
    batch = network.batch(*_EVALUATION)
    return Result(sim.graph, weights, plans, encodings, _real(sim.run_float(batch)), _real(sim.run(batch)))


def _real(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(value, np.float32) for name, value in outputs.items()}


def _set_encodings(sim: QuantSim, encodings: Mapping[Site, Encoding]) -> None:
    simulated = {s: e for s, e in encodings.items() if s in sim.plan.placements and sim.plan.placements[s].simulated}
    sim.backend_model.set_quantizers(simulated)


def renamed(source: Result, target: Result, items: Mapping[Site, Any]) -> dict[Site, Any]:
    """Items by sites of `source`, by the sites of `target` that correspond; others are left out."""
    pairs = correspondence(source.graph, target.graph, source.weights.__getitem__, target.weights.__getitem__)
    renamed_items = {}
    for site, item in items.items():
        counterpart = _counterpart(site, source, target, pairs)
        if counterpart is not None:
            renamed_items[counterpart] = item
    return renamed_items


def _counterpart(site: Site, source: Result, target: Result, pairs: Mapping[str, str]) -> Site | None:
    if isinstance(site, Tensor):
        return Tensor(pairs[site.name]) if site.name in pairs else None
    if isinstance(site, Input):
        producer = target.graph.producer(pairs.get(source.graph.node(site.node).outputs[0], ""))
        return None if producer is None else Input(producer.name, site.index)
    use = next(iter(source.graph.uses(site.name)), None)
    producer = target.graph.producer(pairs.get(use.node.outputs[0], "")) if use is not None else None
    name = None if producer is None or use is None else producer.input(use.index)
    return None if name is None else Weight(name)
