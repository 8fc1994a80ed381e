"""What must hold of every random PyTorch module: what holds of graphs, the module in place of the file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from check_case import check_case
from draw_module import ModuleCase
from drawing import Array, run
from executed import Executed
from outcome import Outcome

import isobit

#: What is drawn has values about 1; whole outputs below this are rounding.
_NOTHING = 1e-3


def check_module(case: ModuleCase, folder: Path) -> Outcome:
    """Quantize and export a module, and look at everything that came of it."""

    def quantized() -> Any:
        return isobit.quantize(case.module, case.batches, progress=False, **case.settings.keywords)

    def opened() -> Any:
        return isobit.QuantSim(case.module, case.batches[0], target=case.settings.target)

    names: list[str] = []

    def given(batch: Any) -> dict[str, Array]:
        names[:] = names or list(opened().graph.outputs)
        with torch.no_grad():
            results = case.module(*batch)
        parts = results if isinstance(results, tuple) else (results,)
        return dict(zip(names, (part.numpy() for part in parts), strict=True))

    return check_case(Outcome(case.seed, kinds=case.kinds), quantized, given, opened, _why, case.batches, folder)


def _why(sim: Any, written: onnx.ModelProto, feeds: dict[str, Array]) -> str:
    """Another kernel adds in another order: quantizer by quantizer and constant by constant all must be equal."""
    with tempfile.TemporaryDirectory() as folder:
        executed = Executed(sim, Path(folder) / "out")
        comparison = executed.compare(feeds)
        _, unequal = executed.unequal_constants()
    if comparison.equal != comparison.values:
        return f"{comparison.values - comparison.equal} of {comparison.values} integers differ for the same input"
    if unequal:
        return f"the constants {unequal[:3]} are not what the simulator computes with"
    if _least_bits(sim) >= 8:
        return _far(sim, written, feeds)
    return ""


def _least_bits(sim: Any) -> int:
    return min((p.spec.bits for p in sim.plan.placements.values()), default=32)


def _far(sim: Any, written: onnx.ModelProto, feeds: dict[str, Array]) -> str:
    """Ties of 8 bits stay ties: what they come to is below the noise of the rounding itself."""
    simulated = sim.run(feeds)
    for (name, values), array in zip(simulated.items(), run(written, feeds), strict=True):
        if values.dtype.kind == "f":
            noise = float(np.square(values - array).sum())
            # A norm over one value, whose result is 0 by rule, has the last bits of floats alone.
            power = max(float(np.square(values).sum()), values.size * _NOTHING**2)
            if noise > 10**-2.5 * power:
                return f"output {name!r} is {10 * np.log10(power / noise):.1f} dB from the simulator's"
    return ""
