"""The descent in the weights of one block, by the error of its output, to a hard rounding.

Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021; biases
and scales learn along as in Hubara et al., "Accurate Post Training Quantization With Small Calibration Sets", ICML 2021
(AdaQuant).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isobit.backend.checked_model import CheckedDifferentiable
from isobit.deadline import check_time
from isobit.encodings.encoding import Encoding
from isobit.graph.graph import Graph
from isobit.techniques.reconstruction.adam import Adam
from isobit.techniques.reconstruction.block_samples import BlockSamples
from isobit.techniques.reconstruction.soft_weight import SoftWeight

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

#: How far a parameter can go in all steps together: of the sigmoid's argument, of a scale's logarithm, and of a bias in
#: units of the root mean square of all of its layer. So the rates follow from the number of steps.
_PLACES, _SCALES, _BIASES = 3.0, 0.05, 0.05

#: The shares of the steps before the first values settle, and before the last ones do; after that scales and biases go
#: on alone.
_FIRST, _LAST = 0.2, 0.9


@dataclass(frozen=True)
class Descent:
    """How a block is descended in: so many steps with batches of so many samples."""

    steps: int
    batch: int


@dataclass(frozen=True, eq=False)
class Rounded:
    """Weights and biases of a block by name, and the grids of the weights."""

    weights: Mapping[str, Array]
    encodings: Mapping[str, Encoding]
    biases: Mapping[str, Array]

    @property
    def constants(self) -> dict[str, Array]:
        """All values."""
        return {**self.weights, **self.biases}


def descend(
    model: CheckedDifferentiable,
    part: Graph,
    floats: Mapping[str, Array],
    start: Rounded,
    samples: BlockSamples,
    settings: Descent,
    rng: np.random.Generator,
) -> Rounded:
    """Round the weights of a block anew, from a rounding that is known; `floats` are their float values.

    `model` has the quantizers of the block's weights switched off, and all others on.
    """
    soft = {
        name: SoftWeight(floats[name], encoding, encoding.quantize(start.weights[name]))
        for name, encoding in start.encodings.items()
    }
    biases = {name: value.astype(np.float64) for name, value in start.biases.items()}
    parameters: dict[Hashable, Floats] = {}
    parameters.update(biases.items())
    rates: dict[Hashable, float] = {
        name: _BIASES * float(np.sqrt(np.mean(np.square(value)))) / settings.steps for name, value in biases.items()
    }
    for name, weight in soft.items():
        for kind, value in weight.parameters.items():
            parameters[name, kind] = value
            rates[name, kind] = (_PLACES if kind == "place" else _SCALES) / settings.steps
    unit = error_of(model, part, start.constants, samples, settings.batch) or 1.0
    optimizer = Adam()
    for step in range(settings.steps):
        check_time()
        numbers = samples.draw(rng, settings.batch)
        given, wanted = samples.batch(numbers)
        values = {name: weight.value() for name, weight in soft.items()}
        values |= {name: value.astype(np.float32) for name, value in biases.items()}
        _, by_value = model.part_error(part, values, given, wanted)
        scale = 1 / (unit * len(numbers))
        gradients: dict[Hashable, Floats] = {name: by_value[name] * np.float64(scale) for name in biases}
        for name, weight in soft.items():
            for kind, gradient in weight.gradient(by_value[name] * np.float64(scale)).items():
                gradients[name, kind] = gradient
        optimizer.step(parameters, gradients, rates)
        for weight in soft.values():
            weight.settle(_settled(step + 1, settings.steps))
    return Rounded(
        {name: weight.value(hard=True) for name, weight in soft.items()},
        {name: weight.encoding for name, weight in soft.items()},
        {name: value.astype(np.float32) for name, value in biases.items()},
    )


def error_of(
    model: CheckedDifferentiable, part: Graph, values: Mapping[str, Array], samples: BlockSamples, batch: int
) -> float:
    """The squared error of a part's output with these weights, a sample in the mean."""
    return sum(_errors(model, part, values, samples, batch)) / max(len(samples), 1)


def _errors(
    model: CheckedDifferentiable, part: Graph, values: Mapping[str, Array], samples: BlockSamples, batch: int
) -> Iterable[float]:
    for numbers in samples.batches(batch):
        given, wanted = samples.batch(numbers)
        yield model.part_error(part, values, given, wanted)[0]


def _settled(done: int, steps: int) -> float:
    """The share of all values that are integers after so many steps: fewer and fewer at a time."""
    progress = min(max((done / steps - _FIRST) / (_LAST - _FIRST), 0.0), 1.0)
    return 1.0 if done == steps else 1 - (1 - progress) ** 2
