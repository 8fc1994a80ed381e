"""Mixed precision beside "first layers high" and "last layers high", on the MobileNet of `examples/digits`.

    python benchmarks/mixed_precision.py --low int4 --high int8

Each point is measured on the held-out images: decibels at the logits and top-1. Costs are those of `mixed_precision`,
conversions included, over that of the low format everywhere. The curve is found from 32 calibration images; the other
two know nothing of the network, and each of their points is a model as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import isobit
from isobit.analysis.measure_errors import copies
from isobit.quantsim.judging.judge import Judge, mean
from isobit.search.choose import Search
from isobit.search.cost_tables import cost_table
from isobit.search.formats import parse_candidates
from isobit.search.scoring import Scorer

DIGITS = Path(__file__).parents[1] / "examples" / "digits"

Choice = tuple[int, ...]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--low", default="int4")
    parser.add_argument("--high", default="int8")
    parser.add_argument("--step", type=int, default=3, help="layers between two points of the simple orders")
    arguments = parser.parse_args()
    with np.load(DIGITS / "calibration.npz") as file:
        images = file["image"]
    with np.load(DIGITS / "test.npz") as file:
        test, labels = file["image"], file["label"]
    sim = isobit.quantize(
        DIGITS / "model.onnx", images, weights=arguments.low, activations=f"u{arguments.low}", progress=False
    )
    simulation = sim.simulation
    exact, _ = copies(simulation)
    formats = parse_candidates(simulation, [arguments.low, arguments.high])
    batches = [{"image": images[:32]}]
    table = cost_table("bits", sim.target, formats)
    search = Search(simulation, batches, Scorer(exact, Judge.of(exact, batches)), formats, table, "benchmark")
    search.draw_curve()
    judge = Judge.of(exact, [{"image": test}])
    name = next(iter(sim.graph.outputs))
    base = search.program.costs.of((0,) * len(search.groups.all))

    def measured(choice: Choice) -> tuple[float, float, float]:
        model = search.variant(choice).model
        right = model.run({"image": test})[name].argmax(1) == labels
        return search.program.costs.of(choice) / base, mean(judge.ratios(model)), 100 * float(right.mean())

    count = len(search.groups.all)
    highs = range(arguments.step, count, arguments.step)
    orders: dict[str, Sequence[Choice]] = {
        "mixed precision": search.choices(),
        "first layers high": [(1,) * k + (0,) * (count - k) for k in highs],
        "last layers high": [(0,) * (count - k) + (1,) * k for k in highs],
    }
    points = {order: [measured(choice) for choice in choices] for order, choices in orders.items()}
    for order, found in points.items():
        print(f"{order} ({len(found)} points)")
        print("\n".join(f"  {cost:6.3f}  {ratio:5.1f} dB  {top:6.2f} %" for cost, ratio, top in found))
    print(f"runs for the curve: {count} groups alone on 32 images, and two passes")
    curve = points.pop("mixed precision")
    for order, found in points.items():
        beaten = [point for point in found if any(c <= point[0] * (1 + 1e-9) and r >= point[1] for c, r, _ in curve)]
        at_cost = [max(r for c, r, _ in curve if c <= cost * (1 + 1e-9)) - ratio for cost, ratio, _ in found]
        print(
            f"{order}: {len(beaten)} of {len(found)} points dominated; {np.mean(at_cost):+.1f} dB at their cost, mean"
        )


if __name__ == "__main__":
    main()
