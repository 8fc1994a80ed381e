"""A program for a test: `auto_quantize` with a journal, killed in the middle of an evaluation."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from technique_networks import chain, simulator

import isobit
from isobit.encodings.encoding import Encoding
from isobit.graph.sites import Site

DATA = chain(0, spread=0.0).batch(16, 3)


class Evaluate:
    """Kills the process at a call, by its number."""

    def __init__(self, kill_at: int) -> None:
        self.calls, self.kill_at = 0, kill_at

    def __call__(self, model) -> float:
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return -float(np.abs(model(DATA)["logits"] - EXACT).max())


SIM = simulator(chain(0, spread=0.0), weights="int4", activations="uint4")
EXACT = SIM.run_float(DATA)["logits"]


def found_with(journal: str | Path | None, kill_at: int) -> tuple[dict[str, Any], dict[Site, Encoding]]:
    """What is found, but for the seconds that it took."""
    data = [chain(0, spread=0.0).batch(8, seed) for seed in range(2)]
    drop = 0.02 * float(np.abs(EXACT).max())
    evaluate = Evaluate(kill_at)
    found = isobit.auto_quantize(SIM, data, evaluate, max_drop=drop, journal=journal, evaluations=6, progress=False)
    result = found.to_dict()
    for attempt in (result["chosen"], *result["attempts"]):
        del attempt["seconds"]
    return result, dict(found.sim.encodings)


if __name__ == "__main__":
    found_with(sys.argv[1], kill_at=5)
