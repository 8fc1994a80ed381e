"""Two frameworks in one process: a backend is an argument, never a global."""

from __future__ import annotations

import numpy as np

import isobit
from isobit.graph import Tensor
from isobit.techniques import FoldBatchNorms
from isobit.testing.networks import NETWORKS
from isobit_onnx.reference_networks import build_onnx
from isobit_tensorflow.reference_networks import build_keras
from isobit_torch.reference_networks import build_torch, example_of


def test_frameworks_side_by_side() -> None:
    network = NETWORKS["inverted_residual"]()
    sims = {
        "torch": isobit.QuantSim(build_torch(network), example_of(network)),
        "tensorflow": isobit.QuantSim(build_keras(network)),
        "onnx": isobit.QuantSim(build_onnx(network)),
    }
    data = [network.batch(8, seed) for seed in range(3)]
    for sim in sims.values():  # step by step in turn, not one after the other
        sim.apply(FoldBatchNorms())
    for sim in sims.values():
        sim.calibrate(data)
    batch = network.batch(8, 9)
    outputs = {name: sim.run(batch)["logits"] for name, sim in sims.items()}
    for name, sim in sims.items():
        for target_name, target in sims.items():
            transferred = isobit.transfer(sim.encodings, sim, target)
            assert transferred.complete, (name, target_name, transferred)
            assert dict(transferred.encodings) == dict(target.encodings), (name, target_name)
        np.testing.assert_allclose(outputs[name], outputs["onnx"], rtol=0, atol=1e-4)
    for sim in sims.values():
        sim.backend_model.set_quantizers({Tensor("image"): None})
    assert all(Tensor("image") not in sim.backend_model.encodings() for sim in sims.values())
