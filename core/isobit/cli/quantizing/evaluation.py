"""How well a quantized model does: top-1 accuracy where there are labels, agreement with the float model, SQNR."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isobit.data import Dataset
from isobit.errors import DataError
from isobit.quantsim.checks.parts import pairs_of_parts, worst_parts
from isobit.quantsim.passes.progress import track

Outputs = Mapping[str, NDArray[Any]]
Run = Callable[[Outputs], Outputs]


@dataclass
class Evaluation:
    """Figures over one evaluation set; shares lie in 0..1 and are None where they were not measured."""

    output: str  # whose classes are counted
    samples: int = 0
    labelled: bool = False
    float_accuracy: float | None = None
    simulated_accuracy: float | None = None
    exported_accuracy: float | None = None
    simulated_agreement: float | None = None
    exported_agreement: float | None = None
    sqnr: dict[str, float] = field(default_factory=dict)  # dB by output and part of one; infinite where they are equal
    notes: list[str] = field(default_factory=list)


class Evaluator:
    """Compares the float model with the simulator, then with the exported model, batch by batch."""

    def __init__(self, dataset: Dataset, labels: NDArray[Any] | None, output: str) -> None:
        self.dataset = dataset
        self.labels = None if labels is None else _class_numbers(labels)
        self.result = Evaluation(output, labelled=self.labels is not None)
        self._float_classes: list[NDArray[np.int64]] = []
        self._parts: dict[str, dict[str, None]] = {}  # the names of the parts of each output

    def accuracy(self, run: Run) -> float:
        """Top-1 accuracy of one model. Raises DataError for an output that scores no classes."""
        classes = [self._classes(run(batch)) for batch in self.dataset]
        accuracy = self._accuracy(classes)
        if accuracy is None:
            raise DataError("; ".join(self.result.notes) or "there are no labels")
        return accuracy

    def compare(self, run_float: Run, run_simulated: Run) -> None:
        """Fill in the float model's and the simulator's figures."""
        energies: dict[str, NDArray[np.float64]] = {}
        simulated_classes = []
        for batch in track(self.dataset, "evaluating", len(self.dataset)):
            exact, simulated = run_float(batch), run_simulated(batch)
            pairs = {name: (a, simulated[name]) for name, a in exact.items() if a.dtype.kind == "f"}
            for name, parts in pairs_of_parts(self.dataset.graph, exact, simulated):
                self._parts.setdefault(name, {}).update(dict.fromkeys(parts))
                pairs |= parts
            for name, pair in pairs.items():
                energies[name] = energies.get(name, np.zeros(2)) + _energies(*pair)
            self._float_classes.append(self._classes(exact))
            simulated_classes.append(self._classes(simulated))
            self.result.samples += len(next(iter(batch.values())))
        ratios = {name: _decibel(signal, noise) for name, (signal, noise) in energies.items()}
        of_parts = {name: {part: ratios.pop(part) for part in names} for name, names in self._parts.items()}
        self.result.sqnr = {**ratios, **worst_parts(of_parts)}
        self.result.float_accuracy = self._accuracy(self._float_classes)
        self.result.simulated_accuracy = self._accuracy(simulated_classes)
        self.result.simulated_agreement = self._agreement(simulated_classes)

    def exported(self, run: Run) -> None:
        """Fill in the exported model's figures; `compare` comes first."""
        classes = [self._classes(run(batch)) for batch in track(self.dataset, "checking the export", len(self.dataset))]
        self.result.exported_accuracy = self._accuracy(classes)
        self.result.exported_agreement = self._agreement(classes)

    def _classes(self, outputs: Outputs) -> NDArray[np.int64]:
        """The best class of each sample; empty where the output does not score classes."""
        scores = outputs[self.result.output]
        while scores.ndim > 2 and scores.shape[-1] == 1:
            scores = scores[..., 0]
        if scores.ndim != 2 or scores.shape[1] < 2 or scores.dtype.kind != "f":
            shape = ", ".join(map(str, ("samples", *outputs[self.result.output].shape[1:])))
            note = f"output {self.result.output!r} has shape ({shape}), which scores no classes: no top-1"
            if note not in self.result.notes:
                self.result.notes.append(note)
            return np.zeros(0, np.int64)
        if self.labels is not None and self.labels.size and int(self.labels.max()) >= scores.shape[1]:
            raise DataError(
                f"label {int(self.labels.max())} is out of range: output {self.result.output!r} scores classes "
                f"0 to {scores.shape[1] - 1}"
            )
        return np.asarray(scores.argmax(axis=1), np.int64)

    def _accuracy(self, classes: list[NDArray[np.int64]]) -> float | None:
        predicted = np.concatenate(classes)
        if self.labels is None or not predicted.size:
            return None
        return float(np.mean(predicted == self.labels[: len(predicted)]))

    def _agreement(self, classes: list[NDArray[np.int64]]) -> float | None:
        quantized, exact = np.concatenate(classes), np.concatenate(self._float_classes)
        return float(np.mean(quantized == exact)) if quantized.size else None


def _class_numbers(labels: NDArray[Any]) -> NDArray[np.int64]:
    values = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    are_whole = values.dtype.kind in "iu" or (values.dtype.kind == "f" and bool(np.all(values == np.rint(values))))
    if values.ndim != 1 or not are_whole:
        raise DataError(
            f"the labels have shape {labels.shape} and type {labels.dtype}: they must be one whole number a sample"
        )
    if values.size and values.min() < 0:
        raise DataError(f"label {values.min():g} is negative: labels are class numbers from 0")
    return values.astype(np.int64)


def _energies(exact: NDArray[Any], simulated: NDArray[Any]) -> NDArray[np.float64]:
    """Energy of the signal and of the noise."""
    signal = exact.astype(np.float64).ravel()
    noise = simulated.astype(np.float64).ravel() - signal
    return np.array([signal @ signal, noise @ noise])


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
