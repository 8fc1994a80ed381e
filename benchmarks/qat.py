"""Quantization-aware training of the network of `examples/digits`: accuracy after two epochs, and the cost of a step.

    python benchmarks/qat.py --frameworks torch tensorflow --formats W4A4 W3A3 W2A8

Training and held-out images are distorted (rotated, scaled, shifted, with noise), the same for all runs. Both
frameworks train the same weights with Adam, a rate of 1e-3 for weights and 1e-2 for grids that falls to 0 along a
cosine. `--files` asks onnxruntime too: accuracy of the exported file, and how far its logits are from the simulator's,
of this network and of a smaller one that joins branches (a Concat, whose inputs share a grid) and uses one layer twice;
integer sums are kept from saturating (`session.x64quantprecision`). The cost (`--cost`) is the processor time of a step
of the simulator over that of the float network, on one thread, of this network and of ResNet-18. Prints the table of
`docs/training.md`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import isobit
from isobit.plugins import registry
from isobit.testing.networks import Network

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

import qat_loop
import train as digits
from qat_loop import Array, Rates, Result, Step

from networks import resnet18

FOLDER = Path(digits.__file__).parent
EPOCHS, BATCH, COST_BATCH = 2, 32, 64
RATES = Rates(1e-3, 1e-2)
FORMATS = {"W8A8": ("int8", "uint8"), "W4A4": ("int4", "uint4"), "W3A3": ("int3", "uint3"), "W2A8": ("int2", "uint8")}


class Digits(NamedTuple):
    """Images to train on, epoch by epoch, held-out ones, and what calibrates."""

    epochs: list[tuple[Array, Array]]
    test: tuple[Array, Array]
    calibration: Array


def load(seed: int = 0) -> Digits:
    """Distorted digits; those of `test.npz` are held out."""
    with np.load(FOLDER / "test.npz") as archive:
        held_image, held_label = archive["image"], archive["label"]
    everything = digits.load_images()
    known = {image.tobytes() for image in held_image}
    keep = torch.tensor([image.numpy().tobytes() not in known for image in everything.image])
    image, label = everything.image[keep], everything.label[keep]
    rng = torch.Generator().manual_seed(seed)
    epochs = []
    for _ in range(EPOCHS):
        order = torch.randperm(len(label), generator=rng)
        epochs.append((digits.augment(image[order], rng).numpy(), label[order].numpy()))
    test = digits.augment(torch.from_numpy(held_image), rng).numpy()
    return Digits(epochs, (test, held_label), digits.augment(image[:512], rng).numpy())


def network() -> Network:
    """The trained network, batch norms kept."""
    opened = registry().backend("onnx").open(FOLDER / "model.onnx")
    return Network("digits", opened.graph, {name: opened.weight(name) for name in opened.graph.weights})


class Branches(torch.nn.Module):
    """Three branches behind one another, of which two are the same layer, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = torch.nn.Conv2d(1, 16, 3, 2, 1), torch.nn.Conv2d(16, 16, 3, padding=1)
        self.mixed, self.last = torch.nn.Conv2d(48, 32, 3, 2, 1), torch.nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.stem(image))
        second = torch.relu(self.block(first))
        third = torch.relu(self.block(second))
        mixed = torch.relu(self.mixed(torch.cat([first, second, third], 1)))
        return self.last(mixed.mean((2, 3)))


def branches(data: Digits, epochs: int = 25) -> Network:
    """That network, trained in float."""
    torch.manual_seed(0)
    model = Branches()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for image, label, _ in [batch for _ in range(epochs) for batch in batches(data)]:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(image)), torch.from_numpy(label)).backward()
        optimizer.step()
    opened = registry().backend("torch").open(model.eval(), torch.from_numpy(data.calibration[:2]))
    return Network("branches", opened.graph, {name: opened.weight(name) for name in opened.graph.weights})


def batches(data: Digits) -> Iterator[tuple[Array, Array, float]]:
    """Batches of all epochs, and the factor of the learning rate at each."""
    parts = [
        (image[i : i + BATCH], label[i : i + BATCH])
        for image, label in data.epochs
        for i in range(0, len(label) - BATCH + 1, BATCH)
    ]
    for number, (image, label) in enumerate(parts):
        yield image, label, 0.5 * (1 + math.cos(math.pi * number / len(parts)))


def accuracy(run: Callable[[Any], Any], data: tuple[Array, Array]) -> float:
    """Of the only output, in percent."""
    (logits,) = run(data[0]).values()
    return 100 * float(np.mean(logits.argmax(1) == data[1]))


# --- the frameworks --------------------------------------------------------------------------------------------------


def torch_model(given: Network) -> torch.nn.Module:
    from isobit_torch.reference_networks import build_torch

    return build_torch(given).eval()


def torch_step(model: torch.nn.Module, grids: list[Any]) -> Step:
    return qat_loop.torch_step(model, grids, torch.nn.functional.cross_entropy, RATES)


def keras_model(given: Network) -> Any:
    from isobit_tensorflow.reference_networks import build_keras

    return build_keras(given)


def keras_step(model: Any, grids: list[Any]) -> Step:
    import keras

    measure = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return qat_loop.keras_step(model, grids, lambda logits, label: measure(label, logits), RATES)


MAKE: dict[str, tuple[Callable[[Network], Any], Callable[[Any, list[Any]], Step]]] = {
    "torch": (torch_model, torch_step),
    "tensorflow": (keras_model, keras_step),
}


# --- what is measured ------------------------------------------------------------------------------------------------


def simulator(framework: str, form: str, given: Network, data: Array) -> isobit.QuantSim:
    weights, activations = FORMATS[form]
    return isobit.quantize(MAKE[framework][0](given), data, weights=weights, activations=activations, progress=False)


def trained(framework: str, form: str, data: Digits, given: Network) -> tuple[isobit.QuantSim, Result]:
    """The simulator of a network after two epochs."""
    sim = simulator(framework, form, given, data.calibration)
    return sim, qat_loop.trained(sim, lambda run: accuracy(run, data.test), MAKE[framework][1], batches(data))


def of_file(sim: isobit.QuantSim, data: Digits) -> tuple[float, float]:
    """Accuracy of the exported file in onnxruntime, in percent, and its logits' SQNR to the simulator's, in dB."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(str(sim.export(folder)["model"]), options)
        logits = session.run(None, {session.get_inputs()[0].name: data.test[0]})[0]
    (expected,) = sim.run(data.test[0]).values()
    noise = float(np.square(logits - expected).sum())
    right = 100 * float(np.mean(logits.argmax(1) == data.test[1]))
    return right, 10 * math.log10(float(np.square(expected).sum()) / max(noise, 1e-20))


def cost(framework: str, name: str, data: Digits, repeats: int = 8) -> float:
    """Processor time of a step of training at 8 bits over that of the float network, the median of pairs."""
    if name == "digits":
        given, (image, label) = network(), (part[:COST_BATCH] for part in data.epochs[0])
    else:
        given, rng = resnet18(64, 10), np.random.default_rng(0)
        image, label = rng.standard_normal((16, 3, 64, 64)).astype(np.float32), rng.integers(0, 10, 16)
    sim = simulator(framework, "W8A8", given, image)
    make, make_step = MAKE[framework]
    steps = (make_step(make(given), []), make_step(sim.trainable(), sim.quantizer_parameters()))
    ratios = []
    for repeat in range(repeats + 2):
        seconds = []
        for step in steps:
            start = time.process_time()
            step(image, label, 0.1)
            seconds.append(time.process_time() - start)
        if repeat > 1:  # the first ones trace and compile
            ratios.append(seconds[1] / seconds[0])
    return float(np.median(ratios))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frameworks", nargs="*", default=list(MAKE), choices=list(MAKE))
    parser.add_argument("--formats", nargs="*", default=["W4A4", "W3A3", "W2A8"], choices=list(FORMATS))
    parser.add_argument("--cost", action="store_true", help="measure the cost of a step too")
    parser.add_argument("--networks", nargs="*", default=["digits", "branches"], choices=["digits", "branches"])
    parser.add_argument("--files", action="store_true", help="export, run in onnxruntime, and compare")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load()
    networks = {"digits": network(), **({"branches": branches(data)} if arguments.files else {})}
    networks = {name: networks[name] for name in arguments.networks if name in networks}
    for framework, form, name in itertools.product(arguments.frameworks, arguments.formats, networks):
        sim, result = trained(framework, form, data, networks[name])
        more = [f"{part:.1f}" for part in of_file(sim, data)] if arguments.files else []
        print(qat_loop.row(framework, f"{name}, {form}", result=result, more=more), flush=True)
    for framework in arguments.frameworks:
        for name in ("digits", "resnet18") if arguments.cost else ():
            print(f"{framework}, {name}: a step costs {cost(framework, name, data):.2f} of a float one", flush=True)


if __name__ == "__main__":
    main()
